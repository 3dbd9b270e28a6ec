"""The large dataset whose plan is timed: pages of a small one over and over, packed by the program itself."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.packing_plans import _simulate, measure_plan
from megatron_pixel.config.errors import UserError
from megatron_pixel.data.stores import PageStore
from tests.data.conftest import DOCUMENTS, MakeDataset, make_dataset  # noqa: F401

LENGTHS = [length for document in DOCUMENTS for length in document]
ROOM = 8


@pytest.fixture
def small(make_dataset: MakeDataset) -> str:  # noqa: F811
    return make_dataset("pixels", rendering={"patch_size": 16, "mode": "gray", "seq_length": ROOM})


def test_the_pages_are_those_of_the_small_dataset_over_and_over(small: str, tmp_path: Path) -> None:
    _simulate(str(tmp_path / "many"), small, 15)
    many, few = PageStore(str(tmp_path / "many")), PageStore(small)
    assert len(many) == 21, "three times the seven pages of the small one"
    assert many.lengths(0, 21).tolist() == LENGTHS * 3
    for number in range(21):
        np.testing.assert_array_equal(many.page(number).columns, few.page(number % 7).columns)


def test_a_plan_is_timed_and_cleared_away(small: str, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    found = measure_plan(folder, small, 15, ROOM)
    assert not list(folder.iterdir())
    assert found["pages"] == 21
    assert found["alone_fill"] == sum(LENGTHS) / (len(LENGTHS) * ROOM)
    # 72 patches fill nine rows of eight, and no plan does better.
    assert found["packed_fill"] == 1.0
    assert found["pages_per_second"] == found["pages"] / found["seconds"]
    assert found["own_bytes"] > 1 << 20


def test_a_plan_that_fails_says_why(small: str, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    with pytest.raises(UserError, match=r"pack\.py failed: error: .*many"):
        measure_plan(folder, small, 7, max(LENGTHS) - 1)
