"""Who sees whom, and the core attention on PyTorch's scaled dot-product attention."""

from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn


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


class SDPACoreAttention(nn.Module):
    """Core attention for megatron-core's ``SelfAttention``, on any device; flash kernels where PyTorch has them."""

    def __init__(
        self, config: TransformerConfig, layer_number: int, attn_mask_type: AttnMaskType, attention_type: str, **_: Any
    ) -> None:
        super().__init__()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        """Attention of ``query`` [s, b, heads, d] over ``key``, ``value`` [s, b, groups, d], grouped-query.

        Args:
            query, key, value: as above, the heads of this tensor-parallel rank.
            attention_mask: bool [b, 1, s, s], True where hidden; None for plain causal attention.
            attn_mask_type, attention_bias, packed_seq_params: part of megatron-core's interface, not used.

        Returns:
            [s, b, heads * d].
        """
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))  # [b, heads, s, d]
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if attention_mask is None else ~attention_mask,
            is_causal=attention_mask is None,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return context.permute(2, 0, 1, 3).flatten(2)
