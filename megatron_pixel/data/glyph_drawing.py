"""Compiled loops of the glyph codec: the bytes of a page become its pixel columns. See docs/formats.md.

The data may be anything: nothing here reads or writes outside its arrays.
"""

import numpy as np
from numba import njit

from megatron_pixel.data.glyphs import HALF, LIFT, MARGIN, MOVE, ONE_BYTE, THREE_BYTES, TWO_BYTES
from megatron_pixel.rendering.blit import make_darken

# Outcomes of `read_symbols`.
FINE, MALFORMED, NO_SPRITE = range(3)

MOST_PATCHES = 1 << 18
MOST_BYTES = 1 << 26
"""Bounds of what a made-up page can ask for: a strip of 64 MB, and as many bytes of symbols."""

STRIDE = 128
"""Cells are drawn in stretches of so many bytes, the last one filled up with zeros: a page shows thousands of cells of
all widths, and a processor that need not guess where each ends draws them in half the time."""

_darken_stride = make_darken(STRIDE)

_FARTHEST = 1 << 30  # columns from the edge of the page: no pen of a text comes near


@njit(cache=True, nogil=True)
def read_header(
    data: np.ndarray, size: int, starts: np.ndarray, stops: np.ndarray, counts: np.ndarray
) -> tuple[int, int]:
    """Read the header of a page, ``data`` uint8 without the checksum; a patch has ``size`` columns.

    Fills ``starts`` and ``stops`` (columns of the segments, the latter of their black patches) and ``counts`` (marks,
    unknown for the last segment), int64 each. Returns the number of segments, 0 if they are not valid or more than
    there is room for, and where the frame begins.
    """
    segments, at = _get_unsigned(data, 0)
    if at < 0 or not 1 <= segments <= len(starts):
        return 0, 0
    patch = 0
    for segment in range(segments):
        end, at = _get_unsigned(data, at)
        # Where there was no room for a segment, its black patch is the one before.
        if at < 0 or end < max(patch, 1) or end > MOST_PATCHES:
            return 0, 0
        starts[segment], stops[segment] = patch * size, (end - 1) * size
        patch = end
    for segment in range(segments - 1):
        counts[segment], at = _get_unsigned(data, at)
        if at < 0:
            return 0, 0
    counts[segments - 1] = 0
    return segments, at


@njit(cache=True, nogil=True)
def read_lengths(
    data: np.ndarray,
    first: np.ndarray,
    sizes: np.ndarray,
    checksums: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    counts: np.ndarray,
    lengths: np.ndarray,
) -> int:
    """Patches of many pages, written to ``lengths``; returns how many come before the first that is damaged.

    Page i is ``sizes[i]`` bytes of ``data`` from ``first[i]`` on (int64 each), four of which are the checksum of the
    others; ``checksums``, uint32, are those that were found. ``starts``, ``stops`` and ``counts`` are scratch.
    """
    for page in range(len(first)):
        begin, end = first[page], first[page] + sizes[page]
        if sizes[page] <= 4:
            return page
        stored = np.int64(0)
        for byte in range(4):
            stored |= np.int64(data[begin + byte]) << (8 * byte)
        if stored != np.int64(checksums[page]):
            return page
        segments, _ = read_header(data[begin + 4 : end], 1, starts, stops, counts)
        if not segments:
            return page
        lengths[page] = stops[segments - 1] + 1
    return len(first)


