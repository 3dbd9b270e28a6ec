"""Two ranks take their places in every layout."""

from typing import Any


def test_ranks_and_sizes(two_ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(two_ranks):
        data, tensor, pipe = (result["places"][name] for name in ("data", "tensor", "pipe"))
        assert (data["ranks"], data["sizes"]) == ((0, rank, 0), (1, 2, 1))
        assert (tensor["ranks"], tensor["sizes"]) == ((0, 0, rank), (1, 1, 2))
        assert (pipe["ranks"], pipe["sizes"]) == ((rank, 0, 0), (2, 1, 1))
        assert data["main"] == tensor["main"] == pipe["main"] == (rank == 0)


def test_the_data_group_joins_those_who_hold_the_same_weights(two_ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(two_ranks):
        sums = [result["places"][name]["sum_over_data_group"] for name in ("data", "tensor", "pipe")]
        assert sums == [3, rank + 1, rank + 1]


def test_deepspeeds_names_mean_tensor_parallelism(two_ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(two_ranks):
        assert result["places"]["data"]["mpu"] == (0, 1, 1, 2)
        assert result["places"]["tensor"]["mpu"] == (rank, 2, 2, 1)
        assert result["places"]["pipe"]["mpu"] == (0, 1, 1, 1)
