import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from megatron_pixel.model import rms_norm as module
from megatron_pixel.model.rms_norm import rms_norm

EPS = 1e-3


def written_out(states: Tensor, weight: Tensor) -> Tensor:
    return states / (states.square().mean(-1, keepdim=True) + EPS).sqrt() * weight


def with_gradients(output: Tensor, states: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    return (output, *torch.autograd.grad(output, (states, weight), torch.randn(output.shape).to(output.dtype)))


def drawn(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """States of very different sizes, and a weight."""
    torch.manual_seed(0)
    states = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    weight = 1 + 0.3 * torch.randn(shape[-1])
    return states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()


@pytest.mark.parametrize("cached", [1, 24, module.CACHED])
@pytest.mark.parametrize("shape", [(5, 2, 8), (7, 12), (1, 4), (0, 3, 4)])
def test_in_fp64_it_is_the_formula(shape: tuple[int, ...], cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHED", cached)
    states, weight = drawn(*shape, dtype=torch.float64)
    found = with_gradients(rms_norm(states, weight, EPS), states, weight)
    expected = with_gradients(written_out(states, weight), states, weight)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_states_may_lie_in_any_order() -> None:
    states, weight = drawn(6, 5, 8, dtype=torch.float64)
    turned = states.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    found = with_gradients(rms_norm(turned, weight, EPS), turned, weight)
    expected = with_gradients(written_out(states, weight), states, weight)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_error_is_that_of_pytorch(dtype: torch.dtype) -> None:
    states, weight = drawn(300, 2, 512, dtype=dtype)
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in (states, weight))
    truth = with_gradients(written_out(*exact), *exact)
    ours = with_gradients(rms_norm(states, weight, EPS), states, weight)
    theirs = with_gradients(F.rms_norm(states, weight.shape, weight, EPS), states, weight)
    assert ours[0].dtype == dtype
    # In bf16 both round once. The sum over rows is taken in another order than theirs, of rows of any size.
    for mine, other, true in zip(ours, theirs, truth, strict=True):
        error, allowed = ((tensor.double() - true).norm() / true.norm() for tensor in (mine, other))
        assert error <= 1.01 * allowed if dtype == torch.bfloat16 else error < 5e-7


def test_it_keeps_the_states_and_a_number_a_row() -> None:
    states, weight = drawn(5, 2, 8, dtype=torch.bfloat16)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        rms_norm(states, weight, EPS)
    assert {tensor.data_ptr() for tensor in kept[:2]} == {states.data_ptr(), weight.data_ptr()}
    assert [(tensor.dtype, tensor.numel()) for tensor in kept[2:]] == [(torch.float32, 10)]
