"""Causal attention in bfloat16 on CPUs, as batched matrix products over blocks of query positions.

PyTorch's flash kernel for CPUs multiplies in half precision hardly faster than in fp32, its batched products at twice
that rate. So a block of queries meets the keys up to its own end at once, in products over many groups of heads. The
probabilities are kept for the backward pass, which computes no score a second time.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64
"""Query positions at a time: fewer cost calls, more cost products above the diagonal."""
CACHED = 1 << 20
"""Scores that exist at a time, in fp32, at the most: 4 MB."""
LEAST, MOST = 256, 2048
"""Positions of a row for which it is taken: it gains nothing on shorter ones, and keeps too much on longer ones, as the
probabilities grow with the square."""


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether to use :func:`causal_attention` for these, of shapes as there; else PyTorch's kernel is better."""
    return (
        query.device.type == "cpu"
        and query.dtype == key.dtype == value.dtype == torch.bfloat16
        and LEAST <= len(query) <= MOST
        and torch.is_grad_enabled()
        and (query.requires_grad or key.requires_grad or value.requires_grad)
        and not torch.compiler.is_compiling()
    )


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Grouped-query attention of each position over itself and those before it.

    Scores, softmax and the gradients of both are fp32; what enters the other products is rounded, their sums are fp32,
    as in PyTorch's kernel. Unlike there, the probabilities of the backward pass are rounded, too, and gradients of keys
    and values are summed over blocks in fp32.

    Args:
        query: bfloat16 [s, b, heads, d].
        key, value: bfloat16 [s, b, groups, d].

    Returns:
        bfloat16 [s, b, heads, d].
    """
    return _CausalAttention.apply(query, key, value)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        s, b, heads, d = query.shape
        r = heads // key.shape[2]
        queries = _by_group(query, r).float().mul_(1 / math.sqrt(d))
        keys, values = _by_group(key, 1).float().transpose(1, 2), _by_group(value, 1)
        hidden = torch.full((BLOCK, BLOCK), float("-inf")).triu_(1).repeat_interleave(r, 0)
        blocks = list(_blocks(len(keys), s, r))
        kept = query.new_empty(sum(block.size for block in blocks))
        scratch = torch.empty(max(block.size for block in blocks))
        context = torch.empty_like(queries, dtype=query.dtype)
        for block in blocks:
            scores, weights = block.of(scratch), block.of(kept, block.place)
            torch.bmm(queries[block.groups, block.rows], keys[block.groups, :, : block.stop], out=scores)
            scores[:, :, block.start :].add_(hidden[: scores.shape[1], : block.stop - block.start])
            torch.ops.aten._softmax.out(scores, -1, False, out=scores)
            weights.copy_(scores)
            context[block.groups, block.rows] = torch.bmm(weights, values[block.groups, : block.stop])
        ctx.save_for_backward(query, key, value, kept)
        return _by_position(context, b, r)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, kept = ctx.saved_tensors
        s, b, heads, d = query.shape
        r = heads // key.shape[2]
        queries, keys = _by_group(query, r), _by_group(key, 1)
        gradients, values = _by_group(gradient, r), _by_group(value, 1).float().transpose(1, 2)
        exact = gradients.float().mul_(1 / math.sqrt(d))
        blocks = list(_blocks(len(keys), s, r))
        scratch = torch.empty(2, max(block.size for block in blocks))
        rounded = torch.empty_like(scratch[0], dtype=query.dtype)
        query_gradient = torch.empty_like(queries)
        key_gradient, value_gradient = torch.zeros(2, *keys.shape)
        for block in blocks:
            groups, rows, stop = block.groups, block.rows, block.stop
            weights = block.of(kept, block.place)
            wide = block.of(scratch[0]).copy_(weights)
            change = torch.bmm(exact[groups, rows], values[groups, :, :stop], out=block.of(scratch[1]))
            torch.ops.aten._softmax_backward_data.out(change, wide, -1, change.dtype, grad_input=change)
            scores = block.of(rounded).copy_(change)
            value_gradient[groups, :stop].add_(torch.bmm(weights.transpose(1, 2), gradients[groups, rows]))
            key_gradient[groups, :stop].add_(torch.bmm(scores.transpose(1, 2), queries[groups, rows]))
            query_gradient[groups, rows] = torch.bmm(scores, keys[groups, :stop])
        return (
            _by_position(query_gradient, b, r),
            _by_position(key_gradient.to(key.dtype), b, 1),
            _by_position(value_gradient.to(value.dtype), b, 1),
        )


class _Block(NamedTuple):
    """Scores of some groups' query positions from ``start`` to ``stop``, against the keys up to there."""

    groups: slice
    start: int
    stop: int
    heads: int
    """Of a group."""
    place: int
    """Of its probabilities among those of all blocks."""

    @property
    def rows(self) -> slice:
        """Among the queries of a group, position by position, head by head."""
        return slice(self.start * self.heads, self.stop * self.heads)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, queries, keys."""
        return self.groups.stop - self.groups.start, (self.stop - self.start) * self.heads, self.stop

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def of(self, memory: Tensor, place: int = 0) -> Tensor:
        """A tensor of this shape in flat memory, from a place on."""
        return memory[place : place + self.size].view(self.shape)


def _blocks(count: int, s: int, r: int) -> Iterator[_Block]:
    """Of ``count`` groups with ``r`` heads each, in rows of ``s`` positions."""
    at_once = max(1, CACHED // (BLOCK * r * s))
    place = 0
    for first in range(0, count, at_once):
        for start in range(0, s, BLOCK):
            block = _Block(slice(first, min(count, first + at_once)), start, min(s, start + BLOCK), r, place)
            place += block.size
            yield block


def _by_group(heads: Tensor, r: int) -> Tensor:
    """[s, b, groups * r, d] as [b * groups, s * r, d], copied."""
    return heads.unflatten(2, (-1, r)).permute(1, 2, 0, 3, 4).flatten(2, 3).flatten(0, 1).contiguous()


def _by_position(rows: Tensor, b: int, r: int) -> Tensor:
    """Inverse of :func:`_by_group`."""
    return rows.unflatten(1, (-1, r)).unflatten(0, (b, -1)).permute(2, 0, 1, 3, 4).flatten(2, 3).contiguous()
