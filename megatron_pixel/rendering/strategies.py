"""Where patches begin: the strategies of Lotz et al. 2023, "Text Rendering Strategies for Pixel Language Models".

``continuous`` cuts a line of text into patches wherever they fall. The others tie patches to the text, so that the same
letters make the same patches: a **unit** is a pair of characters (``bigram``) or a word (``word``), is drawn from a
patch boundary on, and takes as many patches as it needs; ``mono`` puts everything on a grid of half patches.

The text is shaped as a whole in all of them, so that letters join and reorder as they do in their word; what the
strategies change is where the glyphs go afterwards.
"""

import numpy as np
from numba import njit

from megatron_pixel.rendering.shaping import (
    CLUSTER_BOUNDARY,
    COUNT,
    END,
    FIRST,
    FONT,
    LEVEL,
    START,
    WIDTH,
    WORD_BOUNDARY,
)
from megatron_pixel.rendering.unicode_tables import DEFAULT_IGNORABLE, WHITE_SPACE
from megatron_pixel.rendering.words import ADVANCE, CLUSTER, X

STRATEGIES = ("continuous", "bigram", "word", "mono")
CHARACTERS_OF_UNIT = {"bigram": 2, "word": 256}
"""Characters (grapheme clusters that show something) of a unit at the most: longer words are cut."""
_SPACES_OF_UNIT = 16


@njit(cache=True, nogil=True)
def mark_units(drawn: np.ndarray, boundaries: np.ndarray, flags: np.ndarray, most: int, units: np.ndarray) -> None:
    """Fill ``units`` (bool [n]): whether a unit begins at each character of ``drawn`` (uint32 [n]).

    A word and the white space after it are cut into units of ``most`` characters; the white space belongs to the last
    one. Words are those between which a page may be cut (``boundaries``, uint8 [n], see ``mark_boundaries``): in
    scripts that are written without spaces every character with its punctuation. Characters that are not drawn count
    with the one before. White space at the beginning, and each further stretch of 16, is a unit of its own.
    """
    characters = spaces = 0
    for i in range(len(drawn)):
        begins = i == 0
        properties = flags[drawn[i]]
        if properties & WHITE_SPACE:
            if spaces == _SPACES_OF_UNIT:
                begins = True
            spaces = 1 if begins else spaces + 1
            if begins:
                characters = 0
        elif boundaries[i] & WORD_BOUNDARY or spaces:
            begins = True
            characters, spaces = 0 if properties & DEFAULT_IGNORABLE else 1, 0
        elif boundaries[i] & CLUSTER_BOUNDARY or begins:
            if not properties & DEFAULT_IGNORABLE:
                characters += 1
            if characters > most:
                begins = True
                characters = 1
        units[i] = begins


@njit(cache=True, nogil=True)
def gather(runs: np.ndarray, glyphs: np.ndarray, gathered: np.ndarray) -> None:
    """Copy the glyphs of shaped runs, in their order, into ``gathered`` (int32 [k, 5]) and let the runs point there."""
    used = 0
    for r in range(len(runs)):
        first, count = runs[r, FIRST], runs[r, COUNT]
        gathered[used : used + count] = glyphs[first : first + count]
        runs[r, FIRST] = used
        used += count


