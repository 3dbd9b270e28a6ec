"""The atlas: sprites of all glyphs met so far, in the memory layout of a page."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import freetype
import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.rendering.blit import (
    ABSENT,
    BEARING,
    COLOR,
    GLYPH_TABLE_ROWS,
    GRAY,
    HIGH,
    LIFTED,
    LOW,
    PLAIN,
    SPRITE_GLYPH,
    SPRITE_ROWS,
    SPRITE_UP,
    WIDTH,
    split_keys,
)
from megatron_pixel.rendering.emoji import ColorPainter
from megatron_pixel.rendering.fonts import FontFile
from megatron_pixel.rendering.page import luma

# Light hinting moves outlines vertically only, as Pango-Cairo does by default.
_LOAD = freetype.FT_LOAD_TARGET_LIGHT
# Letters are squeezed into the strip down to this part of their height; what is still taller is cut.
_LOWEST = 0.25


class _Growing:
    """int32 or uint8 [rows, n] whose n grows at the end."""

    def __init__(self, rows: int, dtype: type) -> None:
        self.used = 0
        self.data: np.ndarray = np.zeros((rows, 1024), dtype=dtype)

    def add(self, values: np.ndarray) -> int:
        """Append [rows, k]; returns the place of the first."""
        first = self.used
        self.used += values.shape[1]
        if self.used > self.data.shape[1]:
            grown = np.zeros((len(self.data), max(2 * self.data.shape[1], self.used)), dtype=self.data.dtype)
            grown[:, :first] = self.data[:, :first]
            self.data = grown
        self.data[:, first : self.used] = values
        return first


@dataclass(frozen=True)
class SpriteCells:
    """Sprites as :func:`~megatron_pixel.rendering.blit.draw_sprites` takes them; k of them."""

    first: np.ndarray
    """int32 [k]: first column in ``ink``, negative for sprites that have color (and pages of mode ``rgb``)."""
    color_first: np.ndarray
    """int32 [k]: first column in ``color_ink``, negative for sprites without color."""
    width: np.ndarray
    """int32 [k]: columns."""
    bearing: np.ndarray
    """int32 [k]: columns from the pen to the first one."""
    ink: np.ndarray
    """uint8 [columns * P]."""
    color_ink: np.ndarray
    """uint8 [columns * P * 3]."""


class Atlas:
    """Sprites of the glyphs of a font chain at one size; see :mod:`megatron_pixel.rendering.blit` for the tables."""

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
        in_color: bool,
    ) -> None:
        """``fit``: letters too tall for the strip are squeezed, marks beyond its edge are moved to it; otherwise both
        are cut. ``in_color``: color glyphs have color cells, otherwise gray ones."""
        self._fonts = fonts
        self._first_glyph = first_glyph  # int64 [fonts + 1]
        self._color_font = color_font
        self._points = points
        self._dpi = dpi
        self._size = patch_size
        self._baseline = baseline
        self._fit = fit
        self._in_color = in_color
        self._faces: dict[int, freetype.Face] = {}
        self._painter: ColorPainter | None = None
        self.table = np.zeros((GLYPH_TABLE_ROWS, int(first_glyph[-1])), dtype=np.int32)
        self.table[[PLAIN, LIFTED]] = ABSENT
        self._lifted = _Growing(1, np.int32)
        self._sprites = _Growing(SPRITE_ROWS, np.int32)
        self._ink = _Growing(1, np.uint8)
        self._color_ink = _Growing(1, np.uint8)

    @property
    def sprites(self) -> np.ndarray:
        """int32 [6, room]: the table of sprites."""
        return self._sprites.data

    @property
    def lifted(self) -> np.ndarray:
        """int32 [room]: sprites of glyphs off the baseline."""
        return self._lifted.data[0]

    @property
    def ink(self) -> np.ndarray:
        """uint8: columns of all gray cells, P bytes each."""
        return self._ink.data[0]

    @property
    def color_ink(self) -> np.ndarray:
        """uint8: columns of all color cells, 3 P bytes each."""
        return self._color_ink.data[0]

    def sprite(self, glyph: int, up: int) -> int:
        """The sprite of a glyph that stands ``up`` pixels above the baseline, made where there is none yet."""
        table = self.table[:, glyph]
        if up == 0:
            if table[PLAIN] == ABSENT:
                table[PLAIN] = self._make(glyph)
            return int(table[PLAIN])
        if table[LIFTED] == ABSENT:
            self._measure(glyph)
        low, high = int(table[LOW]), int(table[HIGH])
        up = min(max(up, low), high)
        place = int(table[LIFTED]) + up - low
        if self.lifted[place] == ABSENT:
            self.lifted[place] = self._make_lifted(glyph, up)
        return int(self.lifted[place])

    def cells(self, keys: np.ndarray) -> SpriteCells:
        """The sprites of these keys, by themselves."""
        glyphs, heights = split_keys(keys)
        numbers = [self.sprite(glyph, up) for glyph, up in zip(glyphs.tolist(), heights.tolist(), strict=True)]
        chosen = self.sprites[:, numbers]
        first, ink = self._cut_out(chosen[GRAY], chosen[WIDTH], self.ink, self._size)
        color_first, color_ink = self._cut_out(chosen[COLOR], chosen[WIDTH], self.color_ink, 3 * self._size)
        return SpriteCells(first, color_first, chosen[WIDTH], chosen[BEARING], ink, color_ink)

    def _cut_out(
        self, first: np.ndarray, width: np.ndarray, ink: np.ndarray, line: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Copies of the cells that are there, one after the other, and the first column of each."""
        there = first >= 0
        columns = np.where(there, width, 0)
        parts = [ink[at * line : (at + count) * line] for at, count in zip(first[there], width[there], strict=True)]
        places = np.where(there, np.cumsum(columns) - columns, ABSENT).astype(np.int32)
        return places, np.concatenate([np.empty(0, dtype=np.uint8), *parts])

    def _make(self, glyph: int) -> int:
        """A sprite on the baseline."""
        font, number = self._font_of(glyph)
        if font == self._color_font:
            columns, left = self._paint(number)
            return self._add(glyph, 0, columns if self._in_color else luma(columns), left)
        bitmap, left, top = self._draw(font, number)
        return self._add(glyph, 0, _fit(bitmap, self._baseline - top, self._size), left)

    def _make_lifted(self, glyph: int, up: int) -> int:
        bitmap, left, top = self._draw(*self._font_of(glyph), lifted=True)
        # Height 0 means the sprite on the baseline, which may be squeezed. This one gets a height that leads back here.
        name = up or (1 if self.table[HIGH, glyph] == 0 else -1)
        return self._add(glyph, name, _fit(bitmap, self._baseline - top - up, self._size), left)

    def _measure(self, glyph: int) -> None:
        """Find between which heights a mark is moved: so far that it is whole, or else that it is out of sight."""
        font, number = self._font_of(glyph)
        sprite = ABSENT
        low, high = -2 * self._size, 2 * self._size
        if font == self._color_font:
            low = high = 0
            sprite = self.sprite(glyph, 0)
        elif self._fit:
            bitmap, _, top = self._draw(font, number, lifted=True)
            high = self._baseline - top
            low = min(self._baseline - self._size - top + len(bitmap), high)
            if not len(bitmap):
                low = high = 0
                sprite = self.sprite(glyph, 0)
        self.table[LOW, glyph], self.table[HIGH, glyph] = low, high
        self.table[LIFTED, glyph] = self._lifted.add(np.full((1, high - low + 1), sprite, dtype=np.int32))

    def _add(self, glyph: int, up: int, columns: np.ndarray, left: int) -> int:
        """A new sprite from its columns, uint8 [width, P] or [width, P, 3]."""
        sprite = np.full((SPRITE_ROWS, 1), ABSENT, dtype=np.int32)
        sprite[[WIDTH, BEARING, SPRITE_GLYPH, SPRITE_UP], 0] = len(columns), left, glyph, up
        if len(columns):
            row, cells = (GRAY, self._ink) if columns.ndim == 2 else (COLOR, self._color_ink)
            sprite[row] = cells.add(255 - columns.reshape(1, -1)) // columns[0].size
        return self._sprites.add(sprite)

    def _font_of(self, glyph: int) -> tuple[int, int]:
        """Font of a glyph, and its number there."""
        font = int(np.searchsorted(self._first_glyph, glyph, side="right")) - 1
        return font, glyph - int(self._first_glyph[font])

    def _paint(self, number: int) -> tuple[np.ndarray, int]:
        """The columns of a color glyph, uint8 [width, P, 3], and its left edge."""
        if self._painter is None:
            self._painter = ColorPainter(self._fonts[self._color_font], self._points * self._dpi / 72)
        painter = self._painter
        # The em box stands in the middle of the patch, not on the baseline: emoji are as tall as a patch.
        shift = (painter.ascender + painter.descender - 2 * self._baseline + self._size) / 2
        bitmap, left, top = painter.glyph(number, shift)
        return _fit(bitmap, self._baseline - top, self._size), left

    def _draw(self, font: int, glyph: int, lifted: bool = False) -> tuple[np.ndarray, int, int]:
        """The bitmap of an outline (uint8 [height, width], 255 white), its left edge and the height of its top.

        If letters are to fit, an outline that reaches beyond the strip is squeezed into it: what is above the baseline
        by one factor, what is below by another, so that the letter keeps standing on the baseline. One that is
        ``lifted`` off it only has to be no taller than the strip.
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
            if self._fit and slot.format == freetype.FT_GLYPH_FORMAT_OUTLINE:
                if lifted:
                    _shorten(slot.outline, self._size * 64)
                else:
                    _squeeze(slot.outline, self._baseline * 64, (self._size - self._baseline) * 64)
            slot.render(freetype.FT_RENDER_MODE_NORMAL)
        except freetype.FT_Exception:
            return np.zeros((0, 0), dtype=np.uint8), 0, 0  # a broken outline is drawn as nothing
        bitmap = slot.bitmap
        if not bitmap.rows or not bitmap.width:
            return np.zeros((0, 0), dtype=np.uint8), 0, 0
        # Copied as a block: the package's own way makes a list of numbers.
        data = ctypes.string_at(bitmap._FT_Bitmap.buffer, bitmap.rows * bitmap.pitch)
        ink = np.frombuffer(data, dtype=np.uint8).reshape(bitmap.rows, bitmap.pitch)[:, : bitmap.width]
        return 255 - ink, slot.bitmap_left, slot.bitmap_top


def _squeeze(outline: freetype.Outline, above: int, below: int) -> None:
    """Scale an outline that reaches noticeably further than ``above`` and ``below`` the baseline, in 1/64 pixel."""
    box = outline.get_bbox()
    tolerance = (above + below) // 64  # a quarter of a pixel in 16: nothing of an umlaut's dots is missed
    up = max(above / box.yMax, _LOWEST) if box.yMax > above + tolerance else 1.0
    down = max(below / -box.yMin, _LOWEST) if -box.yMin > below + tolerance else 1.0
    if up != 1.0 or down != 1.0:
        _change_heights(outline, lambda y: int(y * (up if y > 0 else down)))


def _shorten(outline: freetype.Outline, height: int) -> None:
    """Scale an outline whose bitmap is taller than ``height`` to just that, in 1/64 pixel and whole pixels."""
    box = outline.get_bbox()
    bottom = box.yMin & -64
    if ((box.yMax + 63) & -64) - bottom > height:
        factor = min(height / (box.yMax - box.yMin), 1.0)
        _change_heights(outline, lambda y: bottom + int((y - box.yMin) * factor))


def _change_heights(outline: freetype.Outline, change: Callable[[int], int]) -> None:
    raw = outline._FT_Outline
    for i in range(raw.n_points):
        raw.points[i].y = change(raw.points[i].y)


def _fit(bitmap: np.ndarray, top: int, height: int) -> np.ndarray:
    """Columns [width, height(, 3)] of a bitmap [rows, width(, 3)] whose first row stands at row ``top``."""
    rows = bitmap.shape[0]
    cell = np.full((height, *bitmap.shape[1:]), 255, dtype=np.uint8)
    first, last = max(top, 0), min(top + rows, height)
    if first < last:
        cell[first:last] = bitmap[first - top : last - top]
    return np.ascontiguousarray(cell.swapaxes(0, 1))
