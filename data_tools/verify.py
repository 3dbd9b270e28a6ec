"""Check datasets and their packing plans: every hash, page and count. Exits with 1 where something is damaged.

python data_tools/verify.py P...
python data_tools/verify.py P --workers 16
python data_tools/verify.py P --fonts
python data_tools/verify.py P --against STRINGS --sample 1000

--fonts also holds the fonts and libraries of this machine against those that the pages were made with: where they
differ, new pages will not look like these. --against renders pages again, from a strings dataset that was made of the
same text with the same settings, and compares them pixel by pixel.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.data.preprocess_arguments import positive_int
from megatron_pixel.data.preprocess_progress import StatusLine

if TYPE_CHECKING:
    from megatron_pixel.data.manifest import Manifest
    from megatron_pixel.data.verification import Report


def main(words: Sequence[str]) -> int:
    """Check each dataset and print what was found; returns the exit status."""
    arguments = parse(words)
    outcomes = {prefix: check(prefix, arguments) for prefix in arguments.prefixes}
    damaged = [prefix for prefix, outcome in outcomes.items() if outcome == "damaged"]
    different = [prefix for prefix, outcome in outcomes.items() if outcome == "different"]
    if damaged:
        print(f"\ndamaged: {', '.join(damaged)}; copy them again from where they are sound, or make them again")
    if different:
        print(f"\nnot what would be rendered here: {', '.join(different)}")
    return 1 if damaged or different else 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("prefixes", nargs="+", metavar="P", help="output prefixes of preprocess.py")
    parser.add_argument("--quick", action="store_true", help="sizes, counts and indexes only; no hashes, no pages")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (default: 1)")
    parser.add_argument(
        "--fonts",
        nargs="*",
        metavar="FILE",
        help="compare the fonts of this machine, or these files in order, with those of the pages",
    )
    parser.add_argument("--against", metavar="STRINGS", help="prefix of a strings dataset to render the pages from")
    parser.add_argument(
        "--sample", type=positive_int, metavar="N", help="with --against: pages chosen at random (default: all)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    arguments = parser.parse_args(words)
    if arguments.sample is not None and arguments.against is None:
        parser.error("--sample belongs to --against")
    if arguments.against is not None and len(arguments.prefixes) > 1:
        parser.error("--against compares one dataset with another; give one P")
    return arguments


def check(prefix: str, arguments: argparse.Namespace) -> str:
    """Print the table of one dataset and what is wrong with it; returns ``sound``, ``damaged`` or ``different``.

    Raises UserError where there is no dataset.
    """
    from megatron_pixel.data.manifest import Manifest, manifest_path
    from megatron_pixel.data.verification import examine

    if not os.path.exists(manifest_path(prefix)):
        raise UserError(
            f"no dataset at {prefix}: {manifest_path(prefix)} does not exist; give the output prefix of preprocess.py"
        )
    print(f"{prefix}", flush=True)
    line = StatusLine()
    try:
        manifest = Manifest.read(prefix, check_files=False)
        report = examine(prefix, not arguments.quick, arguments.workers, partial(show, line))
    except UserError as error:
        line.clear()
        print(f"  DAMAGED  {error}")
        return "damaged"
    line.clear()
    for split, counts in manifest.splits.items():
        parts = [(counts.documents, "documents"), (counts.sequences, "sequences")]
        parts += [part for part in ((counts.patches, "patches"), (counts.tokens, "tokens")) if part[0]]
        print(f"  {split:<8} {', '.join(f'{count:,} {name}' for count, name in parts)}")
    sizes = {"manifest.json": os.path.getsize(manifest_path(prefix))}
    sizes |= {name: entry.bytes for name, entry in manifest.all_files().items()}
    sizes |= {name: size for plan in report.plans for name, size in plan.sizes.items()}
    damaged_files = {finding.name for finding in report.findings}
    outdated_files = {name for plan in report.plans if plan.outdated for name in plan.sizes}
    for name, size in sizes.items():
        state = "DAMAGED" if name in damaged_files else "outdated" if name in outdated_files else "sound"
        pages = f", {report.damaged_pages[name]:,} pages" if report.damaged_pages[name] else ""
        print(f"  {name:<24} {size:>20,} bytes  {state}{pages}")
    if report.bytes:
        print(f"  {rates(report)}")
    for problem in report.problems():
        print(f"  DAMAGED  {problem}")
    for plan in report.plans:
        if plan.outdated:
            print(f"  OUTDATED {plan.outdated}")
    if report.findings:
        return "damaged"
    differences = list(compare(prefix, manifest, arguments))
    for difference in differences:
        print(f"  DIFFERS  {difference}")
    return "different" if differences else "sound"


def compare(prefix: str, manifest: "Manifest", arguments: argparse.Namespace) -> Iterator[str]:
    """What a renderer here does otherwise, as far as it was asked for."""
    if arguments.fonts is None and arguments.against is None:
        return
    from megatron_pixel.data.verification_rendering import compare_fonts, compare_pages

    if manifest.rendering:
        yield from compare_fonts(manifest, arguments.fonts or ())
    if arguments.against is not None:
        started = time.monotonic()
        compared, differences = compare_pages(prefix, arguments.against, arguments.sample, arguments.seed)
        rate = compared / max(time.monotonic() - started, 1e-9)
        print(f"  {compared:,} pages rendered again and compared, {rate:,.0f} pages/s")
        yield from differences


def rates(report: "Report") -> str:
    """What was read, and how fast."""
    seconds = max(report.seconds, 1e-9)
    pages = f"{report.pages:,} pages, {report.pages / seconds:,.0f} pages/s; " if report.pages else ""
    return f"{pages}{report.bytes / 1e6:,.1f} MB, {report.bytes / seconds / 1e6:,.1f} MB/s, {report.seconds:.1f} s"


def show(line: StatusLine, report: "Report", total: int) -> None:
    """How far the examination is; called as often as anybody likes."""
    if line.due():
        left = report.seconds * (total - report.bytes) / max(report.bytes, 1)
        line.write(f"  {100 * report.bytes / max(total, 1):.0f}%, {rates(report)}, {left:,.0f} s left")


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