@njit(cache=True, nogil=True)
def _get_unsigned(data, at):  # type: ignore[no-untyped-def]
    """The LEB128 number at ``at`` and the place after it, -1 where there is none of at most five bytes."""
    value, shift = np.int64(0), 0
    while at < len(data) and shift <= 28:
        byte = data[at]
        value |= np.int64(byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return value, at
    return np.int64(0), -1


@njit(cache=True, nogil=True)
def read_symbols(
    data: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    counts: np.ndarray,
    symbols: np.ndarray,
    symbol_sprites: np.ndarray,
    plain: np.ndarray,
    sprite_keys: np.ndarray,
    steps: np.ndarray,
    sprites: np.ndarray,
    x: np.ndarray,
) -> tuple[int, int, bool]:
    """Read the symbols of a page: its sprites and the columns of their pens, int32 [len(data)] each.

    ``starts``, ``stops``: columns of the segments; ``counts``: marks of each, to which what the last one holds is
    written. ``symbols`` int32 [3, S]: glyph, height, move; ``symbol_sprites`` int32 [S]: which sprite, negative for one
    that is not there; ``plain`` int32: the same of glyphs at height 0, as far as there are any. Of the sprites,
    ``sprite_keys`` int64 [A] rises; ``steps`` int32 [A, 3]: advance, and columns from the pen where color begins and
    ends, which are equal if it has none.

    Returns the outcome, the key of the sprite that was missed, and whether any color shows. Nothing is read or written
    outside the arrays whatever the data.
    """
    at, k = 0, 0
    has_color = False
    for segment in range(len(starts)):
        pen = np.int64(starts[segment]) + MARGIN
        first = k
        last = segment == len(starts) - 1
        while at < len(data) if last else k - first < counts[segment]:
            move, up = np.int64(0), np.int64(0)
            while at < len(data) and (data[at] == MOVE or data[at] == LIFT):
                kind = data[at]
                number, at = _get_unsigned(data, at + 1)
                if at < 0:
                    return MALFORMED, 0, False
                number = (number >> 1) ^ -(number & 1)
                if kind == MOVE:
                    move += number
                else:
                    up += number
            if at >= len(data):
                return MALFORMED, 0, False
            byte = np.int64(data[at])
            if byte < TWO_BYTES:
                number = byte
                at += 1
                if byte >= ONE_BYTE:
                    if at >= len(data):
                        return MALFORMED, 0, False
                    number = ONE_BYTE + ((byte - ONE_BYTE) << 8) + data[at]
                    at += 1
                if number >= symbols.shape[1]:
                    return MALFORMED, 0, False
                move += symbols[2, number]
                sprite = symbol_sprites[number]
                if up != 0 or sprite < 0:
                    up += symbols[1, number]
                    sprite = _find(symbols[0, number], up, sprite_keys)
            else:
                if byte >= THREE_BYTES or at + 2 >= len(data):
                    return MALFORMED, 0, False
                number = ((byte - TWO_BYTES) << 16) + (np.int64(data[at + 1]) << 8) + data[at + 2]
                at += 3
                if up == 0:
                    sprite = plain[number] if number < len(plain) else np.int32(-1)
                else:
                    sprite = _find(number, up, sprite_keys)
            if sprite < 0:
                if byte < TWO_BYTES:
                    number = np.int64(symbols[0, number])
                return NO_SPRITE, (number << 16) + min(max(up + HALF, 0), 0xFFFF), False
            column = pen + move
            if not -_FARTHEST < column < _FARTHEST:
                return MALFORMED, 0, False
            if steps[sprite, 0] != 0:
                pen = column + steps[sprite, 0]
            begin, end = steps[sprite, 1], steps[sprite, 2]
            if begin < end:
                has_color |= column + begin < stops[segment] and column + end > starts[segment]
            sprites[k], x[k] = sprite, column
            k += 1
        counts[segment] = k - first
    return FINE, 0, has_color


@njit(cache=True, nogil=True)
def _find(glyph, up, sprite_keys):  # type: ignore[no-untyped-def]
    """The sprite of a glyph at a height, or -1."""
    if not -HALF <= up < HALF:
        return np.int32(-1)
    key = (np.int64(glyph) << 16) + up + HALF
    low, high = 0, len(sprite_keys)
    while low < high:
        middle = (low + high) >> 1
        if sprite_keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return np.int32(low) if low < len(sprite_keys) and sprite_keys[low] == key else np.int32(-1)


@njit(cache=True, nogil=True)
def draw_cells(
    columns: np.ndarray,
    line: int,
    starts: np.ndarray,
    stops: np.ndarray,
    counts: np.ndarray,
    sprites: np.ndarray,
    x: np.ndarray,
    first: np.ndarray,
    strides: np.ndarray,
    width: np.ndarray,
    bearing: np.ndarray,
    ink: np.ndarray,
) -> None:
    """Draw sprites into ``columns``, uint8, columns of ``line`` bytes (P, in color 3 P), cut at the edges of segments.

    ``sprites``, ``x``: of all segments, as :func:`read_symbols` gives them. Sprite s has ``strides[s]`` stretches of
    STRIDE bytes in ``ink`` from byte ``first[s]`` on, which hold ``width[s]`` columns and zeros after them.
    """
    paper, cells = columns.ctypes.data, ink.ctypes.data
    k = 0
    for segment in range(len(starts)):
        left, right = starts[segment], stops[segment]
        for _ in range(counts[segment]):
            sprite, column = sprites[k], np.int64(x[k])
            k += 1
            n = strides[sprite]
            if n == 0:
                continue
            column += bearing[sprite]
            target: int = column * line
            source: int = np.int64(first[sprite])  # type: ignore[assignment]
            if column >= left and target + n * STRIDE <= right * line:
                for i in range(n):
                    _darken_stride(paper + target + i * STRIDE, cells + source + i * STRIDE)
                continue
            begin, end = max(left - column, 0), min(right - column, np.int64(width[sprite]))
            for i in range(begin * line, end * line):
                columns[target + i] = _darker(columns[target + i], ink[source + i])


@njit(cache=True, nogil=True)
def _darker(paper, ink):  # type: ignore[no-untyped-def]
    return np.uint8(paper - ink) if paper > ink else np.uint8(0)


@njit(cache=True, nogil=True)
def draw_page(
    data: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    counts: np.ndarray,
    symbols: np.ndarray,
    symbol_sprites: np.ndarray,
    plain: np.ndarray,
    sprite_keys: np.ndarray,
    steps: np.ndarray,
    sprites: np.ndarray,
    x: np.ndarray,
    columns: np.ndarray,
    size: int,
    threshold: int,
    first: np.ndarray,
    strides: np.ndarray,
    width: np.ndarray,
    bearing: np.ndarray,
    ink: np.ndarray,
) -> tuple[int, int, bool]:
    """Read the symbols of a page and draw what is gray, into ``columns``, uint8: columns of ``size`` bytes.

    Pixels below ``threshold`` become black and the others white, unless it is negative. For the other arguments and
    what is returned see :func:`read_symbols` and :func:`draw_cells`; what has color is left to another call of that.
    """
    outcome = read_symbols(data, starts, stops, counts, symbols, symbol_sprites, plain, sprite_keys, steps, sprites, x)
    if outcome[0] != FINE:
        return outcome
    columns[:] = 255
    draw_cells(columns, size, starts, stops, counts, sprites, x, first, strides, width, bearing, ink)
    if threshold >= 0:
        for i in range(len(columns)):
            columns[i] = 0 if columns[i] < threshold else 255
    for stop in stops:
        columns[stop * size : (stop + size) * size] = 0
    return outcome
