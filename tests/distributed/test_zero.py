"""Rows that leave out a part of the model, under each ZeRO stage: the weights after a few steps are plain PyTorch's."""

from typing import Any

import pytest


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_weights_equal_plain_pytorch(stage: int, two_ranks: list[dict[str, Any]]) -> None:
    for result in two_ranks:
        difference, name = result["zero"][stage]
        # Steps are 1e-3 long.
        assert difference < 2e-6, name


def test_zero_3_still_needs_every_parameter_in_every_micro_batch(two_ranks: list[dict[str, Any]]) -> None:
    """It loses gradients without a word where rows leave a parameter out; when this fails, ``touch_all`` may go."""
    for result in two_ranks:
        difference, _ = result["zero"][0]
        assert difference > 1e-4
