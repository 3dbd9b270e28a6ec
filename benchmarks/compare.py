#!/usr/bin/env python
"""Compare two results of the same benchmark, and fail where the new one has lost.

    python benchmarks/compare.py old/rendering.json benchmarks/results/rendering.json
    python benchmarks/compare.py OLD.json NEW.json --loss 10% --only '*ratio*'

Rates, ratios and scores are better high; times, sizes and counts of faults are better low; all others (documents,
layers, seeds) only say what was measured, and a difference there is told but not judged. `gain` is how many times
better the new figure is: new / old where high is better, else old / new. The exit status is 1 where a figure has lost
more than `--loss`, 2 where the files cannot be compared.

Rates and times of two machines do not compare: a difference of processor, GPU, cores, versions or command is told
first. Ratios measured within one run do compare, and `--only '*ratio*'` judges them alone.
"""

import argparse
import fnmatch
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.compare_rules import Direction, Leaf, direction, leaves
from megatron_pixel.config.errors import UserError

RUN = "run"


@dataclass(frozen=True)
class Change:
    """A figure that both files have and that is judged."""

    name: str
    old: float
    new: float
    better: Direction

    @property
    def gain(self) -> float:
        """How many times better the new figure is; infinite from or to nothing."""
        good, bad = (self.new, self.old) if self.better == "higher" else (self.old, self.new)
        if good == bad:
            return 1.0
        return good / bad if bad else math.inf

    def lost(self, allowed: float) -> bool:
        """Whether it is worse by more than this share."""
        return self.gain < 1 - allowed


@dataclass(frozen=True)
class Comparison:
    """All that two results of one benchmark tell about each other."""

    changes: list[Change]
    described: list[tuple[str, Leaf, Leaf]]
    """Figures that are not judged and differ."""
    only_old: list[str]
    only_new: list[str]
    machine: list[tuple[str, Any, Any]]
    """What differs of the machine, the versions, the commit and the command."""


def main(words: Sequence[str]) -> int:
    """Print the comparison; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD.json", help="the result to hold against")
    parser.add_argument("new", type=Path, metavar="NEW.json", help="the result to judge")
    parser.add_argument("--loss", default="5%", metavar="SHARE", help="the most that is allowed (default: 5%%)")
    parser.add_argument("--only", metavar="PATTERN", help="judge figures of these names, as in '*ratio*'")
    parser.add_argument("--all", action="store_true", help="show figures that are the same in both, too")
    options = parser.parse_args(words)
    allowed = share(options.loss)
    found = compare(read(options.old), read(options.new), options.only)
    lost = [change for change in found.changes if change.lost(allowed)]
    print(report(found, allowed, options.all))
    same = sum(change.gain == 1 for change in found.changes)
    print(f"\n{len(found.changes)} figures judged, {same} of them the same, {len(lost)} lost more than {options.loss}")
    return 1 if lost else 0


def share(text: str) -> float:
    """``5%`` or ``0.05``.

    Raises:
        UserError: it is neither.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise UserError(f"--loss: {text!r} is no share; write it as 5% or as 0.05")
    return value


def read(path: Path) -> Mapping[str, Any]:
    """A result file.

    Raises:
        UserError: it cannot be read, or no benchmark wrote it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno} is no JSON: {error.msg}") from error
    if not isinstance(found, dict) or not isinstance(found.get(RUN), dict) or "benchmark" not in found[RUN]:
        raise UserError(f"{path} is no result of a benchmark: `python benchmarks/NAME.py --json FILE` writes one")
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any], only: str | None = None) -> Comparison:
    """Hold two results against each other; ``only`` is a pattern of the names to judge.

    Raises:
        UserError: they are results of two benchmarks, or nothing in them can be judged.
    """
    programs = old[RUN]["benchmark"], new[RUN]["benchmark"]
    if programs[0] != programs[1]:
        raise UserError(f"these are results of {programs[0]} and of {programs[1]}: compare two of one benchmark")
    before, after = _figures(old), _figures(new)
    changes, described = [], []
    for path, a in before.items():
        if path not in after:
            continue
        name, b, better = ".".join(path), after[path], direction(path)
        if better is not None and _is_number(a) and _is_number(b):
            if only is None or fnmatch.fnmatch(name, only):
                changes.append(Change(name, float(a), float(b), better))
        elif a != b:
            described.append((name, a, b))
    if not changes:
        raise UserError(
            f"--only: no figure of both files is called {only!r}" if only else "no figure of both files can be judged"
        )
    return Comparison(
        changes=changes,
        described=described,
        only_old=[".".join(path) for path in before if path not in after],
        only_new=[".".join(path) for path in after if path not in before],
        machine=_machine(old[RUN], new[RUN]),
    )


def report(found: Comparison, allowed: float, everything: bool = False) -> str:
    """What was found, as aligned text."""
    parts = []
    if found.machine:
        lines = [f"  {name}: {_text(a)} -> {_text(b)}" for name, a, b in found.machine]
        parts.append("warning: the runs differ\n" + "\n".join(lines))
    if found.described:
        lines = [f"  {name}: {_text(a)} -> {_text(b)}" for name, a, b in found.described]
        parts.append("differs, not judged\n" + "\n".join(lines))
    for title, names in (("only in the old file", found.only_old), ("only in the new file", found.only_new)):
        if names:
            parts.append(f"{title}\n" + "\n".join(f"  {name}" for name in names))
    shown = [change for change in found.changes if everything or change.gain != 1]
    if shown:
        rows = [["figure", "better", "old", "new", "gain", ""]]
        rows += [
            [c.name, c.better, _text(c.old), _text(c.new), f"{c.gain:.3f}", "LOST" if c.lost(allowed) else ""]
            for c in shown
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        parts.append("\n".join(_line(row, widths) for row in rows))
    return "\n\n".join(parts)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, numbers to the right."""
    cells = [
        text.rjust(width) if column in (2, 3, 4) else text.ljust(width)
        for column, (text, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _figures(result: Mapping[str, Any]) -> dict[tuple[str, ...], Leaf]:
    return dict(leaves({key: value for key, value in result.items() if key != RUN}))


def _machine(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What differs of how the results were made; the date and the file that was written do not count."""
    before, after = (dict(leaves(_setup(run))) for run in (old, new))
    return [
        (".".join(path), before.get(path), after.get(path))
        for path in {**before, **after}
        if before.get(path) != after.get(path)
    ]


def _setup(run: Mapping[str, Any]) -> dict[str, Any]:
    words = str(run.get("command", "")).split()
    if "--json" in words:
        place = words.index("--json")
        words = words[:place] + words[place + 2 :]
    return {**{key: value for key, value in run.items() if key != "date"}, "command": " ".join(words)}


def _is_number(value: Leaf) -> TypeGuard[float]:
    return isinstance(value, bool | int | float)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.5g}"
    return "-" if value is None else str(value)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
