"""From a micro-batch of numpy arrays to the tensors that the stages and the losses take.

Everything data-dependent that the model would have to ask the device for (which positions predict, how many, whether a
mask is needed) is worked out here on the host, so that a forward pass never waits for the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    tokens: Tensor
    """int32 [b, s], for a head that computes its loss itself."""
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
    documents: int = 0
    """Where rows hold several documents that do not see each other: how many the micro-batch has; else 0."""

    def tensor(self) -> Tensor:
        """int64 [2 + k] on the host: the kind; -1 for padding before content, or the documents; the counts."""
        return torch.tensor([int(self.kind), -1 if self.inner_padding else self.documents, *self.counts])

    @classmethod
    def read(cls, tensor: Tensor) -> "Header":
        """Inverse of :meth:`tensor`; waits for the device only where a pipeline has moved the header there."""
        kind, seen, *counts = tensor.tolist()
        return cls(Kind(kind), seen < 0, tuple(counts), max(seen, 0))


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

    def to(self, device: torch.device | str) -> "Batch":
        """The same on ``device``, but for the header, which stays on the host.

        On CUDA the copies start from pinned memory and overlap with whatever the device is doing.
        """
        place = torch.device(device)
        *tensors, header = self.inputs
        inputs = ModelInputs._make([*(move(tensor, place) for tensor in tensors), header])
        labels = Labels(inputs.tokens, inputs.patches, inputs.targets, inputs.header)
        return replace(self, inputs=inputs, labels=labels)


def to_tensors(rows: MicroBatch, objectives: Sequence["Prediction"], device: torch.device | str = "cpu") -> Batch:
    """The tensors of a micro-batch on ``device``; see :meth:`Batch.to`."""
    return host_tensors(rows, objectives).to(device)


def host_tensors(rows: MicroBatch, objectives: Sequence["Prediction"], pinned: bool = False) -> Batch:
    """The tensors of a micro-batch on the host: views of its arrays, or copies in pinned memory.

    With ``pinned`` the rows of the batch are views of the copies, so that the memory of the given ones is free again.
    """
    if pinned:
        rows = _pinned(rows)
    modality = torch.from_numpy(rows.modality)
    segment_ids = torch.from_numpy(rows.segment_ids)
    targets = torch.zeros(len(objectives), modality.numel(), dtype=torch.int64)
    counts = []
    for line, objective in zip(targets, objectives, strict=True):
        positions = objective.positions(modality, segment_ids).flatten().nonzero().flatten()
        line[: len(positions)] = positions
        counts.append(len(positions))
    content = rows.modality != Modality.PADDING
    inner_padding = bool((content[:, 1:] & ~content[:, :-1]).any())
    # A position id of 0 begins a document; every row begins with one.
    documents = int(np.count_nonzero(rows.position_ids == 0))
    if documents == len(rows.modality):
        documents = 0
    elif inner_padding:
        raise ValueError("rows of several documents hold no padding before content")
    header = Header(rows.kind, inner_padding, tuple(counts), documents)
    patches = np.empty((0,), np.uint8) if rows.patches is None else rows.patches
    inputs = ModelInputs(
        tokens=torch.from_numpy(rows.tokens),
        patches=torch.from_numpy(patches),
        modality=modality,
        position_ids=torch.from_numpy(rows.position_ids),
        segment_ids=segment_ids,
        targets=targets.pin_memory() if pinned else targets,
        header=header.tensor(),
    )
    labels = Labels(inputs.tokens, inputs.patches, inputs.targets, inputs.header)
    held = MODALITIES[rows.kind]
    named = {o.name: n for o, n in zip(objectives, counts, strict=True) if o.modality in held}
    return Batch(rows.kind, rows, inputs, labels, named)


def _pinned(rows: MicroBatch) -> MicroBatch:
    """The same rows, their arrays in pinned memory."""
    names = ("tokens", "patches", "modality", "position_ids", "segment_ids")
    arrays = {name: array for name in names if (array := getattr(rows, name)) is not None}
    return replace(rows, **{name: torch.from_numpy(array).pin_memory().numpy() for name, array in arrays.items()})


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; the copy to a CUDA device starts from pinned memory, and nothing waits for it."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
