"""What a model makes of a page: what its patches look at, and how its predictions change while it learns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from megatron_pixel.drawing import (
    FAINT_INK,
    LABEL_SIZE,
    NO_TARGET,
    TEACHER_FORCING_NOTE,
    Sheet,
    error_limit_of,
    gutter_width,
    hatched_patch,
    heat_colors,
    wrap_rows,
)

MAP_SIZE = 640
"""Pixels of a side of an attention map, about: a whole number for each patch, or of patches for each pixel."""
LEAST, MOST = 0.25, 16.0
"""Attention at both ends of the colors, in multiples of an even look at all patches so far."""
ATTENTION_NOTE = (
    "Each line of the map is a patch, each column one that it looks at, mean over the heads. Colors are on a "
    f"logarithmic scale of multiples of an even look at all patches so far, from {LEAST:g} to {MOST:g}."
)


def relative_attention(attention: np.ndarray) -> np.ndarray:
    """Attention [n, n] in multiples of an even look at the patches so far: line i times i + 1; 0 above the diagonal."""
    counts = np.arange(1, len(attention) + 1, dtype=np.float32)[:, None]
    return np.tril(attention.astype(np.float32)) * counts


def attention_sheet(
    patches: np.ndarray, attention: np.ndarray, title: str = "", caption: str = "", patches_per_row: int = 48
) -> Image.Image:
    """The page with how much each of its patches is looked at, and below it the whole map.

    Args:
        patches: uint8 [n, P, P, C].
        attention: float [n, n], what patch i (row) looks at; rows sum to 1.
        title, caption: said above.
        patches_per_row: patches in a row of the picture.

    Raises:
        ValueError: the map is of another number of patches.
    """
    if attention.shape != (len(patches), len(patches)):
        raise ValueError(f"an attention map of {attention.shape} for {len(patches)} patches")
    relative = relative_attention(attention)
    behind = np.arange(len(patches), 0, -1, dtype=np.float32)
    size = patches.shape[1]
    seen = heat_colors(_scaled(relative.sum(0) / behind), 1.0)[:, None, None, :]
    seen = np.broadcast_to(seen, (len(patches), max(size // 2, 6), size, 3))
    gutter = gutter_width([f"patch {max(len(patches) - 1, 0)}", "looked at"])
    columns = max(min(patches_per_row, len(patches)), 1)
    sheet = Sheet(max(gutter + columns * size, MAP_SIZE), title, caption)
    sheet.space(12)
    for index, (page_row, seen_row) in enumerate(
        zip(wrap_rows(patches, patches_per_row), wrap_rows(seen, patches_per_row), strict=True)
    ):
        sheet.strip(page_row, 1, gutter, f"patch {index * patches_per_row}")
        sheet.strip(seen_row, 1, gutter, "looked at")
        sheet.space(8)
    sheet.space(4)
    sheet.strip(_map(relative), 1, gutter, "map")
    sheet.space(6)
    sheet.text(ATTENTION_NOTE, LABEL_SIZE, FAINT_INK)
    return sheet.image()


@dataclass(frozen=True)
class Moment:
    """What was predicted for a page at one time of the training."""

    label: str
    predictions: np.ndarray
    """float or uint8 [n, P, P, C], pixels 0..255."""
    errors: np.ndarray
    """float [n], NaN where there is no target."""


def history_sheet(
    patches: np.ndarray,
    moments: Sequence[Moment],
    title: str = "",
    caption: str = "",
    patches_per_row: int = 48,
    scale: int = 1,
    normalised: bool = True,
) -> Image.Image:
    """A page, below each of its rows what was predicted for it at several moments, each with its errors.

    Errors of all moments share one scale, so a page that is learnt grows lighter downwards.

    Args:
        patches: uint8 [n, P, P, C], the true page.
        moments: in the order of time.
        normalised: whether the predictions borrow brightness from the true page, for the note.
    """
    errors = np.concatenate([moment.errors[np.isfinite(moment.errors)] for moment in moments])
    limit = error_limit_of(errors)
    size = patches.shape[1]
    height = max(size // 4, 3)
    strips = []
    for moment in moments:
        known = np.isfinite(moment.errors)
        shown = np.clip(np.nan_to_num(moment.predictions), 0, 255).round().astype(np.uint8)
        shown = np.broadcast_to(shown, (*shown.shape[:-1], 3)).copy()
        shown[~known] = hatched_patch(size)
        heat = heat_colors(moment.errors, limit)[:, None, None, :]
        heat[~known] = NO_TARGET
        heat = np.broadcast_to(heat, (len(patches), height, size, 3))
        strips.append((moment.label, wrap_rows(np.concatenate([shown, heat], axis=1), patches_per_row)))
    gutter = gutter_width([f"patch {max(len(patches) - 1, 0)}", *(moment.label for moment in moments)])
    columns = max(min(patches_per_row, len(patches)), 1)
    sheet = Sheet(gutter + columns * size * scale, title, caption)
    sheet.space(8)
    for index, row in enumerate(wrap_rows(patches, patches_per_row)):
        sheet.strip(row, scale, gutter, f"patch {index * patches_per_row}")
        for label, rows in strips:
            sheet.strip(rows[index], scale, gutter, label)
        sheet.space(12)
    sheet.color_bar(limit, "squared error per patch", "no target")
    if normalised:
        sheet.space(6)
        sheet.text(TEACHER_FORCING_NOTE, LABEL_SIZE, FAINT_INK)
    return sheet.image()


def _scaled(relative: np.ndarray) -> np.ndarray:
    """0 at ``LEAST`` and below, 1 at ``MOST``, logarithmically between."""
    bounded = np.clip(relative, LEAST, MOST)
    return np.log(bounded / LEAST) / np.log(MOST / LEAST)


def _map(relative: np.ndarray) -> np.ndarray:
    """The map as a picture, uint8 [side, side, 3]: patches are squares, or several are one pixel, by the largest."""
    n = len(relative)
    merged = -(-n // MAP_SIZE)
    padded = np.pad(relative, (0, -n % merged))
    blocks = padded.reshape(len(padded) // merged, merged, -1, merged).max(axis=(1, 3))
    colors = heat_colors(_scaled(blocks).ravel(), 1.0).reshape(*blocks.shape, 3)
    rows, columns = np.indices(blocks.shape)
    colors[columns > rows] = NO_TARGET
    each = max(1, MAP_SIZE // len(blocks))
    return colors.repeat(each, axis=0).repeat(each, axis=1)
