import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_pixel import drawing
from megatron_pixel.drawing import Panel, page_sheet, predicted_pixels, prediction_sheet, save_png, strip_to_rows


def some_patches(count: int, size: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def normalized(patches: np.ndarray) -> np.ndarray:
    x = patches.reshape(len(patches), -1) / 255.0
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, ddof=1, keepdims=True) + 1e-6)


def contains(picture: Image.Image, part: np.ndarray) -> bool:
    """Whether the pixels of ``part`` stand somewhere in the picture."""
    pixels = np.asarray(picture)
    height, width = part.shape[:2]
    windows = np.lib.stride_tricks.sliding_window_view(pixels[..., 0], (height, width))
    for top, left in np.argwhere((windows[:, :, 0, 0] == part[0, 0, 0]) & (windows[:, :, 0, -1] == part[0, -1, 0])):
        if np.array_equal(pixels[top : top + height, left : left + width], part):
            return True
    return False


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_keep_every_pixel(channels: int):
    patches = some_patches(7, channels=channels)
    picture = strip_to_rows(patches, patches_per_row=3, gap=2)
    assert picture.shape == (3 * 16 + 2 * 2, 48, 3)
    for index, patch in enumerate(patches):
        top, left = index // 3 * 18, index % 3 * 16
        assert (picture[top : top + 16, left : left + 16] == patch).all()
    assert (picture[36:, 16:] == 255).all()
    assert (picture[16:18] == 255).all()


def test_a_short_strip_is_one_row():
    assert strip_to_rows(some_patches(2), patches_per_row=64).shape == (16, 32, 3)
    assert strip_to_rows(some_patches(0), patches_per_row=64).shape == (0, 0, 3)


def test_rows_need_a_patch():
    with pytest.raises(ValueError, match="at least one patch"):
        strip_to_rows(some_patches(2), patches_per_row=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_unnormalise_inverts_the_target(channels: int):
    patches = some_patches(5, channels=channels)
    restored = drawing.unnormalise(normalized(patches), patches)
    assert restored.dtype == np.float32
    np.testing.assert_allclose(restored, patches, atol=1e-2)


def test_unnormalise_takes_brightness_from_the_true_patch():
    dark, light = np.full((1, 16, 16, 3), 20, np.uint8), np.full((1, 16, 16, 3), 230, np.uint8)
    reference = np.concatenate([dark, light])
    np.testing.assert_allclose(drawing.unnormalise(np.zeros((2, 768)), reference), reference, atol=1e-3)


def test_raw_predictions_are_scaled_only():
    patches = some_patches(2)
    pixels = predicted_pixels(np.full((2, 768), 0.5), patches, "raw")
    assert pixels.shape == patches.shape
    np.testing.assert_allclose(pixels, 127.5)


def test_heat_grows_darker_with_the_error():
    colors = drawing.heat_colors(np.linspace(0, 1, 50), 1.0)
    brightness = colors @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(brightness) < 0).all()
    assert tuple(drawing.heat_colors(np.array([5.0]), 1.0)[0]) == drawing.HEAT_STOPS[-1]


@pytest.mark.parametrize(("errors", "limit"), [([0.1] * 10, 0.1), ([0.0], 1.0), ([], 1.0), ([1.234], 1.3)])
def test_error_limit(errors: list[float], limit: float):
    assert drawing.error_limit_of(np.array(errors)) == pytest.approx(limit)


@pytest.mark.parametrize("channels", [1, 3])
def test_prediction_sheet_shows_page_prediction_and_error(channels: int):
    patches = some_patches(5, channels=channels)
    predictions = 255.0 - patches
    errors = np.array([np.nan, 0.1, 0.2, 0.4, 0.4])
    sheet = prediction_sheet(patches, predictions, errors, title="A page", patches_per_row=3, scale=1, error_limit=0.4)
    shown = np.broadcast_to(patches, (5, 16, 16, 3))
    predicted = np.broadcast_to(predictions.astype(np.uint8), (5, 16, 16, 3))
    assert contains(sheet, np.concatenate(list(shown[:3]), axis=1))
    assert contains(sheet, np.concatenate(list(shown[3:]), axis=1))
    assert contains(sheet, np.concatenate(list(predicted[1:3]), axis=1))
    assert not contains(sheet, predicted[0])  # the first patch has no prediction
    assert contains(sheet, np.full((5, 32, 3), drawing.HEAT_STOPS[-1], np.uint8))


def test_predictions_outside_the_range_are_clipped():
    patches = some_patches(2)
    predictions = np.stack([np.full((16, 16, 3), -50.0), np.full((16, 16, 3), 900.0)])
    sheet = prediction_sheet(patches, predictions, np.ones(2), scale=1)
    expected = np.concatenate([np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)], axis=1)
    assert contains(sheet, expected)


def test_prediction_sheet_refuses_other_lengths():
    with pytest.raises(ValueError, match="3 patches, 2 predictions, 3 errors"):
        prediction_sheet(some_patches(3), some_patches(2).astype(float), np.ones(3))


def test_the_note_says_how_predictions_were_made(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    text = drawing.Sheet.text

    def listen(self: drawing.Sheet, line: str, size: int, color: drawing.Color) -> None:
        said.append(line)
        text(self, line, size, color)

    monkeypatch.setattr(drawing.Sheet, "text", listen)
    for target in ("normalised", "raw"):
        prediction_sheet(some_patches(2), some_patches(2).astype(float), np.ones(2), patch_target=target)
    assert said == [drawing.TEACHER_FORCING_NOTE, drawing.RAW_NOTE]


def test_page_sheet_shows_every_panel():
    patches = some_patches(5, size=32)
    small = some_patches(4, size=16, channels=1)
    panels = [Panel(patches, "Large"), Panel(small, "Small")]
    sheet = page_sheet(panels, "Title\nof two lines", "caption " * 80, patches_per_row=4)
    assert contains(sheet, np.concatenate(list(patches[:4]), axis=1))
    assert contains(sheet, np.concatenate(list(np.broadcast_to(small, (4, 16, 16, 3))), axis=1))
    assert np.asarray(sheet)[:, : drawing.MARGIN].std() < 1  # nothing in the margins
    assert np.asarray(sheet)[:, -drawing.MARGIN + 2 :].std() < 1


def test_long_words_do_not_loop():
    page_sheet([Panel(some_patches(1))], "x" * 500)


@pytest.mark.parametrize("colors", [2, 200, 5000])
def test_saved_pictures_keep_every_pixel(tmp_path: Path, colors: int):
    pixels = np.random.default_rng(0).integers(0, colors, (64, 64)).astype(np.uint32) * 257
    pixels = np.stack([pixels & 255, pixels >> 8 & 255, pixels >> 16 & 255], axis=-1).astype(np.uint8)
    path = tmp_path / "new" / "picture.png"
    save_png(Image.fromarray(pixels), path)
    with Image.open(path) as image:
        assert image.mode == ("RGB" if colors > 256 else "P")
        assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert os.listdir(path.parent) == ["picture.png"]


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(Image.new("RGB", (4, 4)), tmp_path / "picture.png")
    assert os.listdir(tmp_path) == []


def test_imports_no_torch():
    code = "import sys, megatron_pixel.drawing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
