"""Columns become patches: compiled tiles against numpy's transposition."""

import numpy as np
import pytest

from megatron_pixel.rendering.expand import gray_to_rgb, patches_from_columns
from megatron_pixel.rendering.page import Page


def noise(patches: int, size: int, channels: int) -> np.ndarray:
    """uint8 [n*P, P] or [n*P, P, 3]."""
    shape = (patches * size, size, channels)[: 2 if channels == 1 else 3]
    return np.random.default_rng(size).integers(0, 256, shape, dtype=np.uint8)


def expected(columns: np.ndarray, size: int, channels: int) -> np.ndarray:
    patches = columns.reshape(-1, size, size, columns.size // columns.shape[0] // size).transpose(0, 2, 1, 3)
    return np.broadcast_to(patches, (*patches.shape[:3], channels))


@pytest.mark.parametrize("size", [8, 10, 12, 16, 24, 32, 48])
@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (1, 3), (3, 3)])
def test_tiles_are_transposed(size: int, channels: int, wanted: int) -> None:
    columns = noise(5, size, channels)
    out = np.empty((5, size, size, wanted), dtype=np.uint8)
    patches_from_columns(columns, size, out)
    assert np.array_equal(out, expected(columns, size, wanted))


def test_nothing_is_written_beyond_the_last_patch() -> None:
    columns = noise(3, 16, 1)
    out = np.full(3 * 16 * 16 * 3 + 64, 7, dtype=np.uint8)
    gray_to_rgb(columns.reshape(-1), 16, out)
    assert (out[-64:] == 7).all()


def test_room_that_does_not_fit_is_refused() -> None:
    for shape in ((2, 16, 16, 1), (3, 16, 16, 2), (3, 8, 32, 1)):
        with pytest.raises(ValueError, match="no room"):
            patches_from_columns(noise(3, 16, 1), 16, np.empty(shape, dtype=np.uint8))
    with pytest.raises(ValueError, match="no room"):
        patches_from_columns(noise(3, 16, 3), 16, np.empty((3, 16, 16, 1), dtype=np.uint8))
    with pytest.raises(ValueError, match="no room"):
        patches_from_columns(noise(3, 16, 1), 16, np.empty((3, 16, 16, 1), dtype=np.int8))
    with pytest.raises(ValueError, match="no room"):
        patches_from_columns(noise(3, 16, 1), 16, np.empty((6, 16, 16, 1), dtype=np.uint8)[::2])


@pytest.mark.parametrize("channels", [1, 3])
def test_patches_of_a_page_into_room_given(channels: int) -> None:
    page = Page(noise(3, 16, channels), 3, 0, 0, 16)
    room = np.full((5, 16, 16, 3), 7, dtype=np.uint8)
    written = page.patches(3, room)
    assert np.shares_memory(written, room)
    assert np.array_equal(written, page.patches(3))
    assert np.array_equal(written, expected(page.columns, 16, 3))
    assert (room[3:] == 7).all()
