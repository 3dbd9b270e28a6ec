"""From a micro-batch of numpy arrays to the tensors that the stages and the losses take.

Everything data-dependent that the model would have to ask the device for (which positions predict, how many, whether a
mask is needed) is worked out here on the host, so that a forward pass never waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from megatron_pixel.data.rows import Kind, MicroBatch, Modality

if TYPE_CHECKING:
    from megatron_pixel.model.objectives import Prediction

MODALITIES = {
    Kind.TEXT: (Modality.TOKEN,),
    Kind.PIXEL: (Modality.PATCH,),
    Kind.PAIR: (Modality.PATCH, Modality.TOKEN),
}
"""What the rows of each kind hold besides padding."""


class ModelInputs(NamedTuple):
    """What the first stage takes; ``b`` rows of ``s`` positions, ``k`` objectives."""

    tokens: Tensor
    """int64 [b, s]."""
    patches: Tensor
    """uint8 [b, s, d]; empty in text batches."""
    modality: Tensor
    """uint8 [b, s]."""
    position_ids: Tensor
    """int32 [b, s]."""
    segment_ids: Tensor
    """int32 [b, s], -1 at padding."""
    targets: Tensor
    """int64 [k, b * s]: for each objective the flat positions ``row * s + i`` that predict, ascending, then zeros."""
    header: Tensor
    """int64 [2 + k], on the host where it can be; see :class:`Header`."""


class Travelling(NamedTuple):
    """What the stages hand on: shapes do not depend on the kind of the rows, so that a pipeline can send them."""

    hidden: Tensor
    """float [s, b, h]."""
    position_ids: Tensor
    segment_ids: Tensor
    targets: Tensor
    header: Tensor


class Labels(NamedTuple):
    """What the losses take besides the model's outputs; the same tensors as in :class:`ModelInputs`."""

    tokens: Tensor
    patches: Tensor
    targets: Tensor
    header: Tensor


@dataclass(frozen=True)
class Header:
    """The header tensor, read."""

    kind: Kind
    inner_padding: bool
    """Whether some padding stands before content (``pair.layout: released``): only then attention needs a mask."""
    counts: tuple[int, ...]
    """Targets of each objective."""

    def tensor(self) -> Tensor:
        """int64 [2 + k] on the host."""
        return torch.tensor([int(self.kind), int(self.inner_padding), *self.counts])

    @classmethod
    def read(cls, tensor: Tensor) -> "Header":
        """Inverse of :meth:`tensor`; waits for the device only where a pipeline has moved the header there."""
        kind, inner_padding, *counts = tensor.tolist()
        return cls(Kind(kind), bool(inner_padding), tuple(counts))


@dataclass(frozen=True)
class Batch:
    """A micro-batch as tensors."""

    kind: Kind
    rows: MicroBatch
    """What it was made of, on the host."""
    inputs: ModelInputs
    labels: Labels
    counts: dict[str, int]
    """Targets by objective, for those whose modality the rows hold."""


def to_tensors(rows: MicroBatch, objectives: Sequence["Prediction"], device: torch.device | str = "cpu") -> Batch:
    """The tensors of a micro-batch on ``device``.

    On CUDA the copies start from pinned memory and overlap with whatever the device is doing.
    """
    modality = torch.from_numpy(rows.modality)
    segment_ids = torch.from_numpy(rows.segment_ids)
    targets = torch.zeros(len(objectives), modality.numel(), dtype=torch.int64)
    counts = []
    for line, objective in zip(targets, objectives, strict=True):
        positions = objective.positions(modality, segment_ids).flatten().nonzero().flatten()
        line[: len(positions)] = positions
        counts.append(len(positions))
    content = rows.modality != Modality.PADDING
    header = Header(rows.kind, bool((content[:, 1:] & ~content[:, :-1]).any()), tuple(counts))
    patches = np.empty((0,), np.uint8) if rows.patches is None else rows.patches
    place = torch.device(device)
    inputs = ModelInputs(
        tokens=move(torch.from_numpy(rows.tokens), place),
        patches=move(torch.from_numpy(patches), place),
        modality=move(modality, place),
        position_ids=move(torch.from_numpy(rows.position_ids), place),
        segment_ids=move(segment_ids, place),
        targets=move(targets, place),
        header=header.tensor(),
    )
    labels = Labels(inputs.tokens, inputs.patches, inputs.targets, inputs.header)
    held = MODALITIES[rows.kind]
    named = {o.name: n for o, n in zip(objectives, counts, strict=True) if o.modality in held}
    return Batch(rows.kind, rows, inputs, labels, named)


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; the copy to a CUDA device starts from pinned memory, and nothing waits for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
