"""Pages, predictions and errors as pictures: the one drawing code of TensorBoard, the data tools and the reports.

A page is a strip of patches, too long for a screen: every picture wraps it into rows, to be read from left to right
and from top to bottom. Arrays of patches are uint8 [n, P, P, C] in row, column, channel order with C = 1 or 3.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GROUND: Color = (250, 250, 249)
INK: Color = (38, 38, 42)
FAINT_INK: Color = (120, 120, 126)
EDGE: Color = (222, 222, 222)
NO_TARGET: Color = (236, 236, 238)
# From no error to a large one; each step darker than the last, so that the scale survives a gray print.
HEAT_STOPS: tuple[Color, ...] = (
    (255, 252, 240),
    (254, 224, 144),
    (250, 164, 92),
    (222, 82, 76),
    (140, 28, 84),
    (50, 8, 58),
)

MARGIN = 28
TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 20, 14, 12
LINE_SPACING = 1.4

TEACHER_FORCING_NOTE = (
    "Predictions of normalized patches are shown with the mean and the standard deviation of the true patch, "
    "and every prediction saw the true patches before it (teacher forcing)."
)
RAW_NOTE = "Every prediction saw the true patches before it (teacher forcing)."


@dataclass(frozen=True)
class Panel:
    """One page on a sheet: its patches, uint8 [n, P, P, C], and a caption above them."""

    patches: np.ndarray
    caption: str = ""


def unnormalise(prediction: np.ndarray, reference_patch: np.ndarray) -> np.ndarray:
    """Map predicted normalized patches back to pixel values.

    A normalized target is ``(x - mean) / sqrt(var + 1e-6)`` over all values of a patch of pixels in 0..1 (the variance
    unbiased), so a prediction alone has no brightness and no contrast. Both are taken from the true patch, as
    in teacher forcing: what is seen is the predicted *shape*. A picture made this way should say so
    (:data:`TEACHER_FORCING_NOTE`).

    Args:
        prediction: float [n, d] or [n, P, P, C].
        reference_patch: uint8, the true patches, as many values a patch.

    Returns:
        float32 of the shape of ``reference_patch``, on the scale 0..255, not clipped.
    """
    reference = reference_patch.reshape(len(reference_patch), -1).astype(np.float32) / 255
    mean = reference.mean(axis=1, keepdims=True)
    deviation = np.sqrt(reference.var(axis=1, ddof=1, keepdims=True) + 1e-6)
    pixels = (prediction.reshape(reference.shape).astype(np.float32) * deviation + mean) * 255
    return pixels.reshape(reference_patch.shape)


def predicted_pixels(
    prediction: np.ndarray, patches: np.ndarray, patch_target: Literal["normalised", "raw"]
) -> np.ndarray:
    """Outputs of the pixel head, float [n, d], as float32 pixels 0..255 of the shape of the true ``patches``."""
    if patch_target == "normalised":
        return unnormalise(prediction, patches)
    return prediction.reshape(patches.shape).astype(np.float32) * 255


def strip_to_rows(
    patches: np.ndarray, patches_per_row: int = 64, gap: int = 4, ground: Color = (255, 255, 255)
) -> np.ndarray:
    """Wrap a strip into rows: uint8 [height, width, 3], ``gap`` pixels of ``ground`` between rows and after the end."""
    rows = wrap_rows(patches, patches_per_row)
    size = patches.shape[1]
    width = min(len(patches), patches_per_row) * size
    picture = np.empty((max(len(rows) * (size + gap) - gap, 0), width, 3), dtype=np.uint8)
    picture[:] = ground
    for index, row in enumerate(rows):
        top = index * (size + gap)
        picture[top : top + size, : row.shape[1]] = row
    return picture


def page_sheet(
    panels: Sequence[Panel], title: str = "", caption: str = "", patches_per_row: int = 48, scale: int = 1
) -> Image.Image:
    """A contact sheet: pages below each other, each under its caption and wrapped into numbered rows."""
    size = max(panel.patches.shape[1] for panel in panels)
    longest = max(len(panel.patches) for panel in panels)
    gutter = gutter_width([str(max(longest - 1, 0))])
    columns = max(min(patches_per_row, longest), 1)
    sheet = Sheet(gutter + columns * size * scale, title, caption)
    for panel in panels:
        sheet.space(12)
        if panel.caption:
            sheet.text(panel.caption, TEXT_SIZE, INK)
            sheet.space(4)
        for index, row in enumerate(wrap_rows(panel.patches, patches_per_row)):
            sheet.strip(row, scale, gutter, str(index * patches_per_row))
            sheet.space(5)
    return sheet.image()


def prediction_sheet(
    patches: np.ndarray,
    predictions: np.ndarray,
    errors: np.ndarray,
    title: str = "",
    caption: str = "",
    patch_target: Literal["normalised", "raw"] = "normalised",
    patches_per_row: int = 48,
    scale: int = 2,
    error_limit: float | None = None,
) -> Image.Image:
    """A page, below each row what was predicted for it, and below that the error of each patch as a color.

    Args:
        patches: uint8 [n, P, P, C], the true page.
        predictions: float [n, P, P, C] in pixels 0..255 (:func:`predicted_pixels`), clipped here; entry i is the
            prediction *of* patch i.
        errors: float [n], the loss of each patch; NaN where there is no target, as at the first patch.
        title: one line or several.
        caption: said below the title; how the predictions were made is added at the foot.
        patch_target: what the head predicts, for that note.
        patches_per_row: patches in a row of the picture.
        scale: enlargement of the pixels.
        error_limit: error drawn in the darkest color; by default the 98th percentile, rounded up to two digits.

    Raises:
        ValueError: the three arrays do not hold the same number of patches.
    """
    if not len(patches) == len(predictions) == len(errors):
        raise ValueError(f"{len(patches)} patches, {len(predictions)} predictions, {len(errors)} errors: not as many")
    known = np.isfinite(errors)
    limit = error_limit_of(errors[known]) if error_limit is None else error_limit
    predicted = np.clip(np.nan_to_num(predictions), 0, 255).round().astype(np.uint8)
    if predicted.shape[-1] == 1:
        predicted = np.broadcast_to(predicted, (*predicted.shape[:-1], 3)).copy()
    predicted[~known] = hatched_patch(patches.shape[1])
    heat = heat_colors(errors, limit)[:, None, None, :]
    heat[~known] = NO_TARGET
    size = patches.shape[1]
    heat = np.broadcast_to(heat, (len(errors), max(size // 3, 4), size, 3))

    gutter = gutter_width([f"patch {max(len(patches) - 1, 0)}", "predicted", "error"])
    columns = max(min(patches_per_row, len(patches)), 1)
    sheet = Sheet(gutter + columns * size * scale, title, caption)
    sheet.space(12)
    rows = zip(*(wrap_rows(strip, patches_per_row) for strip in (patches, predicted, heat)), strict=True)
    for index, (page_row, predicted_row, heat_row) in enumerate(rows):
        sheet.strip(page_row, scale, gutter, f"patch {index * patches_per_row}")
        sheet.strip(predicted_row, scale, gutter, "predicted")
        sheet.strip(heat_row, scale, gutter, "error")
        sheet.space(12)
    sheet.color_bar(limit, "squared error per patch", "no target" if not known.all() else "")
    sheet.space(6)
    sheet.text(TEACHER_FORCING_NOTE if patch_target == "normalised" else RAW_NOTE, LABEL_SIZE, FAINT_INK)
    return sheet.image()


def save_png(image: Image.Image, path: str | Path) -> None:
    """Write a picture as a small PNG, whole or not at all; pictures of few colors get a palette."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = _with_palette(image)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            image.save(file, format="PNG", optimize=True)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            os.unlink(file.name)
            raise
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _with_palette(image: Image.Image) -> Image.Image:
    """The same picture with a palette, where it has at most 256 colors, in fewer bytes."""
    pixels = np.asarray(image.convert("RGB")).astype(np.uint32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    colors, indices = np.unique(packed, return_inverse=True)
    if len(colors) > 256:
        return image
    indexed = Image.fromarray(indices.reshape(packed.shape).astype(np.uint8), mode="L")
    indexed.putpalette(np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=-1).astype(np.uint8).tobytes())
    return indexed


