import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from megatron_pixel.model import blocked_attention
from megatron_pixel.model.attention import SDPACoreAttention
from megatron_pixel.model.blocked_attention import causal_attention, takes
from megatron_pixel.planning import activations


def pytorchs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    parts = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    return F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True).permute(2, 0, 1, 3)


def written_out(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    s, _, heads, d = query.shape
    key, value = (tensor.repeat_interleave(heads // tensor.shape[2], dim=2) for tensor in (key, value))
    scores = torch.einsum("qbhd,kbhd->bhqk", query, key) / d**0.5
    hidden = torch.ones(s, s, dtype=torch.bool).triu(1)
    return torch.einsum("bhqk,kbhd->qbhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), value)


def drawn(s: int, b: int, heads: int, groups: int, d: int, mean: float = 0.0) -> list[Tensor]:
    """Queries, keys, values of a mean, and the gradient of the context."""
    torch.manual_seed(0)
    parts = [torch.randn(s, b, n, d) for n in (heads, groups, groups, heads)]
    parts[2] += mean
    return [part.bfloat16().requires_grad_() for part in parts]


def with_gradients(way: object, parts: list[Tensor]) -> tuple[Tensor, ...]:
    *inputs, gradient = parts
    output = way(*inputs)  # type: ignore[operator]
    return (output, *torch.autograd.grad(output, inputs, gradient))


def errors(found: tuple[Tensor, ...], parts: list[Tensor]) -> Tensor:
    """Of the context and of the three gradients against fp64, relative to their size."""
    truth = with_gradients(written_out, [part.detach().double().requires_grad_() for part in parts])
    pairs = zip(found, truth, strict=True)
    return torch.stack([(mine.double() - true).norm() / true.norm() for mine, true in pairs])


@pytest.mark.parametrize("mean", [0.0, 5.0])
@pytest.mark.parametrize(
    ("s", "b", "heads", "groups", "d"), [(300, 2, 4, 2, 32), (256, 1, 3, 3, 20), (384, 1, 4, 1, 64)]
)
def test_its_error_is_that_of_pytorchs_kernel(s: int, b: int, heads: int, groups: int, d: int, mean: float) -> None:
    """Probabilities are rounded once more, which costs context and queries; sums in fp32 give it back to the rest."""
    parts = drawn(s, b, heads, groups, d, mean)
    ours, theirs = (errors(with_gradients(way, parts), parts) for way in (causal_attention, pytorchs))
    assert (ours < 1.3 * theirs).all()
    assert ours[3] < 0.9 * theirs[3]
    assert ours.norm() < theirs.norm()


@pytest.mark.parametrize("cached", [1, 100_000])
def test_blocks_of_any_size_are_the_same(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = drawn(100, 2, 4, 2, 16)
    expected = with_gradients(causal_attention, parts)
    monkeypatch.setattr(blocked_attention, "CACHED", cached)
    monkeypatch.setattr(blocked_attention, "BLOCK", 24)
    for mine, theirs in zip(with_gradients(causal_attention, parts), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-2, atol=2e-2)


def test_no_position_sees_what_comes_after_it() -> None:
    query, key, value, _ = drawn(300, 1, 2, 1, 16)
    before = causal_attention(query, key, value)
    with torch.no_grad():
        for part in (query, key, value):
            part[200:] = 7
    after = causal_attention(query, key, value)
    assert torch.equal(before[:200], after[:200])
    assert not torch.equal(before[200:], after[200:])


def test_it_is_taken_for_training_in_bf16_on_long_rows_alone() -> None:
    query, key, value, _ = drawn(256, 1, 2, 1, 16)
    assert takes(query, key, value)
    assert not takes(query[:255], key[:255], value[:255])
    assert not takes(query.float(), key.float(), value.float())
    assert not takes(*(part.detach() for part in (query, key, value)))
    with torch.no_grad():
        assert not takes(query, key, value)
    core = SDPACoreAttention(None, 1, None, "self")  # type: ignore[arg-type]
    assert torch.equal(core(query, key, value, None), causal_attention(query, key, value).flatten(2))
    everything = torch.zeros(1, 1, 256, 256, dtype=torch.bool)
    assert not torch.equal(core(query, key, value, everything), core(query, key, value, None))


def test_what_it_keeps_is_what_plans_count() -> None:
    assert (activations.BLOCK, activations.LEAST, activations.MOST) == (
        blocked_attention.BLOCK,
        blocked_attention.LEAST,
        blocked_attention.MOST,
    )
    s, b, heads = 256, 2, 4
    query, key, value, _ = drawn(s, b, heads, 2, 16)
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        causal_attention(query, key, value)
    assert {tensor.data_ptr() for tensor in kept[:3]} == {part.data_ptr() for part in (query, key, value)}
    assert [tensor.nbytes for tensor in kept[3:]] == [2 * s * b * heads * (s + blocked_attention.BLOCK) // 2]
