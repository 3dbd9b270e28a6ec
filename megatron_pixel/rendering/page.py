"""One rendered page: a strip of square patches."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, eq=False, slots=True)
class Marks:
    """What stands where on a page: its glyphs, from which it can be drawn again."""

    glyphs: np.ndarray
    """int32 [3, k]: number of the glyph over all fonts of the chain, pixels that it stands above the baseline (0 for
    color), and the page column of its pen. Runs from left to right, segments one after the other; glyphs without ink
    (spaces) are here too, glyphs wholly outside their segment are not."""
    black: tuple[int, ...]
    """The black patches, one at the end of each segment. A segment begins after the black patch before it, and its
    glyphs are cut at its edges."""
    counts: tuple[int, ...]
    """Glyphs of each segment; together k."""


class Drawing(Protocol):
    """A page that is not drawn yet."""

    @property
    def has_color(self) -> bool:
        """Whether the columns will hold three channels."""

    def columns(self) -> np.ndarray:
        """Draw the columns of the page."""

    def marks(self) -> Marks:
        """What they show."""


class Page:
    """A strip of ``num_patches`` patches that shows ``text[start:end]`` of a document and ends in a black patch.

    The pages of a document tile it without gap or overlap. A page comes with its columns, or with a ``drawing`` that
    makes them when they are first asked for: who only measures or stores a text never draws it.
    """

    __slots__ = ("_columns", "_drawing", "_marks", "end", "num_patches", "patch_size", "start")

    def __init__(
        self,
        columns: np.ndarray | None,
        num_patches: int,
        start: int,
        end: int,
        patch_size: int,
        marks: Marks | None = None,
        drawing: Drawing | None = None,
    ) -> None:
        self._columns = columns
        self._marks = marks
        self._drawing = drawing
        self.num_patches = num_patches
        """Patches of the page, its black end patch included; 1 for empty text."""
        self.start = start
        """First character of the document that the page shows."""
        self.end = end
        """Character after the last one that the page shows."""
        self.patch_size = patch_size
        """Height and width P of a patch in pixels."""

    @property
    def columns(self) -> np.ndarray:
        """uint8 [n*P, P] (gray) or [n*P, P, 3] (the page holds color): one line per pixel column, from left to right,
        each from top to bottom; 0 is black, 255 white."""
        if self._columns is None:
            if self._drawing is None:
                raise ValueError("a page needs columns or a drawing")
            self._columns = self._drawing.columns()
        return self._columns

    @property
    def marks(self) -> Marks | None:
        """What the renderer drew; a page from elsewhere, known by its pixels alone, has none."""
        if self._marks is None and self._drawing is not None:
            self._marks = self._drawing.marks()
        return self._marks

    @property
    def has_color(self) -> bool:
        """Whether the columns hold three channels."""
        return self._drawing.has_color if self._drawing is not None else self.columns.ndim == 3

    def __reduce__(self) -> tuple[Any, ...]:
        # A drawing belongs to the renderer of its process.
        shown = self.num_patches, self.start, self.end, self.patch_size
        return Page, (self.columns, *shown, self.marks)

    def patches(self, num_channels: int, out: np.ndarray | None = None) -> np.ndarray:
        """Return the patches as uint8 [n, P, P, C] in row, column, channel order.

        ``num_channels`` is 1 (a page with color becomes its ITU-R 601 luma, as Pillow's mode ``L``) or 3 (RGB).
        ``out``, uint8 [at least n, P, P, C] and contiguous, receives them; its first n are returned.
        """
        # Compiled code: only who draws pages or reads stored ones imports numba.
        from megatron_pixel.rendering.expand import patches_from_columns

        if num_channels not in (1, 3):
            raise ValueError(f"a page has 1 or 3 channels, not {num_channels}")
        size = self.patch_size
        columns = self.columns
        if self.has_color and num_channels == 1:
            columns = luma(columns)
        if out is None:
            out = np.empty((self.num_patches, size, size, num_channels), dtype=np.uint8)
        patches_from_columns(columns, size, out[: self.num_patches])
        return out[: self.num_patches]


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma of uint8 [..., 3], rounded as Pillow does; equal channels keep their value."""
    red, green, blue = (rgb[..., channel].astype(np.uint32) for channel in range(3))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)
