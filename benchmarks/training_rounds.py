"""The measurement of ``training.py``: all sides take their steps in turns, and ratios are medians over rounds."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.remote import Remote, RemoteError
from benchmarks.training_run import rows_of
from benchmarks.training_side import PARTS, Step
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.data.mixture import MixtureReader
from megatron_pixel.training.losses import tally
from megatron_pixel.training.throughput import flops_per_step

SETTLING = 2
"""Steps of each kind of rows, until the memory of a process on a CPU has found its places."""
MIX_EVERY = 3
"""A step of the mix is five micro-batches long, so it is taken in every third round only."""


@dataclass(frozen=True)
class Work:
    """What a step of one side holds."""

    positions: int
    """Of its rows, padding among them."""
    targets: int
    tokens: int
    """Positions that hold a token."""
    patches: int
    flops: float
    """See :func:`megatron_pixel.training.throughput.flops_per_step`."""
    micro_batches: int


@dataclass
class Side:
    """One of those that are compared.

    Attributes:
        name: ``ours``, or that of a peer or variant.
        remote: its process, with a :class:`~benchmarks.training_side.TrainingSide`.
        kinds: of rows that it can read.
        parameters: of its model.
        readers: of its rows, by kind.
        steps: that were timed, by kind and round.
        work: of these steps, likewise.
        peak_memory: bytes, by kind.
        failed: why it takes no steps any more.
    """

    name: str
    remote: Remote
    kinds: Sequence[str]
    parameters: int
    readers: Mapping[str, MixtureReader]
    steps: dict[str, dict[int, Step]] = field(default_factory=dict)
    work: dict[str, dict[int, Work]] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    failed: str | None = None

    def rates(self, name: str) -> dict[int, float]:
        """Positions a second, by round."""
        return {number: self.work[name][number].positions / step.seconds for number, step in self.steps[name].items()}


class Rounds:
    """Takes rounds of steps.

    Args:
        sides: ours first.
        limits: the process of a :class:`~benchmarks.training_side.Limits`.
        config: of our run.
        cuda: whether steps run on a GPU.
        say: shows a line of progress.

    Attributes:
        rounds: taken so far.
        head_seconds: of the vocabulary head on the rows of our text step, by round.
    """

    def __init__(
        self, sides: Sequence[Side], limits: Remote, config: RunConfig, cuda: bool, say: Callable[[str], None]
    ) -> None:
        self.sides = list(sides)
        self._limits, self._config, self._cuda, self._say = limits, config, cuda, say
        self.rounds = 0
        self.head_seconds: dict[int, float] = {}
        self._turn_seconds: dict[str, float] = {}

    def warm_up(self, kinds: Sequence[str]) -> None:
        """Steps that count nothing: one that makes what lasts, others that tell the memory, others to settle.

        On a CPU, to know the memory of a step all that is free must go back to the system, which the next steps have to
        get anew: nothing is timed before they have.
        """
        self._turn(kinds[0], lambda side, kind: side.remote.call("warm_up", kind))
        for kind in kinds:
            self._turn(kind, self._weigh)
        for _ in range(0 if self._cuda else SETTLING):
            for kind in kinds:
                if kind != "mix" or len(kinds) == 1:
                    self._turn(kind, lambda side, kind: side.remote.call("warm_up", kind))
        if "text" in kinds:
            self._limits.call("head_seconds", 1)

    def take(self, kinds: Sequence[str]) -> None:
        """One round: every side takes a step of every kind, in an order that turns around from round to round."""
        kinds = self._of_next(kinds)
        self.rounds += 1
        number = self.rounds
        for kind in kinds:
            began = time.monotonic()
            self._turn(kind, lambda side, kind: self._step(side, kind, number))
            if kind == "text":
                its = self.sides[0].steps["text"][number]
                self.head_seconds[number] = self._limits.call("head_seconds", its.number)
            self._turn_seconds[kind] = time.monotonic() - began

    def next_seconds(self, kinds: Sequence[str]) -> float:
        """What another round will take, by those before it."""
        return sum(self._turn_seconds[kind] for kind in self._of_next(kinds))

    def _of_next(self, kinds: Sequence[str]) -> list[str]:
        return [kind for kind in kinds if kind != "mix" or self.rounds % MIX_EVERY == 0]

    def _turn(self, kind: str, let: Callable[[Side, str], None]) -> None:
        for side in self.sides if self.rounds % 2 else self.sides[::-1]:
            if side.failed is not None or kind not in side.kinds:
                continue
            try:
                let(side, kind)
            except RemoteError as error:
                if side is self.sides[0]:
                    raise
                side.failed = str(error)
                self._say(f"{error.details}{side.name}: left out from here on: {side.failed}")

    def _step(self, side: Side, kind: str, number: int) -> None:
        step: Step = side.remote.call("step", kind)
        side.steps.setdefault(kind, {})[number] = step
        side.work.setdefault(kind, {})[number] = self._count(side.readers[kind], step.number)
        self._say(f"  round {number}  {kind:6}{side.name:16}{step.seconds:9.3f} s")

    def _weigh(self, side: Side, kind: str) -> None:
        side.peak_memory[kind] = side.remote.call("peak_memory", kind)
        self._say(f"  memory   {kind:6}{side.name:16}{side.peak_memory[kind] / 1e9:9.3f} GB")

    def _count(self, reader: MixtureReader, step: int) -> Work:
        batches = rows_of(reader, step)
        tallies = [tally(batch, self._config.loss.end_patch) for batch in batches]
        tokens, patches, positions, shown, attended = (
            sum(getattr(each, key) for each in tallies)
            for key in ("tokens", "patches", "positions", "shown", "attended")
        )
        return Work(
            positions=sum(batch.modality.size for batch in batches),
            targets=tokens + patches,
            tokens=positions - shown,
            patches=shown,
            flops=flops_per_step(self._config.model, positions, tokens, patches, shown, attended),
            micro_batches=len(batches),
        )


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, float]:
    """Median, least and most of the quotients of the rounds that both took part in."""
    found = sorted(value / theirs[number] for number, value in ours.items() if number in theirs)
    return {"median": statistics.median(found), "least": found[0], "most": found[-1]}


def reached(side: Side, kind: str, peak: float | None) -> dict[str, Any]:
    """What a side reached on a kind of rows: medians over rounds.

    Args:
        peak: of the device, 10^12 operations a second; None where it is not known.
    """
    steps, work = side.steps[kind], side.work[kind]
    count = work[next(iter(work))].micro_batches

    def rate(key: str) -> float:
        return statistics.median(getattr(work[number], key) / step.seconds for number, step in steps.items())

    faults = [step.page_faults for step in steps.values() if step.page_faults is not None]
    split = {part: statistics.median(step.parts[part] for step in steps.values()) for part in PARTS}
    tflops = rate("flops") / 1e12
    return {
        "rows": side.readers[kind].mixture.micro_batch_rows,
        "micro_batches": count,
        "step_seconds": statistics.median(step.seconds for step in steps.values()),
        "positions_per_second": rate("positions"),
        "targets_per_second": rate("targets"),
        "tokens_per_second": rate("tokens"),
        "patches_per_second": rate("patches"),
        "tflops": tflops,
        "mfu": tflops / peak if peak else None,
        "micro_batch_seconds": (split["forward"] + split["backward"]) / count,
        "optimizer_seconds": split["optimizer"],
        "split": {f"{part}_seconds": value for part, value in split.items()},
        "page_faults": statistics.median(faults) if faults else None,
        "peak_memory_gb": side.peak_memory[kind] / 1e9,
    }
