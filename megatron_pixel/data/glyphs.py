"""Compiled loops of the glyph codec: the marks of a page as a string of bytes, and back. See docs/formats.md.

The string is made of symbols. A symbol is a glyph, its height above the baseline, and how far its pen stands from where
the glyphs before it put it (mostly 0). Frequent ones have a number in a table and take one or two bytes.
"""

import numpy as np
from numba import njit

ONE_BYTE = 208  # a byte below: the symbol of that number
TWO_BYTES = 240  # a byte from ONE_BYTE to here: with the byte after it, the number of a symbol
THREE_BYTES = 253  # from there to here: with the two bytes after it, a glyph at height 0 where its pen is expected
MOVE, LIFT = 253, 254  # the next symbol stands that far from where it would stand otherwise: to the right, upwards

MOST_SYMBOLS = ONE_BYTE + (TWO_BYTES - ONE_BYTE) * 256
MOST_GLYPHS = (THREE_BYTES - TWO_BYTES) << 16
LONGEST_SYMBOL = 3 + 2 * 6
"""Bytes of a symbol at the most."""
MARGIN = 2
"""The first pen of a segment is expected so many columns right of its left edge."""

NO_KEY = -1
_FARTHEST = 1 << 30  # columns from the edge of the page: no pen of a text comes near
_HALF = 0x8000
_MIX = np.uint64(0x9E3779B97F4A7C15)

# Outcomes of `read_symbols`.
FINE, MALFORMED, NO_SPRITE = range(3)


@njit(cache=True, nogil=True)
def _symbol_key(glyph, up, move):  # type: ignore[no-untyped-def]
    """One number for a symbol, or NO_KEY where the table has no room for such values."""
    if not -_HALF <= up < _HALF or not -_HALF <= move < _HALF:
        return np.int64(NO_KEY)
    return (np.int64(glyph) << 32) + (np.int64(up + _HALF) << 16) + np.int64(move + _HALF)


