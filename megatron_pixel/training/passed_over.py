"""Which rows a run passes over: the batches of steps that the user or a rewind has taken out.

Batches are numbered from 1, in the order in which a run that passes over none takes them, one a step. What has been
taken out by rewinds stands in ``passed_over.json`` in the run's folder, so that a run which dies before its next
checkpoint does not meet the same rows again.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from megatron_pixel.config.steps import Ranges, joined
from megatron_pixel.training.checkpoint_files import write_durably

FILE = "passed_over.json"


class Batches:
    """From the step of a run to the batch that it takes.

    Args:
        ranges: batches that no step takes.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.ranges = joined(ranges)

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


def read(folder: Path) -> tuple[Ranges, int]:
    """What rewinds of the run in ``folder`` have taken out, and how many rewinds there were."""
    path = folder / FILE
    if not path.exists():
        return (), 0
    content = json.loads(path.read_text(encoding="utf-8"))
    return joined((int(first), int(last)) for first, last in content["batches"]), int(content["rewinds"])


def forget(folder: Path) -> None:
    """For a run that does not go on from its own checkpoints: what their rewinds took out is not its concern."""
    (folder / FILE).unlink(missing_ok=True)


def write(folder: Path, ranges: Ranges, rewinds: int) -> None:
    """Keep what :func:`read` reads; whole or not at all."""
    part = folder / f"{FILE}.part"
    write_durably(part, json.dumps({"batches": ranges, "rewinds": rewinds}) + "\n")
    part.replace(folder / FILE)
