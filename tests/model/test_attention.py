import numpy as np
import pytest
import torch

from megatron_pixel.model.attention import MaskKind, SDPACoreAttention, attention_mask

SEGMENTS = torch.tensor([[0, 0, 0, 1, 1, -1], [-1, 0, -1, -1, 1, 1]], dtype=torch.int32)


def sees(kind: MaskKind, segments: list[int], query: int, key: int) -> bool:
    """The definition, one pair of positions at a time."""
    if query == key:
        return True
    if segments[key] < 0:
        return False
    if kind is MaskKind.BIDIRECTIONAL or key < query:
        return True
    return kind is MaskKind.PREFIX and segments[query] == 0 and segments[key] == 0


@pytest.mark.parametrize("kind", MaskKind)
def test_masks_follow_their_definition(kind: MaskKind) -> None:
    mask = attention_mask(kind, SEGMENTS, inner_padding=True)
    assert mask is not None
    for row, segments in enumerate(SEGMENTS.tolist()):
        expected = [[not sees(kind, segments, q, k) for k in range(6)] for q in range(6)]
        assert mask[row, 0].tolist() == expected


def test_a_causal_row_with_padding_at_its_end_needs_no_mask() -> None:
    assert attention_mask(MaskKind.CAUSAL, SEGMENTS[:1], inner_padding=False) is None
    assert attention_mask(MaskKind.PREFIX, SEGMENTS[:1], inner_padding=False) is not None


@pytest.mark.parametrize("kind", MaskKind)
def test_core_attention_equals_softmax_written_out(kind: MaskKind) -> None:
    s, b, heads, groups, d = 6, 2, 4, 2, 8
    torch.manual_seed(0)
    query, key, value = (torch.randn(s, b, n, d, dtype=torch.float64) for n in (heads, groups, groups))
    mask = attention_mask(kind, SEGMENTS, inner_padding=kind is not MaskKind.CAUSAL)
    context = SDPACoreAttention(None, 1, None, "self")(query, key, value, mask).view(s, b, heads, d)
    for row in range(b):
        segments = SEGMENTS[row].tolist() if kind is not MaskKind.CAUSAL else [0] * s
        visible = np.array([[sees(kind, segments, q, k) for k in range(s)] for q in range(s)])
        for head in range(heads):
            group = head // (heads // groups)
            scores = query[:, row, head].numpy() @ key[:, row, group].numpy().T / np.sqrt(d)
            weights = np.where(visible, np.exp(scores), 0)
            expected = weights / weights.sum(-1, keepdims=True) @ value[:, row, group].numpy()
            np.testing.assert_allclose(context[:, row, head].numpy(), expected, atol=1e-12)
