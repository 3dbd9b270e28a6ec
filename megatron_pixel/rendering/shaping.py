"""Shaping in compiled code: runs of text in, positioned glyphs in flat arrays out, and where to cut a page.

A run is a row of an int32 array. Runs are shaped in logical order, so that measuring stops where a page is full; their
visual order is applied afterwards.
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
from megatron_pixel.rendering.words import (
    ADVANCE,
    BACK,
    CLUSTER,
    FRONT,
    GLYPH,
    WORD_COUNT,
    WORD_FIRST,
    WORD_WIDTH,
    X,
    Y,
    add_word,
    find_word,
    has_room,
)

# Columns of a run: its characters [start, end), font, script, bidi level, paragraph, and whether it is a word for the
# cache. Shaping adds its first glyph, their number and the width in pixels; placing, the pixels from the start of the
# text to the run.
START, END, FONT, SCRIPT, LEVEL, PARAGRAPH, IS_WORD, FIRST, COUNT, WIDTH, PLACE = range(11)
RUN_COLUMNS = 11
# Values of IS_WORD: no word, a word, and one that begins at a seam, so that it may be shaped together with what is
# before it.
NO_WORD, WORD, AT_SEAM = range(3)
# What `shape_runs` came to.
COMPLETE, FULL, NO_ROOM = range(3)
# Bits of the flags that `find_cut` reads.
WORD_BOUNDARY, CLUSTER_BOUNDARY = 1, 2

_MOST_TOGETHER = 256  # characters of words that are shaped in one call
_INFO_WORDS = 5  # hb_glyph_info_t and hb_glyph_position_t are five 32-bit words each


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


@njit(cache=True, nogil=True)
def _tag(run: np.ndarray) -> int:
    """Font, script and direction in one number."""
    return int(run[FONT]) | int(run[SCRIPT]) << 8 | (int(run[LEVEL]) & 1) << 16


@njit(cache=True, nogil=True)
def _find(codepoints: np.ndarray, run: np.ndarray, words: np.ndarray, characters: np.ndarray) -> tuple[bool, int, int]:
    return find_word(codepoints, np.int64(run[START]), np.int64(run[END]), _tag(run), words, characters)


@njit(cache=True, nogil=True)
def _take(run: np.ndarray, word: np.ndarray) -> None:
    """Let a run show the glyphs of a word of the cache."""
    run[FIRST], run[COUNT], run[WIDTH] = word[WORD_FIRST], word[WORD_COUNT], word[WORD_WIDTH]


@njit(cache=True, nogil=True)
def shape_runs(
    codepoints: np.ndarray,
    runs: np.ndarray,
    first: int,
    limit: int,
    functions: np.ndarray,
    buffer: int,
    features: np.ndarray,
    count: np.ndarray,
    fonts: np.ndarray,
    first_glyph: np.ndarray,
    script_tags: np.ndarray,
    words: np.ndarray,
    characters: np.ndarray,
    glyphs: np.ndarray,
    counters: np.ndarray,
) -> tuple[int, int, int]:
    """Shape ``runs[first:]`` until the text is wider than ``limit`` pixels, words from the cache if they are there.

    ``functions``, ``buffer``, ``fonts``: addresses in HarfBuzz; ``features``: uint32 [4 k], hb_feature_t; ``count``:
    uint32 [1], scratch; ``first_glyph``: where each font's glyphs begin in the numbering over all fonts; the last four
    are the arrays of :class:`~megatron_pixel.rendering.words.WordCache`. Fills the columns FIRST, COUNT and WIDTH.
    Returns the outcome, the number of shaped runs and their width.
    """
    width = 0
    for r in range(first):
        width += runs[r, WIDTH]
    text = codepoints.ctypes.data
    r = first
    while r < len(runs):
        # Words that are not in the cache are shaped together with those that follow, and taken apart afterwards.
        last = r
        size = 0
        word = np.int64(0)
        while last < len(runs) and size < _MOST_TOGETHER:
            if last > r and (runs[last, IS_WORD] != AT_SEAM or runs[r, IS_WORD] == NO_WORD):
                break
            if runs[last, IS_WORD] != NO_WORD:
                found, word, _ = _find(codepoints, runs[last], words, characters)
                if found:
                    break
            size += runs[last, END] - runs[last, START]
            last += 1
        if last == r:
            _take(runs[r], words[word])
            width += runs[r, WIDTH]
            r += 1
            if width > limit:
                return FULL, r, width
            continue

        start, end, font = runs[r, START], runs[last - 1, END], runs[r, FONT]
        backwards = runs[r, LEVEL] & 1
        _call(functions[CLEAR], (buffer,))
        # The whole text is passed along, so that letters join across runs.
        _call(
            functions[ADD_UTF32],
            (buffer, text, np.int32(len(codepoints)), np.uint32(start), np.int32(end - start)),
        )
        _call(functions[SET_DIRECTION], (buffer, np.int32(RIGHT_TO_LEFT if backwards else LEFT_TO_RIGHT)))
        _call(functions[SET_SCRIPT], (buffer, script_tags[runs[r, SCRIPT]]))
        _call(functions[SHAPE], (fonts[font], buffer, features.ctypes.data, np.uint32(len(features) // 4)))
        infos = _call(functions[GLYPH_INFOS], (buffer, count.ctypes.data))
        positions = _call(functions[GLYPH_POSITIONS], (buffer, count.ctypes.data))
        n = np.int64(count[0])
        if counters[FRONT] + n > counters[BACK]:
            return NO_ROOM, r, width
        info = carray(_words_at(infos), n * _INFO_WORDS)
        position = carray(_words_at(positions), n * _INFO_WORDS)
        used = n if backwards else 0
        while r < last:
            start, end = runs[r, START], runs[r, END]
            # The glyphs of a run stand together, runs read from right to left in reverse.
            if backwards:
                stop = used
                while used > 0 and info[(used - 1) * _INFO_WORDS + 2] < end:
                    used -= 1
                begin = used
            else:
                begin = used
                while used < n and info[used * _INFO_WORDS + 2] < end:
                    used += 1
                stop = used
            keep = runs[r, IS_WORD] != NO_WORD and has_room(end - start, words, characters, counters)
            row, key = np.int64(0), np.int32(0)
            if keep:
                found, row, key = _find(codepoints, runs[r], words, characters)
                if found:  # met twice among the words shaped together
                    _take(runs[r], words[row])
                    width += runs[r, WIDTH]
                    r += 1
                    if width > limit:
                        return FULL, r, width
                    continue
            place = counters[FRONT]
            if not keep:
                counters[BACK] -= stop - begin
                place = counters[BACK]
            pen = 0
            for k in range(begin, stop):
                glyph = glyphs[place + k - begin]
                glyph[GLYPH] = first_glyph[font] + info[k * _INFO_WORDS]
                glyph[CLUSTER] = info[k * _INFO_WORDS + 2] - start
                # Whole pixels: every letter has one bitmap, as in Pango's rounded positions.
                advance = (position[k * _INFO_WORDS] + PIXEL // 2) >> PIXEL_BITS
                glyph[X] = pen + ((position[k * _INFO_WORDS + 2] + PIXEL // 2) >> PIXEL_BITS)
                glyph[Y] = (position[k * _INFO_WORDS + 3] + PIXEL // 2) >> PIXEL_BITS
                glyph[ADVANCE] = advance
                pen += advance
            runs[r, FIRST], runs[r, COUNT], runs[r, WIDTH] = place, stop - begin, pen
            if keep:
                add_word(
                    codepoints,
                    start,
                    end,
                    _tag(runs[r]),
                    row,
                    key,
                    stop - begin,
                    pen,
                    words,
                    characters,
                    counters,
                )
            width += pen
            r += 1
            if width > limit:
                return FULL, r, width
    return COMPLETE, len(runs), width


@njit(cache=True, nogil=True)
def find_cut(runs: np.ndarray, shaped: int, glyphs: np.ndarray, boundaries: np.ndarray, limit: int, before: int) -> int:
    """The last word boundary before ``before`` up to which the shaped text is at most ``limit`` pixels wide.

    Without one, the last cluster boundary; without that, the first one, so that every page shows something; without
    any, 0. ``boundaries`` is uint8 [n] over the characters up to the last shaped one and one more if there is one.
    """
    end = min(runs[shaped - 1, END], before)
    advance = np.zeros(end, dtype=np.int64)
    for r in range(shaped):
        for k in range(runs[r, FIRST], runs[r, FIRST] + runs[r, COUNT]):
            i = runs[r, START] + glyphs[k, CLUSTER]
            if i < end:
                advance[i] += glyphs[k, ADVANCE]
    width = 0
    word, cluster = 0, 0
    for i in range(1, min(end + 1, before, len(boundaries))):
        width += advance[i - 1]
        if width > limit and cluster > 0:
            break
        if boundaries[i] & CLUSTER_BOUNDARY:
            cluster = i
        if boundaries[i] & WORD_BOUNDARY and width <= limit:
            word = i
    return word if word > 0 else cluster


@njit(cache=True, nogil=True)
def place_runs(runs: np.ndarray, order: np.ndarray) -> int:
    """Give every run its PLACE and ``order`` (int32 [runs]) the runs from left to right; returns the width of all.

    Paragraphs follow each other from left to right; inside one the runs are reordered by rule L2 of UAX #9.
    """
    n = len(runs)
    for r in range(n):
        order[r] = r
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
        runs[r, PLACE] = x
        x += runs[r, WIDTH]
    return x


@njit(cache=True, nogil=True)
def last_shown(runs: np.ndarray, glyphs: np.ndarray, limit: int) -> int:
    """The last character in logical order whose glyph begins within the first ``limit`` pixels of the line."""
    last = 0
    for r in range(len(runs)):
        for k in range(runs[r, FIRST], runs[r, FIRST] + runs[r, COUNT]):
            if runs[r, PLACE] + glyphs[k, X] < limit:
                last = max(last, runs[r, START] + glyphs[k, CLUSTER])
    return last
