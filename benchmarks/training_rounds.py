"""The measurement of ``training.py``: all sides take their steps in turns, and ratios are medians over rounds."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from benchmarks.training_ceiling import HeadAlone, synchronize
from benchmarks.training_memory import MemoryOfOne
from benchmarks.training_run import MeasuredRun, rows_of
from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.mixture import MixtureReader
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.losses import tally
from megatron_pixel.training.throughput import flops_per_step

PARTS = ("data", "forward", "backward", "optimizer")
SETTLING = 3
"""Steps of each side until its memory has found its places."""
MIX_EVERY = 3
"""A step of the mix is five micro-batches long, so it is taken in every third round only."""


class Runner(Protocol):
    """What takes steps: :class:`MeasuredRun`, or a peer."""

    kinds: tuple[str, ...]

    @property
    def readers(self) -> Mapping[str, MixtureReader]:
        """The rows by name."""

    def prepare(self, name: str) -> None:
        """Before the clock starts."""

    def take(self, name: str) -> Mapping[str, Any]:
        """A step; returns parts of its time under names such as ``forward_seconds``."""


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
        runner: takes its steps.
        memory: that it alone takes.
        seconds: of the steps, by measurement and round.
        parts: of these times, likewise.
        work: of these steps, likewise.
        failed: why it takes no steps any more.
    """

    name: str
    runner: Runner
    memory: MemoryOfOne
    seconds: dict[str, dict[int, float]] = field(default_factory=dict)
    parts: dict[str, dict[int, Mapping[str, float]]] = field(default_factory=dict)
    work: dict[str, dict[int, Work]] = field(default_factory=dict)
    failed: str | None = None

    def rates(self, name: str) -> dict[int, float]:
        """Positions a second, by round."""
        return {number: self.work[name][number].positions / taken for number, taken in self.seconds[name].items()}


class Rounds:
    """Takes rounds of steps.

    Args:
        sides: ours first.
        run: ours.
        model: its shape.
        end_patch: whether the black end patch is a target.
        mesh: where this process stands.
        say: shows a line of progress.
        clock: seconds; the processor's are alike on a machine that does other work, if all run on one thread.

    Attributes:
        rounds: taken so far.
        head_seconds: of the vocabulary head on the rows of a text step, by round.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        run: MeasuredRun,
        model: ModelConfig,
        end_patch: bool,
        mesh: Mesh,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.sides = list(sides)
        self._run, self._model, self._end_patch, self._mesh, self._say = run, model, end_patch, mesh, say
        self._clock = clock
        self._steps: dict[str, int] = {}
        self._head = HeadAlone(model, run.objectives, next(run.module.parameters()).dtype, mesh)
        self.rounds = 0
        self.head_seconds: dict[int, float] = {}

    def warm_up(self, names: Sequence[str]) -> None:
        """Steps that count nothing: they make what lasts, then tell the memory that a step takes, then settle.

        On a CPU, to know the memory of a step all that is free must go back to the system, which the next steps have to
        get anew: nothing is timed before they have.
        """
        for name in names:
            self._turn(name, 0, lambda side, _: side.memory.building())
        for name in names:
            self._turn(name, 0, lambda side, kind: side.memory.step(kind))
        for _ in range(SETTLING if self._mesh.device.type == "cpu" else 0):
            self._turn(names[0], 0)
        if "text" in names:
            self._time_head()
            self.head_seconds.clear()

    def take(self, names: Sequence[str]) -> None:
        """One round: every side takes a step of every kind, in an order that turns around from round to round."""
        self.rounds += 1
        for name in names:
            if name != "mix" or self.rounds % MIX_EVERY == 1:
                self._turn(name, self.rounds)
                if name == "text":
                    self._time_head()

    def _turn(
        self, name: str, number: int, around: Callable[[Side, str], AbstractContextManager[None]] | None = None
    ) -> None:
        self._steps[name] = self._steps.get(name, 0) + 1
        for side in self.sides if number % 2 else self.sides[::-1]:
            if side.failed is not None or name not in side.runner.kinds:
                continue
            try:
                with around(side, name) if around is not None else nullcontext():
                    self._step(side, name, number)
            except Exception as error:
                if side.runner is self._run:
                    raise
                side.failed = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                self._say(f"{side.name}: left out from here on: {side.failed}")

    def _step(self, side: Side, name: str, number: int) -> None:
        device = self._mesh.device
        side.runner.prepare(name)
        synchronize(device)
        start = self._clock()
        found = side.runner.take(name)
        synchronize(device)
        seconds = self._clock() - start
        if number:
            side.seconds.setdefault(name, {})[number] = seconds
            parts = {part: float(found.get(f"{part}_seconds") or 0.0) for part in PARTS}
            side.parts.setdefault(name, {})[number] = parts
            side.work.setdefault(name, {})[number] = self._count(side.runner.readers[name], self._steps[name])
        self._say(f"  {f'round {number}' if number else 'warm-up'}  {name:6}{side.name:16}{seconds:9.3f} s")

    def _count(self, reader: MixtureReader, step: int) -> Work:
        batches = rows_of(reader, step)
        tallies = [tally(batch, self._end_patch) for batch in batches]
        tokens, patches, positions, shown, attended = (
            sum(getattr(each, key) for each in tallies)
            for key in ("tokens", "patches", "positions", "shown", "attended")
        )
        return Work(
            positions=sum(batch.modality.size for batch in batches),
            targets=tokens + patches,
            tokens=positions - shown,
            patches=shown,
            flops=flops_per_step(self._model, positions, tokens, patches, shown, attended),
            micro_batches=len(batches),
        )

    def _time_head(self) -> None:
        batches = rows_of(self._run.readers["text"], self._steps["text"])
        self.head_seconds[self.rounds] = sum(self._head.seconds(rows, self._clock) for rows in batches)


def ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[str, float]:
    """Median, least and most of the quotients of the rounds that both took part in."""
    found = sorted(value / theirs[number] for number, value in ours.items() if number in theirs)
    return {"median": statistics.median(found), "least": found[0], "most": found[-1]}


def reached(side: Side, name: str, rows: int, peak: float | None) -> dict[str, Any]:
    """What a side reached in a measurement: medians over rounds.

    Args:
        rows: of a micro-batch.
        peak: of the device, 10^12 operations a second; None where it is not known.
    """
    seconds, work = side.seconds[name], side.work[name]
    count = work[next(iter(work))].micro_batches

    def rate(key: str) -> float:
        return statistics.median(getattr(work[number], key) / taken for number, taken in seconds.items())

    split = {part: statistics.median(parts[part] for parts in side.parts[name].values()) for part in PARTS}
    tflops = rate("flops") / 1e12
    return {
        "rows": rows,
        "micro_batches": count,
        "step_seconds": statistics.median(seconds.values()),
        "positions_per_second": rate("positions"),
        "targets_per_second": rate("targets"),
        "tokens_per_second": rate("tokens"),
        "patches_per_second": rate("patches"),
        "tflops": tflops,
        "mfu": tflops / peak if peak else None,
        "micro_batch_seconds": (split["forward"] + split["backward"]) / count,
        "optimizer_seconds": split["optimizer"],
        "split": {f"{part}_seconds": value for part, value in split.items()},
    }
