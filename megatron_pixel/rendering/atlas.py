"""The atlas: bitmaps of all glyphs met so far, in the memory layout of a page."""

import freetype
import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.rendering.blit import (
    ABSENT,
    BOTTOM,
    CELL,
    COLOR,
    LEFT,
    TABLE_ROWS,
    TALL,
    TALL_PATCHES,
    TOP,
    WIDTH,
)
from megatron_pixel.rendering.emoji import ColorPainter
from megatron_pixel.rendering.fonts import FontFile
from megatron_pixel.rendering.page import luma

# Light hinting moves outlines vertically only, as Pango-Cairo does by default.
_LOAD = freetype.FT_LOAD_TARGET_LIGHT
# Letters are squeezed into the strip down to this part of their height; what is still taller is cut.
_LOWEST = 0.5


class _Columns:
    """Columns of bytes that grow at the end."""

    def __init__(self, line: int) -> None:
        self._line = line
        self.used = 0
        self.data = np.full(line * 1024, 255, dtype=np.uint8)

    def add(self, columns: np.ndarray) -> int:
        """Append uint8 [n, line bytes]; returns the number of the first."""
        first = self.used
        needed = (first + len(columns)) * self._line
        if needed > len(self.data):
            grown = np.full(max(2 * len(self.data), needed), 255, dtype=np.uint8)
            grown[: first * self._line] = self.data[: first * self._line]
            self.data = grown
        self.data[first * self._line : needed] = columns.ravel()
        self.used += len(columns)
        return first


class Atlas:
    """Bitmaps of the glyphs of a font chain at one size; see :mod:`megatron_pixel.rendering.blit` for their layout."""

    def __init__(
        self,
        fonts: list[FontFile],
        first_glyph: np.ndarray,
        color_font: int,
        points: float,
        dpi: int,
        patch_size: int,
        baseline: int,
        fit: bool,
    ) -> None:
        self._fonts = fonts
        self._first_glyph = first_glyph  # int64 [fonts + 1]
        self._color_font = color_font
        self._points = points
        self._dpi = dpi
        self._size = patch_size
        self._baseline = baseline
        self._fit = fit
        self._faces: dict[int, freetype.Face] = {}
        self._painter: ColorPainter | None = None
        self.table = np.zeros((TABLE_ROWS, int(first_glyph[-1])), dtype=np.int32)
        self.table[[CELL, TALL, COLOR]] = ABSENT
        self._cells = _Columns(patch_size)
        self._tall = _Columns(patch_size * TALL_PATCHES)
        self._color = _Columns(patch_size * 3)

    @property
    def cells(self) -> np.ndarray:
        """uint8: columns of all cells, each as tall as a patch."""
        return self._cells.data

    @property
    def tall_cells(self) -> np.ndarray:
        """uint8: columns of all tall cells."""
        return self._tall.data

    @property
    def color_cells(self) -> np.ndarray:
        """uint8: columns of all color cells, three channels a pixel."""
        return self._color.data

    def load(self, glyph: int, kind: int) -> None:
        """Draw a glyph and store it as a cell (``kind`` CELL) or a tall cell (TALL)."""
        font = int(np.searchsorted(self._first_glyph, glyph, side="right")) - 1
        number = glyph - int(self._first_glyph[font])
        if font == self._color_font:
            self._load_color(glyph, number)
            return
        bitmap, left, top = self._draw(font, number, fit=self._fit and kind == CELL)
        self.table[WIDTH, glyph] = bitmap.shape[1]
        self.table[LEFT, glyph] = left
        margin = self._size if kind == TALL else 0
        height = self._size + 2 * margin
        columns = _fit(bitmap, self._baseline + margin - top, height)
        if kind == TALL:
            self.table[TOP, glyph] = top
            self.table[BOTTOM, glyph] = top - bitmap.shape[0]
        self.table[kind, glyph] = (self._tall if kind == TALL else self._cells).add(columns)

    def _load_color(self, glyph: int, number: int) -> None:
        if self._painter is None:
            self._painter = ColorPainter(self._fonts[self._color_font], self._points * self._dpi / 72)
        painter = self._painter
        # The em box stands in the middle of the patch, not on the baseline: emoji are as tall as a patch.
        shift = (painter.ascender + painter.descender - 2 * self._baseline + self._size) / 2
        bitmap, left, top = painter.glyph(number, shift)
        columns = _fit(bitmap, self._baseline - top, self._size)
        self.table[WIDTH, glyph] = bitmap.shape[1]
        self.table[LEFT, glyph] = left
        self.table[CELL, glyph] = self.table[TALL, glyph] = self._cells.add(luma(columns))
        if len(columns):
            self.table[COLOR, glyph] = self._color.add(columns.reshape(len(columns), -1))

    def _draw(self, font: int, glyph: int, fit: bool) -> tuple[np.ndarray, int, int]:
        """The bitmap of an outline (uint8 [height, width], 255 white), its left edge and the height of its top.

        With ``fit``, an outline that reaches beyond the strip is squeezed into it: what is above the baseline by one
        factor, what is below by another, so that the letter keeps standing on the baseline.
        """
        face = self._faces.get(font)
        if face is None:
            file = self._fonts[font]
            try:
                face = freetype.Face(str(file.path), file.index)
                size = self._points * 64
                face.set_char_size(round(size), round(size * file.height), self._dpi, self._dpi)
            except freetype.FT_Exception as error:
                raise UserError(f"{file.path}: not a font that FreeType can draw with ({error})") from None
            self._faces[font] = face
        try:
            face.load_glyph(glyph, _LOAD)
            slot = face.glyph
            if fit:
                _squeeze(slot, self._baseline * 64, (self._size - self._baseline) * 64)
            slot.render(freetype.FT_RENDER_MODE_NORMAL)
        except freetype.FT_Exception:
            return np.zeros((0, 0), dtype=np.uint8), 0, 0  # a broken outline is drawn as nothing
        bitmap = slot.bitmap
        if not bitmap.rows or not bitmap.width:
            return np.zeros((0, 0), dtype=np.uint8), 0, 0
        ink = np.array(bitmap.buffer, dtype=np.uint8).reshape(bitmap.rows, bitmap.pitch)[:, : bitmap.width]
        return 255 - ink, slot.bitmap_left, slot.bitmap_top


def _squeeze(slot: freetype.GlyphSlot, above: int, below: int) -> None:
    """Scale an outline that reaches noticeably further than ``above`` and ``below`` the baseline, in 1/64 pixel."""
    if slot.format != freetype.FT_GLYPH_FORMAT_OUTLINE:
        return
    box = slot.outline.get_bbox()
    tolerance = (above + below) // 64  # a quarter of a pixel in 16: nothing of an umlaut's dots is missed
    up = max(above / box.yMax, _LOWEST) if box.yMax > above + tolerance else 1.0
    down = max(below / -box.yMin, _LOWEST) if -box.yMin > below + tolerance else 1.0
    if up == down == 1.0:
        return
    raw = slot.outline._FT_Outline
    for i in range(raw.n_points):
        point = raw.points[i]
        point.y = int(point.y * (up if point.y > 0 else down))


def _fit(bitmap: np.ndarray, top: int, height: int) -> np.ndarray:
    """Columns [width, height(, 3)] of a bitmap [rows, width(, 3)] whose first row stands at row ``top``."""
    rows = bitmap.shape[0]
    cell = np.full((height, *bitmap.shape[1:]), 255, dtype=np.uint8)
    first, last = max(top, 0), min(top + rows, height)
    if first < last:
        cell[first:last] = bitmap[first - top : last - top]
    return np.ascontiguousarray(cell.swapaxes(0, 1))
