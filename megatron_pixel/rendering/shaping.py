"""Shaping in compiled code: runs of text in, positioned glyphs in flat arrays out, and where to cut a page.

A run is a row of an int32 array: its characters [start, end), font, script, bidi level and paragraph. Runs are shaped
in logical order, so that measuring stops where a page is full; their visual order is applied afterwards.
"""

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from megatron_pixel.rendering.harfbuzz import (
    ADD_UTF32,
    CLEAR,
    GLYPH_INFOS,
    GLYPH_POSITIONS,
    LEFT_TO_RIGHT,
    PIXEL,
    PIXEL_BITS,
    RIGHT_TO_LEFT,
    SET_DIRECTION,
    SET_SCRIPT,
    SHAPE,
)

# Columns of a run.
START, END, FONT, SCRIPT, LEVEL, PARAGRAPH = range(6)
RUN_COLUMNS = 6
# Rows of the int32 array of glyphs: glyph number over all fonts, pen position within the run plus offset, offset
# upwards, advance (all in pixels), first character.
GLYPH, X, Y, ADVANCE, CLUSTER = range(5)
GLYPH_ROWS = 5
# What `shape_runs` came to.
COMPLETE, FULL, NO_ROOM = range(3)
# Bits of the flags that `find_cut` reads.
WORD_BOUNDARY, CLUSTER_BOUNDARY = 1, 2

_WORDS = 5  # hb_glyph_info_t and hb_glyph_position_t are five 32-bit words each


