import numpy as np
import pytest
from PIL import Image

from megatron_pixel.contact_sheet import TINT, Card, contact_sheet
from megatron_pixel.drawing import GROUND


def some_patches(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16, 16, channels), dtype=np.uint8)


def place(picture: Image.Image, patch: np.ndarray) -> tuple[int, int]:
    """Top and left of a patch on the picture, where it stands exactly once."""
    pixels = np.asarray(picture).astype(np.int16)
    wanted = np.broadcast_to(patch, (*patch.shape[:2], 3))
    windows = np.lib.stride_tricks.sliding_window_view(pixels[..., 0], (16, 16))
    found = np.argwhere((windows == wanted[..., 0]).all(axis=(2, 3)))
    assert len(found) == 1
    top, left = map(int, found[0])
    assert (pixels[top : top + 16, left : left + 16] == wanted).all()
    return top, left


def test_cards_stand_in_a_grid_and_pages_are_wrapped():
    pages = [some_patches(5, channels, seed) for seed, channels in enumerate((1, 3, 1, 3))]
    cards = [Card(f"page {i}", "remark", page) for i, page in enumerate(pages)]
    picture = contact_sheet(cards, "Title", "caption", columns=2, patches_per_row=3)
    at = [place(picture, page[0]) for page in pages]
    assert at[0][0] == at[1][0] < at[2][0] == at[3][0]
    assert at[0][1] == at[2][1] < at[1][1] == at[3][1]
    for page, (top, left) in zip(pages, at, strict=True):
        assert place(picture, page[1]) == (top, left + 16)
        below, same = place(picture, page[3])
        assert below > top + 16
        assert same == left
    assert np.asarray(picture)[0, 0].tolist() == list(GROUND)


def test_scale_and_most_lines():
    page = some_patches(7)
    large = contact_sheet([Card("page 0", "", page)], patches_per_row=2, scale=3)
    enlarged = np.asarray(large)[:, :, 0]
    windows = np.lib.stride_tricks.sliding_window_view(enlarged, (48, 48))[:, :, ::3, ::3]
    assert (windows == page[0, :, :, 0]).all(axis=(2, 3)).any()
    cut = contact_sheet([Card("page 0", "", page)], patches_per_row=2, most_lines=2)
    whole = contact_sheet([Card("page 0", "", page)], patches_per_row=2, most_lines=4)
    place(whole, page[6])
    place(cut, page[3])
    with pytest.raises(AssertionError):
        place(cut, page[4])


def test_text_is_tinted_and_below_the_page():
    page, text = some_patches(2), np.zeros((2, 16, 16, 1), np.uint8)
    picture = contact_sheet([Card("pair 0", "", page, [text])])
    blue = (np.asarray(picture) == TINT).all(axis=2)
    assert blue.sum() == 2 * 16 * 16
    assert np.flatnonzero(blue.any(axis=1))[0] > place(picture, page[0])[0]
    assert (np.asarray(contact_sheet([Card("row 0", "", None, [text])])) == TINT).all(axis=2).sum() == 2 * 16 * 16


def test_pictures_beyond_reason_are_refused():
    cards = [Card(f"page {i}", "", some_patches(1)) for i in range(3)]
    contact_sheet(cards)
    with pytest.raises(ValueError, match="120 million pixels"):
        contact_sheet(cards, scale=4000)
