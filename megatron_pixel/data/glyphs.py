"""Compiled loops of the glyph codec: the marks of a page become a string of bytes. See docs/formats.md.

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
HALF = 0x8000
_MIX = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _symbol_key(glyph, up, move):  # type: ignore[no-untyped-def]
    """One number for a symbol, or NO_KEY where the table has no room for such values."""
    if not -HALF <= up < HALF or not -HALF <= move < HALF:
        return np.int64(NO_KEY)
    return (np.int64(glyph) << 32) + (np.int64(up + HALF) << 16) + np.int64(move + HALF)


def split_symbol_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Glyphs, heights and moves of symbols, int32 each."""
    up, move = ((keys >> shift & 0xFFFF).astype(np.int32) - HALF for shift in (16, 0))
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
