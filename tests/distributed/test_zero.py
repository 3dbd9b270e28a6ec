"""Rows that leave out a part of the model, under each ZeRO stage: the weights after a few steps are plain PyTorch's."""

from typing import Any

import pytest


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_weights_equal_plain_pytorch(stage: int, two_ranks: list[dict[str, Any]]) -> None:
    for result in two_ranks:
        difference, name = result["zero"][stage]
        # Steps are 1e-3 long.
        assert difference < 2e-6, name