def wrap_rows(patches: np.ndarray, patches_per_row: int) -> list[np.ndarray]:
    """[n, H, W, C] to a list of uint8 [H, k * W, 3], the last one as long as it is."""
    if patches_per_row < 1:
        raise ValueError(f"a row holds at least one patch, not {patches_per_row}")
    rows = []
    for start in range(0, len(patches), patches_per_row):
        row = np.concatenate(list(patches[start : start + patches_per_row]), axis=1)
        rows.append(np.broadcast_to(row, (*row.shape[:2], 3)))
    return rows


def error_limit_of(errors: np.ndarray) -> float:
    """Where the colors of errors end: their 98th percentile, rounded up to two digits."""
    high = float(np.percentile(errors, 98)) if len(errors) else 0.0
    if high <= 0:
        return 1.0
    step = 10.0 ** (np.floor(np.log10(high)) - 1)
    return float(np.ceil(high / step) * step)


def heat_colors(values: np.ndarray, limit: float) -> np.ndarray:
    """Colors, uint8 [n, 3], of values between 0 and ``limit``; NaN counts as 0."""
    position = np.clip(np.nan_to_num(values.astype(np.float64)) / limit, 0, 1) * (len(HEAT_STOPS) - 1)
    stops = np.array(HEAT_STOPS, dtype=np.float64)
    channels = [np.interp(position, np.arange(len(stops)), stops[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def hatched_patch(size: int) -> np.ndarray:
    """A patch that cannot be taken for one of a page: light gray with diagonal lines, uint8 [size, size, 3]."""
    rows, columns = np.indices((size, size))
    patch = np.empty((size, size, 3), dtype=np.uint8)
    patch[:] = NO_TARGET
    patch[(rows + columns) % 8 == 0] = (206, 206, 210)
    return patch


@lru_cache(maxsize=8)
def load_font(size: int) -> Font:
    """The font of captions and labels, ``size`` pixels high."""
    return ImageFont.load_default(size)


def gutter_width(labels: Sequence[str]) -> int:
    """Pixels that labels take at the left of their strips."""
    return int(max(load_font(LABEL_SIZE).getlength(label) for label in labels)) + 12


class Sheet:
    """A light page that grows downwards as things are put on it."""

    def __init__(self, content_width: int, title: str, caption: str):
        self._inner = max(content_width, 360)
        self._pieces: list[tuple[int, Image.Image]] = []  # (left, picture) stacked from the top
        self._height = MARGIN
        self._tops: list[int] = []
        for line in title.splitlines():
            self.text(line, TITLE_SIZE, INK)
        if caption:
            self.space(2)
            self.text(caption, TEXT_SIZE, FAINT_INK)

    def space(self, height: int) -> None:
        """Room below what is there."""
        self._height += height

    def _put(self, left: int, picture: Image.Image) -> None:
        self._pieces.append((MARGIN + left, picture))
        self._tops.append(self._height)
        self._height += picture.height

    def text(self, text: str, size: int, color: Color) -> None:
        """Text wrapped to the width of the sheet; its own line breaks are kept."""
        font = load_font(size)
        height = round(size * LINE_SPACING)
        for paragraph in text.splitlines():
            for line in wrap_text(paragraph, font, self._inner):
                picture = Image.new("RGB", (self._inner, height), GROUND)
                ImageDraw.Draw(picture).text((0, height // 2), line, fill=color, font=font, anchor="lm")
                self._put(0, picture)

    def strip(self, row: np.ndarray, scale: int, gutter: int, label: str) -> None:
        """One row of patches in a thin frame, its label in the margin at the left."""
        strip = Image.fromarray(np.ascontiguousarray(row))
        strip = strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST)
        font = load_font(LABEL_SIZE)
        picture = Image.new("RGB", (gutter + strip.width + 2, max(strip.height + 2, LABEL_SIZE + 2)), GROUND)
        draw = ImageDraw.Draw(picture)
        draw.rectangle((gutter - 1, 0, gutter + strip.width, strip.height + 1), fill=EDGE)
        picture.paste(strip, (gutter, 1))
        draw.text((gutter - 8, (strip.height + 2) // 2), label, fill=FAINT_INK, font=font, anchor="rm")
        self._put(0, picture)

    def color_bar(self, limit: float, label: str, no_target: str) -> None:
        """The scale of the errors, and what the hatched patches mean."""
        font = load_font(LABEL_SIZE)
        width, height = 200, 14
        picture = Image.new("RGB", (self._inner, height + 6), GROUND)
        draw = ImageDraw.Draw(picture)
        middle = (height + 6) // 2
        left = 0
        for text in (label, "0"):
            draw.text((left, middle), text, fill=INK, font=font, anchor="lm")
            left += int(font.getlength(text)) + 10
        bar = np.broadcast_to(heat_colors(np.linspace(0, 1, width), 1.0), (height, width, 3))
        draw.rectangle((left - 1, 2, left + width, height + 3), fill=EDGE)
        picture.paste(Image.fromarray(np.ascontiguousarray(bar)), (left, 3))
        left += width + 10
        most = f"{limit:.3g} and more"
        draw.text((left, middle), most, fill=INK, font=font, anchor="lm")
        if no_target:
            left += int(font.getlength(most)) + 30
            picture.paste(Image.fromarray(hatched_patch(height)), (left, 3))
            draw.text((left + height + 8, middle), no_target, fill=INK, font=font, anchor="lm")
        self._put(0, picture)

    def image(self) -> Image.Image:
        """The sheet with all that is on it."""
        image = Image.new("RGB", (self._inner + 2 * MARGIN, self._height + MARGIN), GROUND)
        for top, (left, picture) in zip(self._tops, self._pieces, strict=True):
            image.paste(picture, (left, top))
        return image


def wrap_text(text: str, font: Font, width: int) -> list[str]:
    """Lines of at most ``width`` pixels, cut at white space; a longer word has a line of its own."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
