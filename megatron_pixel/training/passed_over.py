"""Which rows a run passes over: the batches of steps that the user or a rewind has taken out.

Batches are numbered from 1, in the order in which a run that passes over none takes them, one a step. What has been
taken out by a rewind stands in ``passed_over.json`` in the run's folder, so that a run which dies before its next
checkpoint does not meet the same rows again.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_pixel.config.errors import UserError
from megatron_pixel.training.checkpoint_files import write_durably

FILE = "passed_over.json"

Ranges = tuple[tuple[int, int], ...]
"""First and last batch of each stretch, in order, apart from each other."""


class Batches:
    """From the step of a run to the batch that it takes.

    Args:
        ranges: batches that no step takes.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.ranges = _joined(ranges)

    def of(self, step: int) -> int:
        """The batch of a step; both count from 1."""
        batch = step
        for first, last in self.ranges:
            if batch < first:
                break
            batch += last - first + 1
        return batch

    def taken(self, steps: int) -> int:
        """Batches that are behind the run after its first ``steps`` steps, those passed over among them."""
        return self.of(steps) if steps else 0


def parse_ranges(words: Iterable[str]) -> Ranges:
    """``["120-139", "200"]`` -> ``((120, 139), (200, 200))``.

    Raises:
        UserError: a word is neither a number nor a range that goes up.
    """
    ranges = []
    for word in words:
        first, _, last = word.partition("-")
        if not first.isdecimal() or not (last or first).isdecimal() or not 1 <= int(first) <= int(last or first):
            raise UserError(f"guards.skip_steps: {word!r} is no step and no range of steps such as 120-139")
        ranges.append((int(first), int(last or first)))
    return _joined(ranges)


def read(folder: Path) -> Ranges:
    """What rewinds of the run in ``folder`` have taken out."""
    path = folder / FILE
    if not path.exists():
        return ()
    return _joined((int(first), int(last)) for first, last in json.loads(path.read_text(encoding="utf-8"))["batches"])


def write(folder: Path, ranges: Ranges) -> None:
    """Keep what rewinds have taken out; whole or not at all."""
    part = folder / f"{FILE}.part"
    write_durably(part, json.dumps({"batches": ranges}) + "\n")
    part.replace(folder / FILE)


def _joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    def merge() -> Iterator[tuple[int, int]]:
        current: tuple[int, int] | None = None
        for first, last in sorted(ranges):
            if current is not None and first <= current[1] + 1:
                current = current[0], max(current[1], last)
            else:
                if current is not None:
                    yield current
                current = first, last
        if current is not None:
            yield current

    return tuple(merge())
