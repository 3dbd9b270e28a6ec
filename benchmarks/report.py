#!/usr/bin/env python
"""Make the tables of docs/performance.md and docs/scaling.md from the results in benchmarks/results.

    python benchmarks/report.py
    python benchmarks/report.py --check

Each table stands between two comments, ``<!-- result: NAME -->`` and ``<!-- end -->``, and is made from
``results/NAME.json`` alone: no figure on the page is typed by hand. ``--check`` changes nothing and exits with 1
where a page is out of date.
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import program_tables, report_tables, scaling_tables, step_tables, training_tables
from benchmarks.report_tables import Result
from benchmarks.result_file import RESULTS
from megatron_pixel.config.errors import UserError, exit_on_user_error

PAGES = [ROOT / "docs" / "performance.md", ROOT / "docs" / "scaling.md"]
TABLES = {
    **report_tables.TABLES,
    **program_tables.TABLES,
    **scaling_tables.TABLES,
    **training_tables.TABLES,
    **step_tables.TABLES,
}


def main(words: Sequence[str]) -> int:
    """Write the pages, or compare them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    arguments = parser.parse_args(words)
    results, old = read_results(), []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = fill(before, results)
        if before != after and arguments.check:
            print(f"docs/{page.name} is out of date: python benchmarks/report.py", file=sys.stderr)
            old.append(page)
        elif before != after:
            page.write_text(after, encoding="utf-8")
    return int(bool(old))


def read_results(folder: Path = RESULTS) -> dict[str, Result]:
    """The committed results by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def fill(page: str, results: Mapping[str, Result]) -> str:
    """The page with its tables made from ``results``; a table without a result says so.

    Raises UserError for a table that is not known, and for a result that lacks a figure.
    """

    def section(match: re.Match[str]) -> str:
        name = match[1]
        if name not in TABLES:
            raise UserError(f"a page shows {name}, which is no table; there are {', '.join(TABLES)}")
        if name not in results:
            absent = training_tables.ABSENT.get(name, f"Not measured: there is no `results/{name}.json`.")
            return f"<!-- result: {name} -->\n\n{absent}\n\n<!-- end -->"
        try:
            body = TABLES[name](results[name])
        except (KeyError, TypeError) as error:
            raise UserError(f"benchmarks/results/{name}.json lacks {error}: it was made by another version") from error
        return f"<!-- result: {name} -->\n\n{body}\n\n{provenance(results[name]['run'])}\n\n<!-- end -->"

    return re.sub(r"<!-- result: (\w+) -->.*?<!-- end -->", section, page, flags=re.DOTALL)


def provenance(run: Result) -> str:
    """What was run, when and on what, in small print."""
    machine, versions = run["machine"], dict(run["versions"])
    python = versions.pop("python")
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"<sub>`{run['command']}`, {run['date']}, commit {run['commit']}. {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']:g} GiB, {machine['system']}; Python {python}, {libraries}.</sub>"
    )


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
