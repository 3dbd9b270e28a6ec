"""Two tensor-parallel ranks hold slices of the one-process model and give its losses and gradients."""

from typing import Any

import numpy as np
import pytest

from megatron_pixel.data.rows import Kind


@pytest.fixture
def one(two_ranks: list[dict[str, Any]]) -> dict[str, Any]:
    """Without tensor parallelism."""
    return two_ranks[0]["one"]


@pytest.fixture(params=["two", "by position"])
def two(two_ranks: list[dict[str, Any]], request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """By rank, with it; then with sequence parallelism besides, its mathematics on CPU."""
    return [result[request.param] for result in two_ranks]


def whole(name: str, shards: list[np.ndarray], split: dict[str, tuple[int, int]]) -> np.ndarray:
    """The full tensor of its shards; a stride of 2 means that every shard holds a piece of each half (gate, up)."""
    if name not in split:
        np.testing.assert_array_equal(shards[0], shards[1], err_msg=f"{name} is replicated")
        return shards[0]
    dimension, stride = split[name]
    pieces = [np.split(shard, stride, axis=dimension) for shard in shards]
    return np.concatenate([rank[i] for i in range(stride) for rank in pieces], axis=dimension)


def test_shards_are_slices_of_the_same_weights(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    split = two[0]["split"]
    assert {name.split(".", 1)[1] for name in split} == {
        "tokens.weight",
        "layer.self_attention.linear_qkv.weight",
        "layer.self_attention.linear_proj.weight",
        "layer.mlp.linear_fc1.weight",
        "layer.mlp.linear_fc2.weight",
        "heads.token.linear.weight",
    }
    for name, weight in one["weights"].items():
        shards = [result["weights"][name] for result in two]
        assert (shards[0].size < weight.size) == (name in split)
        np.testing.assert_array_equal(whole(name, shards, split), weight, err_msg=name)


@pytest.mark.parametrize("kind", Kind)
def test_losses_are_those_of_one_process(kind: Kind, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    for result in two:
        assert result["losses"][kind] == pytest.approx(one["losses"][kind], rel=1e-5)


@pytest.mark.parametrize("kind", Kind)
def test_gradients_are_those_of_one_process(kind: Kind, one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    expected = one["gradients"][kind]
    for result in two:
        assert result["gradients"][kind].keys() == expected.keys()
    for name, gradient in expected.items():
        shards = [result["gradients"][kind][name] for result in two]
        scale = np.abs(gradient).max()
        assert scale > 0
        full = whole(name, shards, two[0]["split"])
        np.testing.assert_allclose(full / scale, gradient / scale, atol=1e-5, err_msg=name)
