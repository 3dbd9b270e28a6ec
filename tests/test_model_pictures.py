import subprocess
import sys

import numpy as np
import pytest

from megatron_pixel import model_pictures
from megatron_pixel.drawing import HEAT_STOPS, NO_TARGET
from megatron_pixel.model_pictures import Moment, attention_sheet, history_sheet, relative_attention


def some_patches(count: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)


def contains(picture: np.ndarray, part: np.ndarray) -> bool:
    height, width = part.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], (height, width))
    places = np.argwhere((windows[:, :, 0, 0] == part[0, 0, 0]) & (windows[:, :, -1, -1] == part[-1, -1, 0]))
    return any(np.array_equal(picture[y : y + height, x : x + width], part) for y, x in places)


def test_an_even_look_is_one_everywhere() -> None:
    even = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None]
    assert np.allclose(relative_attention(even.astype(np.float16)), np.tril(np.ones((5, 5))), atol=1e-2)


def test_the_map_shows_who_looks_where() -> None:
    attention = np.zeros((8, 8), np.float32)
    attention[:, 2] = 1.0  # everybody looks at patch 2; patches 0 and 1, who cannot, at themselves
    attention[0, 2] = attention[1, 2] = 0
    attention[0, 0] = attention[1, 1] = 1.0
    picture = model_pictures._map(relative_attention(attention))
    side = len(picture) // 8
    middle = picture[side // 2 :: side, side // 2 :: side]
    assert (middle[np.triu_indices(8, 1)] == NO_TARGET).all()
    seen = middle[3:, 2].astype(int).sum(-1)
    assert (np.diff(seen) < 0).all(), "the more there are to look at, the more a single look means"
    assert (middle[3:, 1] == HEAT_STOPS[0]).all()


def test_a_long_page_is_merged_by_the_largest() -> None:
    n = 2 * model_pictures.MAP_SIZE
    attention = np.zeros((n, n), np.float32)
    attention[n - 1, 1] = 1.0
    picture = model_pictures._map(relative_attention(attention))
    assert picture.shape == (n // 2, n // 2, 3)
    assert tuple(picture[-1, 0]) == HEAT_STOPS[-1]


def test_an_attention_sheet_shows_the_page_and_refuses_another() -> None:
    patches = some_patches(6)
    sheet = attention_sheet(patches, np.tril(np.full((6, 6), 0.2)), "Title", patches_per_row=4)
    assert contains(np.asarray(sheet), np.concatenate(list(patches[:4]), axis=1))
    with pytest.raises(ValueError, match=r"\(5, 5\) for 6 patches"):
        attention_sheet(patches, np.zeros((5, 5)))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_history_shows_every_moment_on_one_scale(channels: int) -> None:
    patches = some_patches(5)[..., :channels]
    errors = np.array([np.nan, 0.1, 0.1, 0.1, 0.4], np.float32)
    moments = [Moment(f"step {n}", patches // n, errors / n) for n in (1, 2)]
    sheet = np.asarray(history_sheet(patches, moments, patches_per_row=5))
    wide = np.broadcast_to(patches, (5, 16, 16, 3))
    assert contains(sheet, np.concatenate(list(wide), axis=1))
    for n in (1, 2):
        assert contains(sheet, np.concatenate(list(wide[1:] // n), axis=1))
    assert contains(sheet, np.full((4, 16, 3), HEAT_STOPS[-1], np.uint8)), "the largest error of all moments"


def test_imports_no_torch() -> None:
    code = "import sys, megatron_pixel.model_pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
