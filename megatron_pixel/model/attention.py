"""Who sees whom, and the core attention: PyTorch's scaled dot-product attention, on CPUs in bf16 one of our own."""

import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_pixel.model import blocked_attention


class MaskKind(Enum):
    """Which positions a position may attend to, besides itself; padding is never attended to."""

    CAUSAL = "causal"
    """Those before it."""
    BIDIRECTIONAL = "bidirectional"
    """All."""
    PREFIX = "prefix"
    """Those before it; and all of the row's first segment, if it belongs to that segment itself."""


def attention_mask(kind: MaskKind, segment_ids: Tensor, inner_padding: bool) -> Tensor | None:
    """The mask that scaled dot-product attention needs on top of ``is_causal``.

    Args:
        kind: who sees whom.
        segment_ids: int32 [b, s], -1 at padding.
        inner_padding: whether padding stands before content in some row.

    Returns:
        bool [b, 1, s, s], True where the query (second to last dimension) must not see the key, as megatron-core has
        it; None where plain causal attention does the same: a row whose padding stands at its end needs no mask.
    """
    if kind is MaskKind.CAUSAL and not inner_padding:
        return None
    s = segment_ids.shape[1]
    everything = torch.ones(s, s, dtype=torch.bool, device=segment_ids.device)
    seen = everything.expand(len(segment_ids), s, s) if kind is MaskKind.BIDIRECTIONAL else everything.tril()
    if kind is MaskKind.PREFIX:
        first = segment_ids == 0
        seen = seen | (first[:, :, None] & first[:, None, :])
    seen = seen & (segment_ids >= 0)[:, None, :]
    # A padding position in front of all content would see nothing, and softmax over nothing is not a number.
    seen = seen | torch.eye(s, dtype=torch.bool, device=segment_ids.device)
    return ~seen.unsqueeze(1)


@dataclass(frozen=True)
class Documents:
    """Rows of several documents, each of which sees itself alone, causally: block-diagonal attention.

    Padding behind the last document of a row counts to it; nothing before it sees the padding.
    """

    position_ids: Tensor
    """int32 [b, s]; 0 begins a document, also at the begin of every row."""
    count: int
    """Documents of the micro-batch: the zeros among them."""

    def bounds(self) -> Tensor:
        """Flat positions ``row * s + i`` at which documents begin, and the end: int32 [count + 1].

        Its size is known beforehand, so nothing waits for the device.
        """
        begins = self.position_ids.flatten() == 0
        places = torch.arange(begins.numel(), dtype=torch.int32, device=begins.device)
        # What begins nothing goes to one place more, which is left out.
        target = torch.where(begins, begins.cumsum(0) - 1, self.count + 1)
        bounds = torch.full((self.count + 2,), begins.numel(), dtype=torch.int32, device=begins.device)
        return bounds.scatter_(0, target, places)[: self.count + 1]

    def mask(self) -> Tensor:
        """bool [b, 1, s, s], True where a query (second to last dimension) sees a key."""
        number = (self.position_ids == 0).cumsum(1)
        same = number[:, :, None] == number[:, None, :]
        return same.tril().unsqueeze(1)


class SDPACoreAttention(nn.Module):
    """Core attention for megatron-core's ``SelfAttention``, on any device; flash kernels where PyTorch has them.

    Training in bf16 on a CPU goes through :mod:`~megatron_pixel.model.blocked_attention`, where it is the faster one.
    """

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str, **_: Any
    ) -> None:
        super().__init__()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | Documents | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attention of ``query`` [s, b, heads, d] over ``key``, ``value`` [s, b, groups, d], grouped-query.

        Args:
            query, key, value: as above, the heads of this tensor-parallel rank.
            attention_mask: bool [b, 1, s, s], True where hidden; documents that do not see each other; None for plain
                causal attention.
            attn_mask_type, attention_bias, packed_seq_params: part of megatron-core's interface, not used.

        Returns:
            [s, b, heads * d].
        """
        if isinstance(attention_mask, Documents):
            return _attend_apart(query, key, value, attention_mask)
        return _attend(query, key, value, None if attention_mask is None else ~attention_mask).flatten(2)


def _attend(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None = None) -> Tensor:
    """Attention where a mask [b, 1, s, s] says so, else causal; shapes as in :meth:`SDPACoreAttention.forward`.

    Returns:
        [s, b, heads, d].
    """
    if seen is None and blocked_attention.takes(query, key, value):
        return blocked_attention.causal_attention(query, key, value)
    gqa = query.shape[2] != key.shape[2]
    parts = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [b, heads, s, d]
    context = F.scaled_dot_product_attention(*parts, attn_mask=seen, is_causal=seen is None, enable_gqa=gqa)
    return context.permute(2, 0, 1, 3)


def _attend_apart(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    """Attention inside documents, shapes as in :meth:`SDPACoreAttention.forward`.

    On a CPU each document is a call of its own, which does no work for positions that are not seen. On CUDA one call of
    PyTorch's flash attention takes documents of any lengths, in half precision; elsewhere a mask hides the others.
    """
    if query.device.type == "cpu":
        return _one_by_one(query, key, value, documents)
    flash = _varlen() if query.dtype in (torch.bfloat16, torch.float16) else None
    if flash is None or torch.cuda.get_device_capability(query.device) < (8, 0):
        return _masked(query, key, value, documents)
    s, b, heads, width = query.shape
    flat = [tensor.transpose(0, 1).reshape(b * s, tensor.shape[2], width) for tensor in (query, key, value)]
    bounds = documents.bounds()
    # The window of the keys: everything to the left, nothing to the right.
    context = flash(*flat, bounds, bounds, s, s, window_size=(-1, 0), enable_gqa=heads != key.shape[2])
    return context.view(b, s, heads * width).transpose(0, 1)


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    s, b, heads, width = query.shape
    bounds = documents.bounds().tolist()
    flat = [tensor.permute(1, 0, 2, 3).reshape(b * s, tensor.shape[2], width) for tensor in (query, key, value)]
    contexts = []
    for start, stop in itertools.pairwise(bounds):
        parts = (tensor[start:stop].unsqueeze(1) for tensor in flat)  # [n, 1, heads, d]
        contexts.append(_attend(*parts).squeeze(1))
    return torch.cat(contexts).view(b, s, heads * width).transpose(0, 1)


def _masked(query: Tensor, key: Tensor, value: Tensor, documents: Documents) -> Tensor:
    return _attend(query, key, value, documents.mask()).flatten(2)


@cache
def _varlen() -> Callable[..., Tensor] | None:
    """PyTorch's flash attention over sequences of any lengths, where this version has it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if "enable_gqa" in known:
        return varlen_attn
    return _repeating(varlen_attn) if "window_size" in known else None  # its first versions had neither


def _repeating(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Grouped queries for a version that knows none: keys and values are repeated for each query head."""

    def call(query: Tensor, key: Tensor, value: Tensor, *bounds: Any, enable_gqa: bool, **options: Any) -> Tensor:
        if enable_gqa:
            times = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
        return attend(query, key, value, *bounds, **options)

    return call
