"""Products of linear layers through oneDNN against torch's own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_pixel.model import products
from megatron_pixel.model.products import OneDNNLinear, times_transposed, weight_gradient


class Plain:
    """Stands where megatron-core's layer does; says that it was asked."""

    def _forward_impl(self, input: Tensor, weight: Tensor, **_: Any) -> Tensor:
        raise AssertionError("torch's own product was taken")


class Layer(OneDNNLinear, Plain):
    """A linear layer in one process."""

    def __call__(self, inputs: Tensor, weight: Tensor, **settings: Any) -> Tensor:
        known = {"bias": None, "sequence_parallel": False, "allreduce_dgrad": False, "tp_group": None}
        return self._forward_impl(inputs, weight, **known | settings)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the products that go through oneDNN, whatever their size."""
    calls: list[tuple[int, ...]] = []
    onednn: Callable[..., Tensor] = products._onednn

    def call(left: Tensor, right: Tensor, *rest: Any) -> Tensor:
        calls.append((left.shape[0], left.shape[1], right.shape[0]))
        return onednn(left, right, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(products, "_onednn", call)
        patch.setattr(products, "LEAST", 0)
        yield calls


def test_torch_has_the_operation() -> None:
    """A version that renames it makes every run slower by a tenth without a word: this test is the word."""
    assert products._onednn is not None


@pytest.mark.parametrize(("rows", "width", "out"), [(6, 5, 3), (7, 3, 5), (1, 4, 4), (33, 16, 16)])
def test_outputs_and_gradients_equal_torchs(rows: int, width: int, out: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    inputs = torch.randn(rows, 1, width, requires_grad=True)
    weight = torch.randn(out, width, requires_grad=True)
    gradient = torch.randn(rows, 1, out)
    expected = F.linear(inputs.double(), weight.double())
    wanted = torch.autograd.grad(expected, (inputs, weight), gradient.double())
    with counted(monkeypatch) as calls:
        found = Layer()(inputs, weight)
        gradients = torch.autograd.grad(found, (inputs, weight), gradient)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    for one, other in zip(gradients, wanted, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    narrow = [(out, rows, width)] if out <= width else []
    assert calls == [(rows, width, out), (rows, out, width), *narrow]


def test_a_weight_or_input_without_gradient_costs_no_product(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, weight = torch.randn(4, 3), torch.randn(2, 3)
    for leaf in (inputs, weight):
        leaf.requires_grad_()
        with counted(monkeypatch) as calls:
            (gradient,) = torch.autograd.grad(Layer()(inputs, weight).sum(), leaf)
        assert len(calls) == 2
        assert gradient.shape == leaf.shape
        leaf.requires_grad_(False)


def test_only_large_fp32_products_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as calls:
        for dtype in (torch.bfloat16, torch.float64):
            left, right = torch.randn(4, 3).to(dtype), torch.randn(5, 3).to(dtype)
            torch.testing.assert_close(times_transposed(left, right), left @ right.t())
            torch.testing.assert_close(weight_gradient(left, left), left.t() @ left)
        monkeypatch.setattr(products, "LEAST", 61)
        times_transposed(torch.randn(4, 3), torch.randn(5, 3))
        assert calls == []
        monkeypatch.setattr(products, "LEAST", 60)
        times_transposed(torch.randn(4, 3), torch.randn(5, 3))
        assert calls == [(4, 3, 5)]


def test_without_the_operation_products_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_onednn", None)
    monkeypatch.setattr(products, "LEAST", 0)
    left, right = torch.randn(4, 3), torch.randn(5, 3)
    torch.testing.assert_close(times_transposed(left, right), left @ right.t(), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"bias": torch.zeros(2)}, {"sequence_parallel": True}])
def test_what_it_does_not_know_is_left_to_megatron(settings: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="own product"):
        Layer()(torch.randn(4, 3), torch.randn(2, 3), **settings)
