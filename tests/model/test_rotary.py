import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.model import rotary
from megatron_pixel.model.layers import transformer_config
from megatron_pixel.model.rotary import rotary_angles, rotation, turned_heads

POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 0, 1, 500, 1000]], dtype=torch.int32)
GROUPS, PER_GROUP, WIDTH = 3, 2, 8


@pytest.fixture
def settings(small: ModelConfig) -> TransformerConfig:
    return transformer_config(small)


def megatrons(fused: Tensor, angles: Tensor, settings: TransformerConfig) -> list[Tensor]:
    """As megatron-core's attention takes them apart and turns them."""
    whole = torch.cat((angles, angles), dim=-1).unsqueeze(2)
    groups = fused.unflatten(-1, (GROUPS, -1))
    query, key, value = groups.split((PER_GROUP * WIDTH, WIDTH, WIDTH), dim=-1)
    query = query.reshape(*query.shape[:2], -1, WIDTH)
    return [*(apply_rotary_pos_emb(part, whole, config=settings) for part in (query, key)), value]


def with_gradient(parts: list[Tensor], fused: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    gradients = [torch.randn(part.shape).to(part.dtype) for part in parts]
    return [*parts, *torch.autograd.grad(parts, fused, gradients)]


def drawn(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(7, 2, GROUPS * (PER_GROUP + 2) * WIDTH).to(dtype).requires_grad_()


@pytest.mark.parametrize("cached", [1, 1 << 18])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2**-7)], ids=str
)
def test_it_turns_as_megatron_does(
    dtype: torch.dtype, bound: float, cached: int, settings: TransformerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotary, "CACHED", cached)
    fused, angles = drawn(dtype), rotary_angles(POSITIONS, WIDTH, 100.0)
    ours = with_gradient(list(turned_heads(fused, GROUPS, rotation(angles, dtype))), fused)
    theirs = with_gradient(megatrons(fused, angles, settings), fused)
    assert [part.shape for part in ours] == [(7, 2, 6, 8), (7, 2, 3, 8), (7, 2, 3, 8), fused.shape]
    for mine, other in zip(ours, theirs, strict=True):
        # Two products of one rounding each, and their sum: values of up to 5 here.
        torch.testing.assert_close(mine, other, rtol=bound, atol=4 * bound)


def test_angles() -> None:
    angles = rotary_angles(POSITIONS, WIDTH, 100.0)
    assert angles.shape == (7, 2, 4)
    for i in range(4):
        expected = POSITIONS.t() * 100.0 ** (-2 * i / WIDTH)
        torch.testing.assert_close(angles[..., i], expected, rtol=1e-6, atol=0)


def test_it_keeps_the_rotation_alone() -> None:
    fused, by = drawn(torch.float32), rotation(rotary_angles(POSITIONS, WIDTH, 100.0), torch.float32)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        query, key, value = turned_heads(fused, GROUPS, by)
    assert [tensor.data_ptr() for tensor in kept] == [part.data_ptr() for part in by]
    assert fused.untyped_storage().data_ptr() not in [part.untyped_storage().data_ptr() for part in (query, key, value)]
