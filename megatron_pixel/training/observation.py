"""What a step is seen to do: losses, gradient norms, times and memory, gathered in one collective and one wait."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.model.objectives import Objective
from megatron_pixel.parallel.clock import PARTS
from megatron_pixel.parallel.execution import Training
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.gradients import Histograms, StageGradients, stage_names
from megatron_pixel.training.losses import LossTotals, StepCounts, StepLosses, sum_over_ranks
from megatron_pixel.training.metrics import Record
from megatron_pixel.training.throughput import flops_per_step, memory_gb, peak_tflops

RANK_COLUMNS = ("seconds", *PARTS, "memory_gb", "probe")
"""What every rank tells of itself: its times in the step before, the most memory that it has used, and one more figure
that whoever watches the ranks may set (:attr:`Observer.probe`)."""

Step = TypeVar("Step")


@dataclass(frozen=True)
class Seen:
    """What all ranks know after the collective of a step."""

    losses: StepLosses
    squares: Tensor
    """Sums of squares of the gradient by stage, on the host."""
    ranks: Tensor
    """float64 [world_size, len(RANK_COLUMNS)], on the host; zeros in the first step."""
    histograms: Histograms | None


class Observer:
    """Watches the steps of a run; on all ranks.

    Args:
        execution: the model and its optimizer.
        objectives: what it learns.
        model: its shape.
        precision: of the run; both tell how much work a step is, and how fast it could be.
        mesh: where this process stands.
        sources: names of the datasets of each kind.
        histograms_every: steps between histograms, 0 for none.

    Attributes:
        probe: a figure of this rank for the table of ranks.
    """

    def __init__(
        self,
        execution: Training,
        objectives: Sequence[Objective],
        model: ModelConfig,
        precision: str,
        mesh: Mesh,
        sources: Mapping[Kind, Sequence[str]] | None = None,
        histograms_every: int = 0,
    ) -> None:
        self._engine, self._clock = execution.engine, execution.clock
        self._objectives, self._model, self._mesh, self._sources = objectives, model, mesh, sources
        self._peak = peak_tflops(mesh.device, precision)
        names = stage_names(model.layers, [objective.name for objective in objectives])
        self._gradients = StageGradients(self._engine, names, model.layers, mesh)
        self._histograms_every = histograms_every
        self._histograms: Histograms | None = None
        self.probe = 0.0
        self._waited = 0.0
        self._start = time.perf_counter()
        self._own = [0.0] * (1 + len(PARTS))

    def waiting(self, steps: Iterable[Step]) -> Iterator[Step]:
        """The same steps; the time until each is there belongs to it."""
        remaining = iter(steps)
        while True:
            start = time.perf_counter()
            with self._clock.part("data", "wait for rows", on_host=True):
                try:
                    item = next(remaining)
                except StopIteration:
                    return
            self._waited = time.perf_counter() - start
            yield item

    def begin(self, step: int) -> LossTotals:
        """At the begin of a step; returns what its losses are added to."""
        self._start = time.perf_counter() - self._waited
        self._waited = 0.0
        due = self._histograms_every and step % self._histograms_every == 0
        self._histograms = self._gradients.want_histograms() if due else None
        return LossTotals(self._mesh.device, self._sources)

    def collect(self, totals: LossTotals) -> Seen:
        """After the optimizer's step: the one collective for all figures, in which the program waits for the device."""
        mesh = self._mesh
        ranks = torch.zeros(mesh.world_size, len(RANK_COLUMNS), dtype=torch.float64)
        ranks[mesh.rank] = torch.tensor([*self._own, memory_gb(mesh.device), self.probe], dtype=torch.float64)
        parts = [totals.share(mesh), self._gradients.share(), ranks.to(mesh.device, non_blocking=True)]
        if self._histograms is not None:
            parts += [part.to(mesh.device) for part in (self._histograms.counts, self._histograms.moments)]
        losses, squares, ranks, *histograms = sum_over_ranks(parts)
        if self._histograms is not None:
            self._histograms.counts, self._histograms.moments = histograms
            self._gradients.forget_histograms()
        return Seen(totals.read(losses, self._objectives), squares, ranks, self._histograms)

    def record(self, step: int, seen: Seen, counts: StepCounts, rate: float) -> Record:
        """The line of metrics.jsonl, but for what is known between steps only.

        Args:
            step: its number.
            seen: from :meth:`collect`.
            counts: what the step held.
            rate: its learning rate.
        """
        seconds = time.perf_counter() - self._start
        parts = self._clock.read()
        self._own = [seconds, *parts.values()]
        norm = self._engine.get_global_grad_norm()
        norm = None if norm is None else float(norm)
        tokens, patches = (counts.targets.get(name, 0) for name in ("token", "patch"))
        flops = flops_per_step(self._model, counts.positions, tokens, patches, counts.patches, counts.attended)
        tflops = flops / seconds / self._mesh.world_size / 1e12
        record: Record = {
            "step": step,
            **seen.losses.by_kind,
            "lr": rate,
            "grad_norm": norm,
            "tokens": tokens,
            "patches": patches,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "patches_per_second": patches / seconds,
            "tflops_per_device": tflops,
            "mfu": tflops / self._peak if self._peak else None,
            "memory_gb": float(seen.ranks[:, RANK_COLUMNS.index("memory_gb")].max()),
            "skipped_steps": int(self._engine.skipped_steps),
            "rows_digest": counts.rows_digest,
            "time": time.time(),
            **{f"{part}_seconds": value for part, value in parts.items()},
            "loss_by_source": seen.losses.by_source,
            "grad_norm_by_stage": self._gradients.norms(seen.squares, norm),
        }
        if seen.histograms is not None:
            record["histograms"] = seen.histograms
        return record

    def close(self) -> None:
        """Leave the optimizer alone."""
        self._gradients.close()
