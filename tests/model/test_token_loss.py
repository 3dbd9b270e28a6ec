"""The token head's loss, and its gradients, against torch's own cross entropy over whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_pixel.model import token_loss
from megatron_pixel.model.token_loss import linear_cross_entropy

N, H, V = 13, 8, 30


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and ids; some logits are large, so that a softmax without its maximum would overflow."""
    torch.manual_seed(3)
    hidden = (6 * torch.randn(N, H)).to(dtype).requires_grad_()
    weight = (3 * torch.randn(V, H)).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (N,))


def expected(hidden: Tensor, weight: Tensor, ids: Tensor, factor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and gradients by torch in fp64."""
    hidden, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    each = F.cross_entropy(hidden @ weight.t(), ids, reduction="none")
    (factor * each.sum()).backward()
    return each.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("aligned", [1, 8])
@pytest.mark.parametrize(("chunk", "cached"), [(2048, 1 << 19), (2048, 4 * V), (5, 1 << 19), (5, V)])
@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, {"rtol": 1e-5, "atol": 1e-5}), (torch.bfloat16, {"rtol": 0.02, "atol": 0.3})]
)
def test_loss_and_gradients_equal_torchs(
    chunk: int, cached: int, aligned: int, dtype: torch.dtype, close: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_loss, "ALIGNED", aligned)
    monkeypatch.setattr(token_loss, "CHUNK", chunk)
    monkeypatch.setattr(token_loss, "CACHED", cached)
    hidden, weight, ids = example(dtype)
    each, hidden_gradient, weight_gradient = expected(hidden, weight, ids, 0.5)
    found = linear_cross_entropy(hidden, weight, ids)
    assert found.sum.dtype == found.each.dtype == torch.float32
    assert not found.each.requires_grad
    (0.5 * found.sum).backward()
    torch.testing.assert_close(found.each.double(), each, **close)
    torch.testing.assert_close(found.sum.detach(), found.each.sum())
    torch.testing.assert_close(hidden.grad.double(), hidden_gradient, **close)
    torch.testing.assert_close(weight.grad.double(), weight_gradient, **close)


def test_the_split_form_equals_the_whole_one() -> None:
    """On one rank, whose share is the whole vocabulary; over two ranks the layouts of tests/distributed hold it."""
    hidden, weight, ids = example()
    logits = (hidden @ weight.t()).detach()
    whole, split = logits.clone(), logits.clone()
    torch.testing.assert_close(token_loss._losses(whole, ids, True), token_loss._split_losses(split, ids, True))
    torch.testing.assert_close(whole, split)
    torch.testing.assert_close(whole, F.softmax(logits, -1) - F.one_hot(ids, V))


def test_without_gradients_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, ids = example()
    monkeypatch.setattr(torch, "empty_like", None)  # for the gradient of the hidden states
    with torch.no_grad():
        found = linear_cross_entropy(hidden, weight, ids)
    assert not found.sum.requires_grad
    torch.testing.assert_close(found.each.double(), expected(hidden, weight, ids, 1.0)[0], rtol=1e-5, atol=1e-5)


def test_a_second_backward_pass_is_refused() -> None:
    """Its gradients are those of the first one, scaled in place."""
    found = linear_cross_entropy(*example())
    found.sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum.backward()
