import pytest

from megatron_pixel.parallel.cut import cut


@pytest.mark.parametrize(
    ("layers", "pipeline", "expected"),
    [
        (4, 1, [0, 7]),
        (4, 2, [0, 3, 7]),
        (5, 2, [0, 4, 8]),
        (24, 4, [0, 7, 13, 19, 27]),
        (10, 4, [0, 4, 7, 9, 13]),
        (3, 3, [0, 2, 3, 6]),
    ],
)
def test_layers_are_shared_out_evenly(layers: int, pipeline: int, expected: list[int]) -> None:
    assert cut(layers, pipeline) == expected