@intrinsic
def _call(typing_context, address, arguments):  # type: ignore[no-untyped-def]
    """Call the C function at ``address``; returns its result as an integer (rubbish for a void function)."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        kinds = list(signature.args[1])
        parts = cgutils.unpack_tuple(builder, values[1], len(kinds))
        function = ir.FunctionType(ir.IntType(64), [context.get_value_type(kind) for kind in kinds])
        return builder.call(builder.inttoptr(values[0], function.as_pointer()), parts)

    return types.int64(address, arguments), generate


@intrinsic
def _words_at(typing_context, address):  # type: ignore[no-untyped-def]
    """The memory at ``address`` as a pointer to int32."""
    signature = types.CPointer(types.int32)(address)

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

    return signature, generate


@njit(cache=True)
def shape_runs(
    codepoints: np.ndarray,
    runs: np.ndarray,
    first: int,
    limit: int,
    functions: np.ndarray,
    buffer: int,
    count: np.ndarray,
    fonts: np.ndarray,
    first_glyph: np.ndarray,
    script_tags: np.ndarray,
    glyphs: np.ndarray,
    run_glyphs: np.ndarray,
    run_width: np.ndarray,
) -> tuple[int, int, int]:
    """Shape ``runs[first:]`` until the text is wider than ``limit`` pixels.

    ``functions``, ``buffer``, ``fonts``: addresses in HarfBuzz; ``count``: uint32 [1], scratch; ``first_glyph``: where
    each font's glyphs begin in the numbering over all fonts. Fills ``glyphs`` (int32 [5, room]), ``run_glyphs`` (where
    each run's glyphs begin, one more than runs) and ``run_width``. Returns the outcome, the number of shaped runs and
    their width.
    """
    width = 0
    for r in range(first):
        width += run_width[r]
    used = run_glyphs[first]
    text = codepoints.ctypes.data
    for r in range(first, len(runs)):
        start, end, font = runs[r, START], runs[r, END], runs[r, FONT]
        _call(functions[CLEAR], (buffer,))
        # The whole text is passed along, so that letters join across runs.
        _call(
            functions[ADD_UTF32],
            (buffer, text, np.int32(len(codepoints)), np.uint32(start), np.int32(end - start)),
        )
        _call(functions[SET_DIRECTION], (buffer, np.int32(RIGHT_TO_LEFT if runs[r, LEVEL] & 1 else LEFT_TO_RIGHT)))
        _call(functions[SET_SCRIPT], (buffer, script_tags[runs[r, SCRIPT]]))
        _call(functions[SHAPE], (fonts[font], buffer, np.int64(0), np.uint32(0)))
        infos = _call(functions[GLYPH_INFOS], (buffer, count.ctypes.data))
        positions = _call(functions[GLYPH_POSITIONS], (buffer, count.ctypes.data))
        n = np.int64(count[0])
        if used + n > glyphs.shape[1]:
            return NO_ROOM, r, width
        info = carray(_words_at(infos), n * _WORDS)
        position = carray(_words_at(positions), n * _WORDS)
        pen = 0
        for k in range(n):
            glyphs[GLYPH, used + k] = first_glyph[font] + info[k * _WORDS]
            glyphs[CLUSTER, used + k] = info[k * _WORDS + 2]
            # Whole pixels: every letter has one bitmap, as in Pango's rounded positions.
            advance = (position[k * _WORDS] + PIXEL // 2) >> PIXEL_BITS
            glyphs[X, used + k] = pen + ((position[k * _WORDS + 2] + PIXEL // 2) >> PIXEL_BITS)
            glyphs[Y, used + k] = (position[k * _WORDS + 3] + PIXEL // 2) >> PIXEL_BITS
            glyphs[ADVANCE, used + k] = advance
            pen += advance
        used += n
        run_glyphs[r + 1] = used
        run_width[r] = pen
        width += pen
        if width > limit:
            return FULL, r + 1, width
    return COMPLETE, len(runs), width


@njit(cache=True)
def find_cut(
    runs: np.ndarray,
    shaped: int,
    glyphs: np.ndarray,
    run_glyphs: np.ndarray,
    boundaries: np.ndarray,
    limit: int,
    before: int,
) -> int:
    """The last word boundary before ``before`` up to which the shaped text is at most ``limit`` pixels wide.

    Without one, the last cluster boundary; without that, the first one, so that every page shows something; without
    any, 0. ``boundaries`` is uint8 [n] over the characters, flags of this module.
    """
    end = min(runs[shaped - 1, END], before)
    advance = np.zeros(end, dtype=np.int64)
    for k in range(run_glyphs[shaped]):
        if glyphs[CLUSTER, k] < end:
            advance[glyphs[CLUSTER, k]] += glyphs[ADVANCE, k]
    width = 0
    word, cluster = 0, 0
    for i in range(1, end):
        width += advance[i - 1]
        if width > limit and cluster > 0:
            break
        if boundaries[i] & CLUSTER_BOUNDARY:
            cluster = i
        if boundaries[i] & WORD_BOUNDARY and width <= limit:
            word = i
    return word if word > 0 else cluster


@njit(cache=True)
def place_runs(runs: np.ndarray, run_width: np.ndarray, run_x: np.ndarray) -> int:
    """Give every run its place, in pixels from the start of the text; returns the width of all.

    Paragraphs follow each other from left to right; inside one the runs are reordered by rule L2 of UAX #9.
    """
    n = len(runs)
    order = np.arange(n)
    first = 0
    while first < n:
        last = first
        highest, lowest_odd = 0, 255
        while last < n and runs[last, PARAGRAPH] == runs[first, PARAGRAPH]:
            level = runs[last, LEVEL]
            highest = max(highest, level)
            if level & 1:
                lowest_odd = min(lowest_odd, level)
            last += 1
        for level in range(highest, lowest_odd - 1, -1):
            k = first
            while k < last:
                stop = k
                while stop < last and runs[order[stop], LEVEL] >= level:
                    stop += 1
                order[k:stop] = order[k:stop][::-1].copy()
                k = max(stop, k + 1)
        first = last
    x = 0
    for r in order:
        run_x[r] = x
        x += run_width[r]
    return x


@njit(cache=True)
def last_shown(glyphs: np.ndarray, run_glyphs: np.ndarray, run_x: np.ndarray, limit: int) -> int:
    """The last character in logical order whose glyph begins within the first ``limit`` pixels of the line."""
    last = 0
    for r in range(len(run_x)):
        for k in range(run_glyphs[r], run_glyphs[r + 1]):
            if run_x[r] + glyphs[X, k] < limit:
                last = max(last, glyphs[CLUSTER, k])
    return last
