"""Gradient norms and histograms by stage of the model, in every layout, from what the optimizer is about to apply.

ZeRO leaves each rank a stretch of the summed gradient, in one flat fp32 buffer or a few, beside the fp32 weights.
:class:`Partitions` knows which parameters lie where, so one hook in front of the optimizer sees all of it, whatever the
stage of ZeRO, the precision, the tensor-parallel share or the place in a pipeline.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.parallel.partitions import Partitions

LAYER_GROUPS = 6
"""Groups of decoder layers at the most: so many curves are read at a glance."""


def stage_names(layers: int, heads: Sequence[str]) -> list[str]:
    """Embedders, groups of decoder layers, norm, heads: ``embedding_tokens``, ``layers_01-04``, ``head_patch``."""
    groups = sorted({_group(layer, layers) for layer in range(1, layers + 1)})
    return ["embedding_tokens", "embedding_patches", *groups, "norm", *(f"head_{head}" for head in heads)]


def stage_of(parameter: str, layers: int) -> str:
    """The stage of a parameter by its name, such as ``3.layer.mlp.linear_fc1.weight``."""
    number, kind, *rest = parameter.split(".")
    if number == "0":
        return f"embedding_{kind}"
    if int(number) <= layers:
        return _group(int(number), layers)
    return f"head_{rest[0]}" if kind == "heads" else "norm"


def _group(layer: int, layers: int) -> str:
    size, width = math.ceil(layers / LAYER_GROUPS), len(str(layers))
    first = (layer - 1) // size * size + 1
    last = min(first + size - 1, layers)
    return f"layers_{first:0{width}d}" + (f"-{last:0{width}d}" if last > first else "")


class StageGradients:
    """Watches the optimizer of an engine.

    Nothing waits: sums of squares stay on the device until :meth:`share` hands them to the collective of the step.

    Args:
        engine: the DeepSpeed engine, at ZeRO 1 to 3.
        names: from :func:`stage_names`.
        layers: decoder layers of the model.
        mesh: where this process stands.
    """

    def __init__(self, engine: Any, names: Sequence[str], layers: int, mesh: Mesh) -> None:
        self.names = list(names)
        partitions = Partitions(engine)
        self._device = mesh.device
        self._buffers = {id(buffer): number for number, buffer in enumerate(partitions.buffers)}
        self._segments = [self._segments_of(partitions, number, layers, mesh) for number in range(len(self._buffers))]
        kept = partitions.buffers[0].device if partitions.buffers else mesh.device
        self._select = [self._selection(segments).to(kept) for segments in self._segments]
        self._squares = torch.zeros(len(self.names), dtype=torch.float64, device=kept)
        self._histograms: Histograms | None = None
        self._handle = engine.optimizer.optimizer.register_step_pre_hook(self._before_step)

    def share(self) -> Tensor:
        """This rank's part of the sums of squares since the last call, float64 [stages]; to be summed over ranks."""
        squares, self._squares = self._squares, torch.zeros_like(self._squares)
        return squares.to(self._device, non_blocking=True)

    def norms(self, squares: Tensor, norm: float | None) -> dict[str, float]:
        """Norms by stage before clipping.

        Args:
            squares: the sum of all ranks' :meth:`share`, on the host.
            norm: of the whole gradient before clipping; the optimizer sees the clipped one, which is all of it times
                one factor.

        Returns:
            Nothing where the optimizer left the step out.
        """
        total = math.sqrt(float(squares.sum()))
        if not total or not math.isfinite(total):
            return {}
        factor = 1.0 if norm is None else norm / total
        return {name: math.sqrt(square) * factor for name, square in zip(self.names, squares.tolist(), strict=True)}

    def want_histograms(self) -> "Histograms":
        """Take histograms of gradients and weights at the optimizer step that comes next; on all ranks."""
        self._histograms = Histograms(self.names, self._squares.device)
        return self._histograms

    def forget_histograms(self) -> None:
        """After the step that they were wanted for."""
        self._histograms = None

    def close(self) -> None:
        """Leave the optimizer alone."""
        self._handle.remove()

    @torch.no_grad()
    def _before_step(self, optimizer: Any, *_: Any) -> None:
        for group in optimizer.param_groups:
            for buffer in group["params"]:
                number = self._buffers.get(id(buffer))
                if number is None or buffer.grad is None or not self._segments[number]:
                    continue
                segments = self._segments[number]
                norms = torch._foreach_norm([buffer.grad[start:end] for _, start, end in segments])
                self._squares += self._select[number] @ torch.stack(norms).double().square()
                if self._histograms is not None:
                    for stage, start, end in segments:
                        self._histograms.add("gradients", stage, buffer.grad[start:end])
                        self._histograms.add("weights", stage, buffer.detach()[start:end])

    def _segments_of(self, partitions: Partitions, buffer: int, layers: int, mesh: Mesh) -> list[tuple[int, int, int]]:
        """(stage, start, end) in a flat buffer, neighbors of one stage joined.

        A parameter that all tensor-parallel ranks hold whole is counted by the first of them.
        """
        found: list[tuple[int, int, int]] = []
        pieces = [
            (held.piece.offset, held.piece.offset + held.piece.count, self.names.index(stage_of(name, layers)))
            for name, held in partitions.held.items()
            if held.piece is not None and held.piece.buffer == buffer
            if held.split.dim is not None or mesh.tensor_rank == 0
        ]
        for start, end, stage in sorted(pieces):
            if found and found[-1][0] == stage and found[-1][2] == start:
                found[-1] = (stage, found[-1][1], end)
            else:
                found.append((stage, start, end))
        return found

    def _selection(self, segments: Sequence[tuple[int, int, int]]) -> Tensor:
        """float64 [stages, segments]: which segment belongs to which stage."""
        select = torch.zeros(len(self.names), len(segments), dtype=torch.float64)
        for place, (stage, _, _) in enumerate(segments):
            select[stage, place] = 1.0
        return select


class Histograms:
    """Counts of values by stage, in bins that are the same everywhere, so that ranks can simply add theirs.

    Bins lie at powers of ten in eighths, from 1e-10 to 1e3, on both sides of zero.
    """

    KINDS = ("gradients", "weights")
    _CHUNK = 1 << 22

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = list(names)
        powers = 10.0 ** (torch.arange(-80, 25, dtype=torch.float64) / 8)
        self.edges = torch.cat([-powers.flip(0), torch.zeros(1, dtype=torch.float64), powers])
        """float64 [edges], ascending: bin i holds values up to edge i, the last bin those above all."""
        self._edges = self.edges.float().to(device)
        shape = (len(self.KINDS), len(self.names), len(self.edges) + 1)
        self.counts = torch.zeros(shape, dtype=torch.float64, device=device)
        self.moments = torch.zeros((*shape[:2], 2), dtype=torch.float64, device=device)
        """Sum and sum of squares."""

    def add(self, kind: str, stage: int, values: Tensor) -> None:
        """Count fp32 values."""
        place = self.KINDS.index(kind)
        for part in values.split(self._CHUNK):
            bins = torch.bucketize(part, self._edges)
            self.counts[place, stage] += torch.bincount(bins, minlength=self.counts.shape[2])
            exact = part.double()
            self.moments[place, stage] += torch.stack([exact.sum(), exact.square().sum()])