@njit(cache=True, nogil=True)
def place_units(
    drawn: np.ndarray,
    units: np.ndarray,
    flags: np.ndarray,
    runs: np.ndarray,
    glyphs: np.ndarray,
    ink: np.ndarray,
    size: int,
    placed: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
) -> tuple[int, int]:
    """Put every unit on patches of its own, one after the other in reading order.

    Inside a unit glyphs stand as the bidi levels of their runs say. The unit begins at a patch boundary, its pen so far
    to the right that no ink lies left of it, and takes patches until its ink and the white space after it are over. A
    glyph of several characters belongs to the unit of the first.

    Args:
        drawn, units: uint32 [n] and bool [n], see :func:`mark_units`; the first unit begins at 0.
        runs, glyphs: the shaped text as :func:`gather` leaves it.
        ink: int32 [2, glyphs]: pixels from the pen of each to its ink, and of its ink.
        size: height and width of a patch in pixels.
        placed: int32 [glyphs, 5]: filled with the glyphs from left to right, X from the left edge of the first unit;
            white space after a unit has none.
        starts, ends: int32 [n]: filled for each unit: its first character, and the patch after its last one.

    Returns:
        The number of units that begin in the shaped text, and of glyphs in ``placed``.
    """
    end = runs[-1, END]
    unit_of = np.empty(end, dtype=np.int32)
    count = 0
    for i in range(end):
        if units[i]:
            starts[count] = i
            count += 1
        unit_of[i] = count - 1
    core = np.empty(count, dtype=np.int32)  # the character after the last one that is not white space
    for u in range(count):
        last = starts[u + 1] if u + 1 < count else end
        while last > starts[u] and flags[drawn[last - 1]] & WHITE_SPACE:
            last -= 1
        core[u] = last

    # Pieces: glyphs of one run and one unit, without the white space after it; in logical order.
    most = count + len(runs)
    piece_unit = np.empty(most, dtype=np.int32)
    piece_level = np.empty(most, dtype=np.int32)
    piece_glyphs = np.empty((most, 2), dtype=np.int32)
    tail = np.zeros(count, dtype=np.int32)  # pixels of white space
    pens = np.empty(len(glyphs), dtype=np.int32)  # of each glyph, from the start of its run
    pieces = 0
    for r in range(len(runs)):
        first, last = runs[r, FIRST], runs[r, FIRST] + runs[r, COUNT]
        pen = 0
        for k in range(first, last):
            pens[k] = pen
            pen += glyphs[k, ADVANCE]
        backwards = runs[r, LEVEL] & 1
        unit = -1
        for step in range(last - first):
            k = last - 1 - step if backwards else first + step
            i = runs[r, START] + glyphs[k, CLUSTER]
            u = unit_of[i]
            if i >= core[u]:
                tail[u] += glyphs[k, ADVANCE]
                continue
            if u != unit:
                unit = u
                piece_unit[pieces], piece_level[pieces] = u, runs[r, LEVEL]
                piece_glyphs[pieces, 0], piece_glyphs[pieces, 1] = k, k + 1
                pieces += 1
            elif backwards:
                piece_glyphs[pieces - 1, 0] = k
            else:
                piece_glyphs[pieces - 1, 1] = k + 1

    used, left, first = 0, 0, 0
    for u in range(count):
        last = first
        while last < pieces and piece_unit[last] == u:
            last += 1
        order = np.arange(first, last)
        if last - first > 1:
            _reorder(piece_level, order)
        unit_glyphs = used
        pen, ink_left, ink_right = 0, 0, 0
        for p in order:
            for k in range(piece_glyphs[p, 0], piece_glyphs[p, 1]):
                x = pen + glyphs[k, X] - pens[k]
                if ink[1, k] > 0:
                    ink_left = min(ink_left, x + ink[0, k])
                    ink_right = max(ink_right, x + ink[0, k] + ink[1, k])
                placed[used] = glyphs[k]
                placed[used, X] = x
                pen += glyphs[k, ADVANCE]
                used += 1
        right = ink_right if ink_right > 0 and tail[u] == 0 else max(ink_right, pen + tail[u])
        for k in range(unit_glyphs, used):
            placed[k, X] += left - ink_left
        left += -(-(right - ink_left) // size) * size
        ends[u] = left // size
        first = last
    return count, used


@njit(cache=True, nogil=True)
def _reorder(levels: np.ndarray, order: np.ndarray) -> None:
    """Rule L2 of UAX #9 on ``order``: consecutive numbers of pieces, whose levels are ``levels[number]``."""
    highest = 0
    for p in order:
        highest = max(highest, levels[p])
    for level in range(highest, 0, -1):
        k = 0
        while k < len(order):
            stop = k
            while stop < len(order) and levels[order[stop]] >= level:
                stop += 1
            order[k:stop] = order[k:stop][::-1].copy()
            k = max(stop, k + 1)


@njit(cache=True, nogil=True)
def snap_runs(boundaries: np.ndarray, runs: np.ndarray, glyphs: np.ndarray, color_font: int, cell: int) -> None:
    """Widen advances so that everything stands on a grid of ``cell`` pixels (strategy ``mono``).

    In the first font of the chain, the monospaced one, and in the color font each character takes whole cells; in
    others whole words do, or the letters of joined scripts would come apart. What is narrower stands in the middle.
    ``runs``, ``glyphs``: the shaped text as :func:`gather` leaves it; X, ADVANCE and WIDTH are changed.
    ``boundaries``: uint8 [n], see ``mark_boundaries``.
    """
    for r in range(len(runs)):
        by_character = runs[r, FONT] == 0 or runs[r, FONT] == color_font
        added = 0
        k = runs[r, FIRST]
        last = k + runs[r, COUNT]
        while k < last:
            stop = k + 1
            width = glyphs[k, ADVANCE]
            while stop < last:
                before, after = glyphs[stop - 1, CLUSTER], glyphs[stop, CLUSTER]
                i = runs[r, START] + max(before, after)
                if before != after and (by_character or boundaries[i] & WORD_BOUNDARY):
                    break
                width += glyphs[stop, ADVANCE]
                stop += 1
            # The box of an emoji is a little wider than two cells, its picture is not.
            spare = cell // 4 if runs[r, FONT] == color_font else 0
            slack = -((width - spare) // -cell) * cell - width if width > 0 else 0
            for j in range(k, stop):
                glyphs[j, X] += added + slack // 2
            glyphs[stop - 1, ADVANCE] += slack
            added += slack
            k = stop
        runs[r, WIDTH] += added
