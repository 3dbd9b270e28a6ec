import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from megatron_pixel.model.swiglu import swiglu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    both = (3 * torch.randn(5, 2, 14)).to(dtype).requires_grad_()
    other = both.detach().clone().requires_grad_()
    gate, up = other.chunk(2, dim=-1)
    expected, found = F.silu(gate) * up, swiglu(both)
    assert torch.equal(found, expected)
    weights = torch.randn(5, 2, 7).to(dtype)
    expected.backward(weights)
    found.backward(weights)
    assert torch.equal(both.grad, other.grad)


def test_it_keeps_its_input_alone() -> None:
    both = torch.randn(5, 2, 14, requires_grad=True)
    kept: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        swiglu(both)
    assert len(kept) == 1
    assert kept[0].data_ptr() == both.data_ptr()
