"""A step that a guard stopped at, computed again on one process: which rows, and where in the model numbers break."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.data.rows import MicroBatch
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import Objective, losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import mesh
from megatron_pixel.training.canonical import load_weights, open_source
from megatron_pixel.training.dumps import CHECKPOINT, DumpedBatch, read_batches, read_report
from megatron_pixel.training.weights import newest_whole


@dataclass(frozen=True)
class RowFound:
    """What one row gives on one process."""

    source: str
    index: int
    rank: int
    host: str
    was_bad: bool
    """Whether the micro-batch it was in had no finite loss in the run."""
    loss: float
    grad_norm: float
    first_module: str | None
    """The first module whose output is not finite though what it reads is; None where all are."""
    first_parameter: str | None
    """The first parameter whose gradient is not finite."""

    @property
    def bad(self) -> bool:
        """Whether the row breaks the numbers here, too."""
        return not (math.isfinite(self.loss) and math.isfinite(self.grad_norm))


@dataclass(frozen=True)
class Reproduction:
    """A dump computed again."""

    report: dict[str, Any]
    broken_weights: list[str]
    """Parameters that were not finite before the step."""
    rows: list[RowFound]

    def verdict(self) -> str:
        """What it adds up to, in a sentence."""
        bad = [row for row in self.rows if row.bad]
        if self.broken_weights:
            return (
                f"the weights were broken before the step: {self.broken_weights[0]} and {len(self.broken_weights) - 1} "
                "more are not finite; resume from an earlier checkpoint"
            )
        if bad:
            names = ", ".join(f"{row.source} {row.index}" for row in bad[:8])
            return f"reproduced: {len(bad)} of {len(self.rows)} rows break the numbers on one process, too: {names}"
        hosts = sorted({f"rank {row.rank} on {row.host}" for row in self.rows if row.was_bad})
        suspects = f"; suspect the device of {', '.join(hosts)}" if hosts else ""
        return f"not reproduced: all {len(self.rows)} rows are fine here, so the rows and the weights are{suspects}"

    def table(self) -> str:
        """A line for each row that is bad here or was in the run, and the verdict."""
        lines = [self.report["message"], ""]
        shown = [row for row in self.rows if row.bad or row.was_bad]
        if shown:
            lines.append(f"{'row':32} {'rank':>4}  {'loss':>10} {'gradient':>10}  first not finite")
        for row in shown[:64]:
            where = row.first_module or row.first_parameter or "-"
            name = f"{row.source} {row.index}"
            lines.append(f"{name:32} {row.rank:>4}  {row.loss:10.4g} {row.grad_norm:10.4g}  {where}")
        return "\n".join([*lines, "", self.verdict()])


def reproduce(folder: Path, limit: int | None = None) -> Reproduction:
    """Compute the rows of a dump one by one, on this one process, with the weights of the step.

    Args:
        folder: ``RUN/dumps/step-...``.
        limit: rows at the most; those of micro-batches without a finite loss come first.

    Raises:
        UserError: the folder is no whole dump.
    """
    report = read_report(folder)
    _, checkpoint = newest_whole(folder / CHECKPOINT)
    config = load_config(checkpoint / "config.yaml", [])
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    with mesh(ParallelConfig()) as here:
        objectives = pretraining_objectives(config.model, config.loss)
        module = nn.Sequential(*build_stages(config.model, objectives, config.training.seed)).to(here.device)
        load_weights(module, open_source(checkpoint))
        module.to(dtype)
        broken = [name for name, value in module.named_parameters() if not torch.isfinite(value).all()]
        found: list[RowFound] = []
        for entry, row in _rows(folder):
            if limit is not None and len(found) >= limit:
                break
            found.append(_look(module, entry, row, objectives, here.device))
    return Reproduction(report, broken, found)


def _rows(folder: Path) -> Iterator[tuple[DumpedBatch, MicroBatch]]:
    for entry in read_batches(folder):
        for i in range(len(entry.rows.rows)):
            yield entry, _only(entry.rows, i)


def _only(batch: MicroBatch, i: int) -> MicroBatch:
    """Row ``i`` of a micro-batch as one of its own."""
    arrays: dict[str, np.ndarray | None] = {
        name: None if (value := getattr(batch, name)) is None else value[i : i + 1]
        for name in ("tokens", "patches", "modality", "position_ids", "segment_ids")
    }
    return MicroBatch(kind=batch.kind, rows=[batch.rows[i]], **arrays)  # type: ignore[arg-type]


def _look(
    module: nn.Module, entry: DumpedBatch, row: MicroBatch, objectives: Sequence[Objective], device: torch.device
) -> RowFound:
    module.zero_grad(set_to_none=True)
    batch = to_tensors(row, objectives, device)
    with _first_break(module) as broke:
        terms = losses(module(batch.inputs), batch.labels, objectives)
        weights = {objective.name: objective.weight for objective in objectives}
        parts = [term.sum * (weights[name] / max(1, term.count)) for name, term in terms.items()]
        loss = torch.stack(parts).sum()
        loss.backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    squares = sum((gradient.float().square().sum() for gradient in gradients.values()), torch.zeros((), device=device))
    parameter = next((name for name, gradient in gradients.items() if not torch.isfinite(gradient).all()), None)
    source, index = row.rows[0]
    return RowFound(
        source, index, entry.rank, entry.host, entry.bad, loss.item(), squares.sqrt().item(), broke[0], parameter
    )


@contextmanager
def _first_break(module: nn.Module) -> Iterator[list[str | None]]:
    """The innermost module that made something not finite of what is, first in the order of the forward pass."""
    found: list[str | None] = [None]

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if found[0] is None and _finite(inputs) and not _finite(output):
                found[0] = name

        return hook

    handles = [part.register_forward_hook(watch(name)) for name, part in module.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, list | tuple):
        return all(_finite(entry) for entry in value)
    return True
