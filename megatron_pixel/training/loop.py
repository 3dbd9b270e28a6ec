"""The training loop: steps, and between them metrics, evaluation, checkpoints and signals."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_pixel.config.schema import CheckpointConfig, EvaluationConfig, OptimizerConfig, TrainingConfig
from megatron_pixel.data.rows import MicroBatch
from megatron_pixel.model.batch import Batch
from megatron_pixel.model.objectives import Objective, losses
from megatron_pixel.parallel.engine import set_learning_rate
from megatron_pixel.parallel.execution import Outputs, Training
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.feeding import Feeder, Prepared
from megatron_pixel.training.guarding import Guards
from megatron_pixel.training.guards import GuardError, StopSignals, Verdict
from megatron_pixel.training.health import probe
from megatron_pixel.training.losses import StepCounts, loss_factors, micro_batch_loss
from megatron_pixel.training.metrics import Record
from megatron_pixel.training.observation import Observer
from megatron_pixel.training.schedule import learning_rate
from megatron_pixel.training.time_limit import TimeLimit


@dataclass(frozen=True)
class Hooks:
    """What the loop does between steps; each is called on all ranks."""

    record: Callable[[Record, bool], None]
    """Takes the metrics of a step, and whether it is the last."""
    evaluate: Callable[[int], None]
    """Evaluates after a step."""
    save: Callable[[int], None]
    """Writes the checkpoint of a step."""
    note: Callable[[str], None]
    """Shows a line."""
    dump: Callable[[int, Sequence[MicroBatch], "StepEnd"], None]
    """Keeps a step that ends the run."""
    watch: Callable[[int], AbstractContextManager[None]] = lambda step: nullcontext()
    """Around each step: a profiler, for some."""


@dataclass(frozen=True)
class StepEnd:
    """What a step gave."""

    record: Record
    """The line of metrics.jsonl."""
    verdict: Verdict
    """What the guards say; the same on all ranks."""
    skipped: bool
    """Whether DeepSpeed left the weights as they were."""
    notes: list[str]
    """Lines about slow ranks."""
    bad: list[bool]
    """Which of this rank's micro-batches had a loss that is no number; empty where the rank computes none."""


class RewindError(Exception):
    """The run is to go back to a checkpoint before the spike; raised on all ranks after the same step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"rewind after step {step}")
        self.step = step


class Trainer:
    """Takes the optimizer steps of a run.

    Args:
        execution: the model and its optimizer, in the layout of the run.
        objectives: what the model learns.
        training, optimizer: the parts of the config that a step depends on.
        mesh: where this process stands.
        feeder: brings micro-batches to the device.
        observer: of the same execution; gathers what a step did.
        guards: watch over the steps.
    """

    def __init__(
        self,
        execution: Training,
        objectives: Sequence[Objective],
        training: TrainingConfig,
        optimizer: OptimizerConfig,
        mesh: Mesh,
        feeder: Feeder,
        observer: Observer,
        guards: Guards,
    ) -> None:
        self.engine = execution.engine
        self._execution = execution
        self._objectives = objectives
        self._training, self._optimizer = training, optimizer
        self.mesh, self.feeder, self.observer, self.guards = mesh, feeder, observer, guards

    def step(self, step: int, batches: Sequence[MicroBatch | Prepared]) -> StepEnd:
        """One optimizer step over this rank's micro-batches.

        Args:
            step: its number; the first is 1.
            batches: micro-batches of any kinds, in the same order of kinds on every rank; best prepared by ``feeder``.
        """
        mesh, alive = self.mesh, self.guards.watchdog
        alive.beat("targets of the step", step)
        totals = self.observer.begin(step)
        prepared = [self.feeder.prepare(batch) for batch in batches]
        feed = self.feeder.feed(prepared)
        counts = StepCounts([item.tally for item in prepared], self._objectives, mesh.data_group, mesh.device)
        factors = loss_factors(self._objectives, counts.divisors, mesh.data_size, len(batches))
        rate = learning_rate(step, self._training.steps, self._optimizer)
        set_learning_rate(self.engine, rate)
        skipped_before = self.engine.skipped_steps
        contributions: list[torch.Tensor] = []

        def loss(outputs: Outputs, batch: Batch) -> torch.Tensor:
            with self._execution.clock.named("loss"):
                terms = losses(outputs, batch.labels, self._objectives)
                totals.add(batch.kind, terms, batch.rows)
                value = micro_batch_loss(terms, factors)
            contributions.append(value.detach())
            alive.beat(f"backward pass of micro-batch {len(contributions)} of {len(batches)}")
            return value

        headers = [item.batch.inputs.header for item in prepared]
        self._execution.step(self._watched(feed, len(prepared)), loss, headers)
        alive.beat("figures of the step")
        seen = self.observer.collect(totals)
        means = seen.losses.by_kind
        skipped = self.engine.skipped_steps > skipped_before
        finite = math.isfinite(means["loss"] or 0.0)
        bad = [] if finite else [not math.isfinite(value.item()) for value in contributions]
        rows = "" if finite else self._bad_rows(prepared, bad)
        verdict = self.guards.judge(step, means["loss"], finite, skipped, rows)
        notes = self.guards.slow_ranks.add(step, seen.ranks)
        if self.guards.slow_ranks.probes(step):
            self.observer.probe = probe(mesh.device)
        return StepEnd(self.observer.record(step, seen, counts, rate), verdict, skipped, notes, bad)

    def _watched(self, feed: Iterator[Batch], count: int) -> Iterator[Batch]:
        for number in range(1, count + 1):
            self.guards.watchdog.beat(f"forward pass of micro-batch {number} of {count}")
            with self._execution.clock.part("data", "rows to tensors"):
                batch = next(feed)
            yield batch

    def _bad_rows(self, prepared: Sequence[Prepared], bad: Sequence[bool]) -> str:
        """Rows of the micro-batches without a finite loss, over all ranks; collective."""
        mine = [
            f"{source} {row}"
            for item, is_bad in zip(prepared, bad, strict=self.mesh.is_last_stage)
            if is_bad
            for source, row in item.batch.rows.rows
        ]
        names = sorted({name for part in self.mesh.gather(mine) for name in part})
        shown = ", ".join(names[:16])
        return f"{shown} and {len(names) - 16} more" if len(names) > 16 else shown or "none in particular"


@dataclass(frozen=True)
class Milestones:
    """At which steps something happens besides a step."""

    steps: int
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig

    def evaluates(self, step: int) -> bool:
        """Whether the held-out rows are read after this step: periodically and at the end."""
        periodic = self.evaluation.every > 0 and step % self.evaluation.every == 0
        return self.evaluation.rows > 0 and (periodic or step == self.steps)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due whatever happens next: periodically, at milestones and at the end."""
        periodic = self.checkpoint.every > 0 and step % self.checkpoint.every == 0
        return periodic or step in self.checkpoint.milestones or step == self.steps


