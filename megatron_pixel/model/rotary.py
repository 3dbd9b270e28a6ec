"""Rotary positions, half-split as in Llama: queries and keys turned while they are taken out of their projection."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHED = 1 << 18
"""Values that each operation on a CPU works on at a time, at the most."""


class Rotation(NamedTuple):
    """By how much each position turns the values ``i`` and ``i + width / 2`` of a head."""

    cos: Tensor
    """[s, b, 1, 1, width]: the cosines twice over."""
    sin: Tensor
    """[s, b, 1, 1, width]: the sines negated, then the sines."""


def rotary_angles(position_ids: Tensor, width: int, theta: float) -> Tensor:
    """The angles ``position * theta ** (-2 i / width)`` for ``i`` below ``width / 2``.

    Computed anew each time rather than kept in a buffer, which a cast of the model to bfloat16 would round.

    Args:
        position_ids: integers [b, s].
        width: width of an attention head.
        theta: base of the frequencies.

    Returns:
        float32 [s, b, width / 2].
    """
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=position_ids.device) / width
    return position_ids.t().float()[..., None] * (1.0 / theta**exponents)


def rotation(angles: Tensor, dtype: torch.dtype) -> Rotation:
    """The rotation by ``angles`` for queries and keys of ``dtype``; sines and cosines are rounded to it once."""
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    both = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return Rotation(*(part[:, :, None, None] for part in both))


def turned_heads(fused: Tensor, groups: int, by: Rotation) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values out of what megatron-core's fused projection gives, queries and keys turned.

    The backward pass turns back, and writes the gradient of the whole at once; it needs the rotation alone.

    Args:
        fused: [s, b, groups * (r + 2) * width]: the r queries of a group, its key, its value, group by group.
        groups: groups of query heads that share a key and a value.
        by: the rotation, in the dtype of ``fused``.

    Returns:
        [s, b, groups * r, width], and twice [s, b, groups, width].
    """
    if torch.compiler.is_compiling():  # which writes a backward pass of its own
        query, key, value = _apart(fused, groups, by.cos.shape[-1])
        turned = (heads * by.cos + _swapped(heads) * by.sin for heads in (query, key))
        query, key = turned
        return query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3)
    return _TurnedHeads.apply(fused, groups, *by)


class _TurnedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Tensor, groups: int, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        query, key, value = (
            torch.empty_like(part, memory_format=torch.contiguous_format)
            for part in _apart(fused, groups, cos.shape[-1])
        )
        for part in _stretches(fused):
            taken = _apart(fused[part], groups, cos.shape[-1])
            _turn(taken[0], cos[part], sin[part], query[part])
            _turn(taken[1], cos[part], sin[part], key[part])
            value[part] = taken[2]
        return query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        back = -sin
        s, b, groups, width = key.shape
        r = query.shape[2] // groups
        gradient = query.new_empty(s, b, groups * (r + 2) * width)
        for part in _stretches(gradient):
            taken = _apart(gradient[part], groups, width)
            _turn(query[part].unflatten(2, (groups, r)), cos[part], back[part], taken[0])
            _turn(key[part].unsqueeze(3), cos[part], back[part], taken[1])
            taken[2].copy_(value[part].unsqueeze(3))
        return gradient, None, None, None


def _apart(fused: Tensor, groups: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of its queries [s, b, groups, r, width], keys and values [s, b, groups, 1, width]."""
    heads = fused.unflatten(-1, (groups, -1, width))
    query, key, value = heads.split((heads.shape[3] - 2, 1, 1), dim=3)
    return query, key, value


def _stretches(fused: Tensor) -> Iterator[slice]:
    """Slices of the positions: on a CPU of so many that they stay in its cache between operations, else all."""
    s = len(fused)
    step = max(1, CACHED // max(1, fused[0].numel())) if fused.device.type == "cpu" and s else max(1, s)
    for begin in range(0, s, step):
        yield slice(begin, begin + step)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor, out: Tensor) -> None:
    torch.mul(heads, cos, out=out)
    out.addcmul_(_swapped(heads), sin)


def _swapped(heads: Tensor) -> Tensor:
    """The halves of the last dimension, the second one first."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((second, first), dim=-1)