def split_symbol_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Glyphs, heights and moves of symbols, int32 each."""
    up, move = ((keys >> shift & 0xFFFF).astype(np.int32) - _HALF for shift in (16, 0))
    return (keys >> 32).astype(np.int32), up, move


@njit(cache=True, nogil=True)
def symbol_keys(marks: np.ndarray, starts: np.ndarray, counts: np.ndarray, advances: np.ndarray) -> np.ndarray:
    """The symbols of a page as keys, int64 [k], NO_KEY for those that no table holds.

    ``marks`` is int32 [3, k] as in ``page.Marks``; each segment, beginning at a column of ``starts``, has so many of
    them; ``advances`` int16 [glyphs].
    """
    keys = np.empty(marks.shape[1], np.int64)
    k = 0
    for segment in range(len(starts)):
        pen = np.int64(starts[segment]) + MARGIN
        for _ in range(counts[segment]):
            glyph, x = marks[0, k], np.int64(marks[2, k])
            keys[k] = _symbol_key(glyph, np.int64(marks[1, k]), x - pen)
            # A glyph without advance is a mark on another one: its place says nothing about the next.
            if advances[glyph] != 0:
                pen = x + advances[glyph]
            k += 1
    return keys


@njit(cache=True, nogil=True)
def make_slots(keys: np.ndarray) -> np.ndarray:
    """Hash slots (int32, a power of two, at most half full, NO_KEY if empty) for distinct ``keys``, int64 [S]."""
    size = 64
    while size < 2 * len(keys):
        size *= 2
    slots = np.full(size, NO_KEY, np.int32)
    for number in range(len(keys)):
        slots[_slot(keys[number], keys, slots)] = number
    return slots


@njit(cache=True, nogil=True)
def _slot(key, keys, slots):  # type: ignore[no-untyped-def]
    """Where ``key`` is or would be."""
    mask = np.uint64(len(slots) - 1)
    slot = (np.uint64(key) * _MIX >> np.uint64(32)) & mask
    while slots[slot] != NO_KEY and keys[slots[slot]] != key:
        slot = (slot + np.uint64(1)) & mask
    return slot


@njit(cache=True, nogil=True)
def _put_number(value, out, size):  # type: ignore[no-untyped-def]
    """Write a signed number as zigzag LEB128."""
    rest = np.uint64((value << 1) ^ (value >> 63))
    while rest >= 128:
        out[size] = np.uint8(rest | 128)
        rest >>= np.uint64(7)
        size += 1
    out[size] = np.uint8(rest)
    return size + 1


@njit(cache=True, nogil=True)
def write_symbols(
    marks: np.ndarray,
    starts: np.ndarray,
    counts: np.ndarray,
    advances: np.ndarray,
    plain: np.ndarray,
    keys: np.ndarray,
    slots: np.ndarray,
    used_symbols: np.ndarray,
    used_glyphs: np.ndarray,
    others: np.ndarray,
    out: np.ndarray,
) -> tuple[int, int]:
    """Write the symbols of a page to ``out`` (uint8, LONGEST_SYMBOL each); returns the bytes.

    ``plain`` int32 [glyphs]: the symbol of each glyph at height 0 where its pen is expected, or NO_KEY; ``keys`` and
    ``slots``: all symbols. Ticks what a reader needs: ``used_symbols`` and ``used_glyphs`` (bool), and in ``others``
    (int32 [k, 2]) glyphs and heights that are in neither; returns also how many these are.
    """
    size, k, unknown = 0, 0, 0
    for segment in range(len(starts)):
        pen = np.int64(starts[segment]) + MARGIN
        for _ in range(counts[segment]):
            glyph, up, x = marks[0, k], np.int64(marks[1, k]), np.int64(marks[2, k])
            k += 1
            move = x - pen
            advance = advances[glyph]
            if advance != 0:
                pen = x + advance
            symbol = plain[glyph]
            if up != 0 or move != 0:
                key = _symbol_key(glyph, up, move)
                symbol = slots[_slot(key, keys, slots)] if key != NO_KEY else np.int32(NO_KEY)
                if symbol == NO_KEY and move != 0:
                    out[size] = MOVE
                    size = _put_number(move, out, size + 1)
                    key = _symbol_key(glyph, up, np.int64(0))
                    symbol = slots[_slot(key, keys, slots)] if key != NO_KEY else np.int32(NO_KEY)
                if symbol == NO_KEY and up != 0:
                    out[size] = LIFT
                    size = _put_number(up, out, size + 1)
                    symbol = plain[glyph]
                    others[unknown, 0], others[unknown, 1] = glyph, up
                    unknown += 1
                    up = np.int64(0)
                    if symbol == NO_KEY:
                        size = _put_glyph(glyph, out, size)
                    else:
                        size = _put_symbol(symbol, out, size)
                    continue
            if symbol == NO_KEY:
                used_glyphs[glyph] = True
                size = _put_glyph(glyph, out, size)
            else:
                used_symbols[symbol] = True
                size = _put_symbol(symbol, out, size)
    return size, unknown


@njit(cache=True, nogil=True)
def _put_symbol(symbol, out, size):  # type: ignore[no-untyped-def]
    if symbol < ONE_BYTE:
        out[size] = symbol
        return size + 1
    out[size] = ONE_BYTE + ((symbol - ONE_BYTE) >> 8)
    out[size + 1] = (symbol - ONE_BYTE) & 255
    return size + 2


@njit(cache=True, nogil=True)
def _put_glyph(glyph, out, size):  # type: ignore[no-untyped-def]
    out[size] = TWO_BYTES + (glyph >> 16)
    out[size + 1] = glyph >> 8 & 255
    out[size + 2] = glyph & 255
    return size + 3


@njit(cache=True, nogil=True)
def _get_number(data, at):  # type: ignore[no-untyped-def]
    """The number at ``at`` and the place after it, which is -1 where there is no number below 2**31."""
    value, shift = np.int64(0), 0
    while at < len(data) and shift <= 28:
        byte = data[at]
        value |= np.int64(byte & 127) << shift
        at += 1
        shift += 7
        if byte < 128:
            return (value >> 1) ^ -(value & 1), at
    return np.int64(0), -1


@njit(cache=True, nogil=True)
def read_symbols(
    data: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    counts: np.ndarray,
    symbols: np.ndarray,
    symbol_sprites: np.ndarray,
    sprite_keys: np.ndarray,
    advances: np.ndarray,
    reach: np.ndarray,
    sprites: np.ndarray,
    x: np.ndarray,
) -> tuple[int, int, bool]:
    """Read the symbols of a page: its sprites and the columns of their pens, int32 [len(data)] each.

    ``starts``, ``stops``: columns of the segments; ``counts``: marks of each, to which what the last one holds is
    written. ``symbols`` int32 [3, S]: glyph, height, move; ``symbol_sprites`` int32 [S]: which sprite, negative for one
    that is not there. Of the sprites, ``sprite_keys`` int64 [A] rises; ``advances`` int32 [A]; ``reach`` int32 [2, A]:
    columns from the pen where its color begins and ends, equal if it has none.

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
                number, at = _get_number(data, at + 1)
                if at < 0:
                    return MALFORMED, 0, False
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
                sprite = _find(number, up, sprite_keys)
            if sprite < 0:
                if byte < TWO_BYTES:
                    number = np.int64(symbols[0, number])
                return NO_SPRITE, (number << 16) + min(max(up + _HALF, 0), 0xFFFF), False
            column = pen + move
            if not -_FARTHEST < column < _FARTHEST:
                return MALFORMED, 0, False
            if advances[sprite] != 0:
                pen = column + advances[sprite]
            begin, end = column + reach[0, sprite], column + reach[1, sprite]
            has_color |= begin < end and begin < stops[segment] and end > starts[segment]
            sprites[k], x[k] = sprite, column
            k += 1
        counts[segment] = k - first
    return FINE, 0, has_color


@njit(cache=True, nogil=True)
def _find(glyph, up, sprite_keys):  # type: ignore[no-untyped-def]
    """The sprite of a glyph at a height, or -1."""
    if not -_HALF <= up < _HALF:
        return np.int32(-1)
    key = (np.int64(glyph) << 16) + up + _HALF
    low, high = 0, len(sprite_keys)
    while low < high:
        middle = (low + high) >> 1
        if sprite_keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return np.int32(low) if low < len(sprite_keys) and sprite_keys[low] == key else np.int32(-1)


@njit(cache=True, nogil=True)
def to_black_and_white(page: np.ndarray, threshold: int) -> None:
    """Make each pixel of uint8 [n] black if it is below ``threshold``, else white."""
    for i in range(len(page)):
        page[i] = 0 if page[i] < threshold else 255
