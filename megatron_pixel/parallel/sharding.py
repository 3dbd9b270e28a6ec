"""How each parameter is shared out to tensor-parallel ranks: the one table of it, and the cutting and joining.

Checkpoints depend on it: a wrong line would not fail, it would shuffle rows of a matrix. Tests hold the table against
the attributes that megatron-core puts on its parameters and against the weights that each rank draws.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor  # what plans a run starts without torch

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each weight, under the names that torch and DeepSpeed give it."""


@dataclass(frozen=True)
class Piece:
    """A stretch of a parameter's flattened share that this rank's optimizer keeps."""

    start: int
    """First element within the share."""
    count: int
    buffer: int
    """Number of the flat buffer."""
    offset: int
    """First element within the buffer."""


@dataclass(frozen=True)
class Split:
    """The rule of one parameter."""

    dim: int | None = None
    """Dimension that is cut; None where every rank holds the whole parameter."""
    blocks: int = 1
    """Matrices that are stacked along ``dim`` and cut one by one; a rank holds its piece of each, one after another."""

    def local_shape(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Shape of a rank's share of a parameter of ``shape`` over ``size`` ranks."""
        if self.dim is None:
            return shape
        return tuple(length // size if dim == self.dim else length for dim, length in enumerate(shape))

    def full_shape(self, local: tuple[int, ...], size: int) -> tuple[int, ...]:
        """Undo of :meth:`local_shape`."""
        if self.dim is None:
            return local
        return tuple(length * size if dim == self.dim else length for dim, length in enumerate(local))

    def take(self, full: Tensor, size: int, rank: int) -> Tensor:
        """The share of one rank, cut from the full tensor: a view where the share is one block."""
        if self.dim is None or size == 1:
            return full
        cut = full.unflatten(self.dim, (self.blocks, size, -1)).select(self.dim + 1, rank)
        return cut.flatten(self.dim, self.dim + 1)

    def put(self, full: Tensor, share: Tensor, size: int, rank: int) -> None:
        """Undo of :meth:`take`: write a rank's share to its place in ``full``."""
        if self.dim is None or size == 1:
            full.copy_(share)
            return
        place = full.unflatten(self.dim, (self.blocks, size, -1)).select(self.dim + 1, rank)
        place.copy_(share.unflatten(self.dim, (self.blocks, -1)))


WHOLE, ROWS, COLUMNS, GATE_AND_UP = Split(), Split(0), Split(1), Split(0, blocks=2)

SPLITS = {
    r"0\.tokens\.weight": ROWS,  # [vocabulary, hidden]
    r"0\.patches\..*": WHOLE,
    r"\d+\.layer\.\w*layernorm\.weight": WHOLE,
    # [groups x (queries of a group + key + value) x head width, hidden]: a rank holds whole groups, in their order.
    r"\d+\.layer\.self_attention\.linear_qkv\.weight": ROWS,
    r"\d+\.layer\.self_attention\.linear_proj\.weight": COLUMNS,
    # [gate; up]: every rank holds a slice of the gate, then the same slice of up.
    r"\d+\.layer\.mlp\.linear_fc1\.weight": GATE_AND_UP,
    r"\d+\.layer\.mlp\.linear_fc2\.weight": COLUMNS,
    r"\d+\.norm\.weight": WHOLE,
    r"\d+\.heads\.token\.linear\.weight": ROWS,  # [vocabulary, hidden]
    r"\d+\.heads\.patch\.linear\.weight": WHOLE,
}
"""Rule by the parameter's name, which is matched as a whole. The vocabulary is not padded: it divides or is refused."""


def split_of(name: str) -> Split:
    """The rule of a parameter.

    Raises:
        KeyError: no line, or more than one, matches; a new layer needs a line of its own.
    """
    found = {split for pattern, split in SPLITS.items() if re.fullmatch(pattern, name)}
    if len(found) != 1:
        raise KeyError(f"{name}: parallel/sharding.py does not say how tensor-parallel ranks share this parameter")
    return found.pop()
