import pytest
import torch
import torch.nn.functional as F

from megatron_pixel.training.attention_probe import attention_weights


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("hides", [False, True])
def test_weights_are_those_that_attention_uses(groups: int, hides: bool) -> None:
    """Values that name their position make scaled dot-product attention hand back its weights."""
    torch.manual_seed(0)
    s, heads, width = 9, 4, 6
    query, key = torch.randn(s, heads, width), torch.randn(s, groups, width)
    hidden = torch.ones(s, s, dtype=torch.bool).triu(1)
    if hides:
        hidden[4:, 2] = True
    names = torch.eye(s).expand(groups, s, s)
    weights = F.scaled_dot_product_attention(
        query.permute(1, 0, 2), key.permute(1, 0, 2), names, attn_mask=~hidden, enable_gqa=True
    ).mean(0)
    torch.testing.assert_close(attention_weights(query, key, hidden if hides else None), weights)
