"""Drawing: positioned glyphs become the pixel columns of a page.

A glyph bitmap is stored as a cell: its columns from left to right, each as tall as a patch, white where there is no
ink, with the baseline where the page has it. A page lies in memory in the same order, so drawing a glyph is one pass
over a stretch of bytes. Ink adds up until it is black, as in Cairo.
"""

import numpy as np
from numba import njit

from megatron_pixel.rendering.shaping import GLYPH, X, Y

# Rows of the int32 table of glyphs: first column in the atlas of cells (ABSENT before it is loaded), the same in the
# atlas of tall cells, first column in the atlas of color cells (ABSENT for glyphs without color), width, distance from
# the pen to the first column, and how far the ink of a tall cell reaches above and below (negative) the baseline.
CELL, TALL, COLOR, WIDTH, LEFT, TOP, BOTTOM = range(7)
TABLE_ROWS = 7
ABSENT, REQUESTED = -1, -2

# A tall cell holds a patch height more at the top and at the bottom, for glyphs that are moved off the baseline.
TALL_PATCHES = 3

ANYWHERE = -1  # as `baseline` of `draw`: moved glyphs may reach beyond the strip and are cut there


@njit(cache=True)
def _darken(paper: np.uint8, ink: np.uint8) -> np.uint8:
    value = np.int32(paper) + np.int32(ink) - 255
    return np.uint8(value if value > 0 else 0)


@njit(cache=True)
def find_missing(glyphs: np.ndarray, first: int, last: int, table: np.ndarray, missing: np.ndarray) -> int:
    """List glyphs among ``glyphs[:, first:last]`` that are not in the atlas: (number, CELL or TALL) in ``missing``.

    Marks them REQUESTED in the table; the caller loads them all. Returns how many there are, at most ``len(missing)``.
    """
    count = 0
    for k in range(first, last):
        glyph = glyphs[GLYPH, k]
        kind = CELL if glyphs[Y, k] == 0 or table[COLOR, glyph] >= 0 else TALL
        if table[kind, glyph] == ABSENT:
            if count == len(missing):
                break
            table[kind, glyph] = REQUESTED
            missing[count, 0] = glyph
            missing[count, 1] = kind
            count += 1
    return count


@njit(cache=True)
def draw(
    page: np.ndarray,
    size: int,
    baseline: int,
    left: int,
    right: int,
    origin: int,
    glyphs: np.ndarray,
    run_glyphs: np.ndarray,
    run_x: np.ndarray,
    table: np.ndarray,
    cells: np.ndarray,
    tall_cells: np.ndarray,
    skip_color: bool,
) -> bool:
    """Draw all runs into ``page`` (uint8 [columns * size]) between its columns ``left`` and ``right``.

    ``origin`` is the column where the text begins. Marks that would reach beyond the strip are moved to its edge, given
    the ``baseline`` (rows above it) or ANYWHERE. Returns whether the text has glyphs with color; with ``skip_color``
    those are left to :func:`draw_color`, otherwise they are drawn in gray.
    """
    has_color = False
    for r in range(len(run_x)):
        for k in range(run_glyphs[r], run_glyphs[r + 1]):
            glyph = glyphs[GLYPH, k]
            width = table[WIDTH, glyph]
            if width == 0:
                continue
            x = origin + run_x[r] + glyphs[X, k] + table[LEFT, glyph]
            first, last = max(left - x, 0), min(right - x, width)
            if first >= last:
                continue
            colored = table[COLOR, glyph] >= 0
            has_color |= colored
            if colored and skip_color:
                continue
            up = 0 if colored else glyphs[Y, k]
            to = (x + first) * size
            if up == 0:
                source = (table[CELL, glyph] + first) * size
                target = page[to : to + (last - first) * size]
                ink = cells[source : source + (last - first) * size]
                for i in range(len(target)):
                    target[i] = _darken(target[i], ink[i])
            else:
                if baseline != ANYWHERE:
                    up = min(max(up, baseline - size - table[BOTTOM, glyph]), baseline - table[TOP, glyph])
                # Rows of the tall cell that fall on the page when it is moved up by `up`.
                top = max(size + up, 0)
                bottom = min(2 * size + up, TALL_PATCHES * size)
                for column in range(last - first):
                    source = (table[TALL, glyph] + first + column) * TALL_PATCHES * size
                    for row in range(top, bottom):
                        i = to + column * size + row - size - up
                        page[i] = _darken(page[i], tall_cells[source + row])
    return has_color


@njit(cache=True)
def collect_marks(
    size: int,
    baseline: int,
    left: int,
    right: int,
    origin: int,
    glyphs: np.ndarray,
    run_glyphs: np.ndarray,
    run_x: np.ndarray,
    order: np.ndarray,
    table: np.ndarray,
    marks: np.ndarray,
) -> int:
    """Fill ``marks`` (int32 [3, glyphs]) with what :func:`draw` draws, runs in ``order``; see ``page.Marks``.

    Returns how many there are.
    """
    count = 0
    for r in order:
        for k in range(run_glyphs[r], run_glyphs[r + 1]):
            glyph = glyphs[GLYPH, k]
            pen = origin + run_x[r] + glyphs[X, k]
            first = pen + table[LEFT, glyph]
            if first >= right or first + table[WIDTH, glyph] < left:
                continue
            up = 0 if table[COLOR, glyph] >= 0 or table[WIDTH, glyph] == 0 else glyphs[Y, k]
            if up != 0 and baseline != ANYWHERE:
                up = min(max(up, baseline - size - table[BOTTOM, glyph]), baseline - table[TOP, glyph])
            marks[0, count] = glyph
            marks[1, count] = up
            marks[2, count] = pen
            count += 1
    return count


@njit(cache=True)
def to_color(gray: np.ndarray, page: np.ndarray) -> None:
    """Copy gray pixels, uint8 [n], into ``page``, uint8 [3 n]."""
    for i in range(len(gray)):
        page[3 * i] = page[3 * i + 1] = page[3 * i + 2] = gray[i]


@njit(cache=True)
def draw_color(
    page: np.ndarray,
    size: int,
    left: int,
    right: int,
    origin: int,
    glyphs: np.ndarray,
    run_glyphs: np.ndarray,
    run_x: np.ndarray,
    table: np.ndarray,
    color_cells: np.ndarray,
) -> None:
    """Draw the glyphs with color into ``page``, uint8 [columns * size * 3]; see :func:`draw`."""
    line = size * 3
    for r in range(len(run_x)):
        for k in range(run_glyphs[r], run_glyphs[r + 1]):
            glyph = glyphs[GLYPH, k]
            if table[COLOR, glyph] < 0:
                continue
            x = origin + run_x[r] + glyphs[X, k] + table[LEFT, glyph]
            first, last = max(left - x, 0), min(right - x, table[WIDTH, glyph])
            if first >= last:
                continue
            source = (table[COLOR, glyph] + first) * line
            target = page[(x + first) * line : (x + last) * line]
            ink = color_cells[source : source + len(target)]
            for i in range(len(target)):
                target[i] = _darken(target[i], ink[i])
