"""Drawing: positioned glyphs become sprites on a page, and sprites become its pixel columns.

A sprite is a glyph at a height above the baseline, as it stands in the strip: a cell of columns from left to right,
each as tall as a patch, holding ink (255 - value). A page lies in memory in the same order, so drawing a sprite is one
pass over a stretch of bytes. Ink adds up until it is black, as in Cairo, so the order of drawing does not matter.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from megatron_pixel.rendering.shaping import COUNT, FIRST, PLACE
from megatron_pixel.rendering.words import GLYPH, X, Y

ABSENT = -1
# Rows of the int32 table of sprites: first column in the gray cells and in the color cells (ABSENT where it has none),
# width, distance from the pen to the first column; the glyph and its height that it stands for.
GRAY, COLOR, WIDTH, BEARING, SPRITE_GLYPH, SPRITE_UP = range(6)
SPRITE_ROWS = 6
# Rows of the int32 table of glyphs: the sprite that stands on the baseline; for the others, the lowest and the highest
# place that a mark may take and where the list of its sprites begins, from low to high (ABSENT before it is measured).
PLAIN, LOW, HIGH, LIFTED = range(4)
GLYPH_TABLE_ROWS = 4


def make_darken(width: int) -> Callable[[int, int], None]:
    """A function for compiled code that takes ``width`` bytes of ink off as many bytes of paper, at two addresses.

    It checks nothing.
    """
    vector = ir.VectorType(ir.IntType(8), width)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        paper, ink = (builder.inttoptr(value, vector.as_pointer()) for value in values)
        kind = ir.FunctionType(vector, [vector, vector])
        saturating = cgutils.get_or_insert_function(builder.module, kind, f"llvm.usub.sat.v{width}i8")
        darker = builder.call(saturating, [builder.load(paper, align=1), builder.load(ink, align=1)])
        builder.store(darker, paper, align=1)
        return context.get_dummy_value()

    @intrinsic
    def darken(typing_context, paper, ink):  # type: ignore[no-untyped-def]
        return types.void(types.int64, types.int64), generate

    return darken


_darken_16, _darken_4, _darken_1 = make_darken(16), make_darken(4), make_darken(1)


@njit(cache=True, nogil=True)
def draw_sprites(
    page: np.ndarray,
    line: int,
    left: int,
    right: int,
    sprites: np.ndarray,
    x: np.ndarray,
    first: np.ndarray,
    width: np.ndarray,
    bearing: np.ndarray,
    ink: np.ndarray,
) -> None:
    """Draw ``sprites`` (int32 [k]), their pens at the page columns ``x`` (int32 [k]), cut at ``left`` and ``right``.

    ``page``: uint8, columns of ``line`` bytes (P, in color 3 P), 255 where white; ``0 <= left``, and ``right`` columns
    lie within it. ``ink``: uint8, columns of the same kind; sprite s has ``width[s]`` of them from ``first[s]`` on
    (negative: nothing to draw), and they stand ``bearing[s]`` columns right of its pen.
    """
    paper, cells = page.ctypes.data, ink.ctypes.data
    for k in range(len(sprites)):
        sprite = sprites[k]
        if first[sprite] < 0:
            continue
        start = np.int64(x[k]) + bearing[sprite]
        begin, end = max(left - start, 0), min(right - start, np.int64(width[sprite]))
        target = paper + (start + begin) * line
        source = cells + (first[sprite] + begin) * line
        rest = (end - begin) * line
        while rest >= 16:
            _darken_16(target, source)
            target += 16
            source += 16
            rest -= 16
        while rest >= 4:
            _darken_4(target, source)
            target += 4
            source += 4
            rest -= 4
        while rest > 0:
            _darken_1(target, source)
            target += 1
            source += 1
            rest -= 1


@njit(cache=True, nogil=True)
def choose_sprites(
    left: int,
    right: int,
    origin: int,
    glyphs: np.ndarray,
    runs: np.ndarray,
    order: np.ndarray,
    table: np.ndarray,
    lifted: np.ndarray,
    sprites: np.ndarray,
    chosen: np.ndarray,
    missing: np.ndarray,
) -> tuple[int, int, bool]:
    """Fill ``chosen`` (int32 [2, room]) with the sprites of a text and the page columns of their pens.

    ``origin`` is the column where the text begins; sprites wholly outside ``left`` to ``right`` are left out; runs
    come in ``order``. ``table``, ``lifted``, ``sprites``: see :class:`~megatron_pixel.rendering.atlas.Atlas`. Lists
    glyphs that have no sprite yet with their height in ``missing`` (int32 [room, 2]); as long as there are any, the
    caller makes them and calls again. Returns how many are chosen, how many missing, and whether any shows color.
    """
    count, absent = 0, 0
    has_color = False
    for r in order:
        start = origin + runs[r, PLACE]
        for k in range(runs[r, FIRST], runs[r, FIRST] + runs[r, COUNT]):
            glyph, up = glyphs[k, GLYPH], glyphs[k, Y]
            if up == 0:
                sprite = table[PLAIN, glyph]
            elif table[LIFTED, glyph] == ABSENT:
                sprite = np.int32(ABSENT)
            else:
                low, high = table[LOW, glyph], table[HIGH, glyph]
                sprite = lifted[table[LIFTED, glyph] + min(max(up, low), high) - low]
            if sprite == ABSENT:
                if absent < len(missing):
                    missing[absent, 0] = glyph
                    missing[absent, 1] = up
                    absent += 1
                continue
            pen = start + glyphs[k, X]
            first = pen + sprites[BEARING, sprite]
            last = first + sprites[WIDTH, sprite]
            if first >= right or last < left:
                continue
            has_color |= sprites[COLOR, sprite] != ABSENT and last > left
            chosen[0, count] = sprite
            chosen[1, count] = pen
            count += 1
    return count, absent, has_color


def sprite_keys(glyphs: np.ndarray, up: np.ndarray) -> np.ndarray:
    """int64 [k]: one number for each pair of a glyph and its height (both int [k]), sorted by glyph, then height."""
    return (glyphs.astype(np.int64) << 16) + (up.astype(np.int64) + 0x8000)


def split_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The converse of :func:`sprite_keys`: glyphs and heights, int32 [k] each."""
    return (keys >> 16).astype(np.int32), ((keys & 0xFFFF) - 0x8000).astype(np.int32)