def train(
    trainer: Trainer,
    steps: Iterable[tuple[int, Sequence[MicroBatch | Prepared]]],
    last: int,
    milestones: Milestones,
    signals: StopSignals,
    hooks: Hooks,
    limit: TimeLimit | None = None,
) -> str | None:
    """Take the steps up to ``last``.

    A signal that reaches any rank ends all of them after the step that is under way, with a checkpoint.

    Args:
        steps: numbers and micro-batches of the steps to take, in order.
        limit: of the job's time, which stops the run as a signal does.

    Returns:
        Why the run ended before ``milestones.steps``: a signal or ``training.stop_after``; None where it is complete.

    Raises:
        GuardError: a guard ends the run; the step is dumped.
        RewindError: a guard wants another way to be taken from a checkpoint on.
    """
    for step, batches in trainer.observer.waiting(steps):
        with hooks.watch(step):
            end = trainer.step(step, batches)
        stop = _agreed_stop(signals, limit, end, trainer)
        if stop is None and step == last < milestones.steps:
            stop = "training.stop_after"
        hooks.record(end.record, stop is not None or step == last)
        for line in [end.verdict.warning, *end.notes, None if limit is None else limit.complaint()]:
            if line is not None:
                hooks.note(line)
        if end.verdict.error is not None:
            hooks.dump(step, [trainer.feeder.prepare(batch).batch.rows for batch in batches], end)
            raise end.verdict.error
        if end.verdict.rewind and stop is None:
            raise RewindError(step)
        if milestones.evaluates(step) and stop in (None, "training.stop_after"):
            hooks.evaluate(step)
        if milestones.saves(step) or stop is not None:
            hooks.save(step)
        if stop is not None and step < milestones.steps:
            return stop
        trainer.guards.watchdog.beat(f"rows of step {step + 1}")
    return None


def _agreed_stop(signals: StopSignals, limit: TimeLimit | None, end: StepEnd, trainer: Trainer) -> str | None:
    """The signal that any rank has received, or that the time is up; the same answer on all ranks.

    Raises:
        GuardError: some ranks skipped the step and others took it: their weights are no longer those of one model.
    """
    names, known = StopSignals.NAMES, signals.received
    if limit is not None:
        limit.stepped()
        known = known or (StopSignals.TIME_LIMIT if limit.reached() else None)
    flags = torch.tensor([names.index(known), end.skipped, not end.skipped], device=trainer.mesh.device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    received, skipped, taken = flags.tolist()
    if skipped and taken:
        raise GuardError(
            f"step {end.record['step']}: some ranks skipped it and others took it, so their weights differ from here "
            "on; resume from the last checkpoint, and suspect a device that computes wrongly"
        )
    return names[received]
