"""Compiled loops of the column codec: find columns in a table, number them, and write them as patches.

A gray column of P pixels is handled as ``q = ceil(P / 8)`` little-endian 64-bit words, the last padded with zeros.
Positions are unsigned in the inner loops, because a signed index costs a test for negative values at every access.
"""

import numpy as np
from numba import njit

MISSING = -1
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(29)
_ONE = np.uint64(1)
_CONTINUES = np.uint32(128)
_LOW7 = np.uint32(127)
_SEVEN = np.uint32(7)


def as_words(columns: np.ndarray) -> np.ndarray:
    """View uint8 [m, ...] as uint64 [m, q], copying only where a column is not a multiple of 8 bytes."""
    flat = columns.reshape(len(columns), -1)
    width = flat.shape[1]
    if width % 8:
        padded = np.zeros((len(flat), -(-width // 8) * 8), np.uint8)
        padded[:, :width] = flat
        flat = padded
    return np.ascontiguousarray(flat).view("<u8")


@njit(cache=True, nogil=True, inline="always")
def _hash(flat, base, width):  # type: ignore[no-untyped-def]
    state = np.uint64(0)
    for word in range(width):
        state = (state ^ flat[base + word]) * _MIX
        state ^= state >> _SHIFT
    return state


@njit(cache=True, nogil=True, inline="always")
def _same(first, first_base, second, second_base, width):  # type: ignore[no-untyped-def]
    same = True
    for word in range(width):
        same &= first[first_base + word] == second[second_base + word]
    return same


@njit(cache=True, nogil=True)
def make_slots(table: np.ndarray) -> np.ndarray:
    """Hash slots (int32, a power of two, at most half full) for the distinct columns ``table`` uint64 [T, q]."""
    size = 64
    while size < 2 * len(table):
        size *= 2
    slots = np.full(size, MISSING, np.int32)
    mask = np.uint64(size - 1)
    flat = table.reshape(-1)
    width = np.uint64(table.shape[1])
    for index in range(len(table)):
        slot = _hash(flat, np.uint64(index) * width, width) & mask
        while slots[slot] != MISSING:
            slot = (slot + _ONE) & mask
        slots[slot] = index
    return slots


@njit(cache=True, nogil=True)
def find(columns: np.ndarray, table: np.ndarray, slots: np.ndarray, found: np.ndarray) -> int:
    """Write the place in ``table`` of each column of uint64 [m, q] to ``found`` int32 [m], or MISSING; count those."""
    mask = np.uint64(len(slots) - 1)
    flat = columns.reshape(-1)
    known = table.reshape(-1)
    width = np.uint64(columns.shape[1])
    missing = 0
    for index in range(np.uint64(len(columns))):
        base = index * width
        slot = _hash(flat, base, width) & mask
        place = slots[slot]
        while place != MISSING and not _same(known, np.uint64(place) * width, flat, base, width):
            slot = (slot + _ONE) & mask
            place = slots[slot]
        found[index] = place
        missing += place == MISSING
    return missing


@njit(cache=True, nogil=True)
def distinct(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct columns of uint64 [m, q] in order of appearance.

    Returns ``first`` int32 [u], where each appears first, and ``which`` int32 [m], the distinct column of each.
    """
    size = 64
    while size < 2 * len(columns):
        size *= 2
    slots = np.full(size, MISSING, np.int32)
    mask = np.uint64(size - 1)
    flat = columns.reshape(-1)
    width = np.uint64(columns.shape[1])
    first = np.empty(len(columns), np.int32)
    which = np.empty(len(columns), np.int32)
    count = 0
    for index in range(np.uint64(len(columns))):
        base = index * width
        slot = _hash(flat, base, width) & mask
        place = slots[slot]
        while place != MISSING and not _same(flat, np.uint64(first[place]) * width, flat, base, width):
            slot = (slot + _ONE) & mask
            place = slots[slot]
        if place == MISSING:
            place = np.int32(count)
            slots[slot] = place
            first[count] = index
            count += 1
        which[index] = place
    return first[:count], which


@njit(cache=True, nogil=True)
def colored_columns(columns: np.ndarray) -> np.ndarray:
    """Whether each column of uint8 [m, P, 3] has a pixel that is not gray: bool [m]."""
    colored = np.zeros(len(columns), np.bool_)
    for index in range(len(columns)):
        for row in range(columns.shape[1]):
            red = columns[index, row, 0]
            if columns[index, row, 1] != red or columns[index, row, 2] != red:
                colored[index] = True
                break
    return colored


@njit(cache=True, nogil=True)
def number(indices: np.ndarray, out: np.ndarray) -> int:
    """Write int32 ``indices`` as unsigned LEB128 to ``out`` uint8 (5 bytes each at the most); return the bytes."""
    size = 0
    for index in indices:
        value = np.uint32(index)
        while value >= _CONTINUES:
            out[np.uint64(size)] = np.uint8(value | _CONTINUES)
            value >>= _SEVEN
            size += 1
        out[np.uint64(size)] = np.uint8(value)
        size += 1
    return size


@njit(cache=True, nogil=True)
def denumber(data: np.ndarray, limit: int, out: np.ndarray) -> bool:
    """Read unsigned LEB128 from ``data`` uint8 into ``out`` int32.

    Returns whether they were exactly ``len(out)`` numbers, all below ``limit``; nothing is read or written outside.
    """
    count = 0
    value = np.uint32(0)
    shift = np.uint32(0)
    for byte in data:
        value |= (np.uint32(byte) & _LOW7) << shift
        if byte >= 128:
            shift += _SEVEN
            if shift > 28:
                return False
            continue
        if count == len(out) or value >= limit:
            return False
        out[np.uint64(count)] = value
        count += 1
        value = np.uint32(0)
        shift = np.uint32(0)
    return count == len(out) and shift == 0


_MASK8, _STEP8 = np.uint64(0x00FF00FF00FF00FF), np.uint64(8)
_MASK16, _STEP16 = np.uint64(0x0000FFFF0000FFFF), np.uint64(16)
_MASK32, _STEP32 = np.uint64(0x00000000FFFFFFFF), np.uint64(32)
_TWO, _THREE, _FOUR, _FIVE, _SIX, _SEVENTH = (np.uint64(value) for value in range(2, 8))


@njit(cache=True, nogil=True, inline="always")
def _exchange(first, second, mask, step):  # type: ignore[no-untyped-def]
    return (first & mask) | ((second & mask) << step), ((first >> step) & mask) | (second & ~mask)


@njit(cache=True, nogil=True, inline="always")
def _transpose_patch(indices, start, table, width, out, base):  # type: ignore[no-untyped-def]
    """Write the 8*width columns from ``start`` on as rows of one gray patch: blocks of 8x8 bytes, in registers."""
    for block in range(width):
        at = start + block * _STEP8
        c0 = np.uint64(indices[at]) * width
        c1 = np.uint64(indices[at + _ONE]) * width
        c2 = np.uint64(indices[at + _TWO]) * width
        c3 = np.uint64(indices[at + _THREE]) * width
        c4 = np.uint64(indices[at + _FOUR]) * width
        c5 = np.uint64(indices[at + _FIVE]) * width
        c6 = np.uint64(indices[at + _SIX]) * width
        c7 = np.uint64(indices[at + _SEVENTH]) * width
        for word in range(width):
            r0, r4 = _exchange(table[c0 + word], table[c4 + word], _MASK32, _STEP32)
            r1, r5 = _exchange(table[c1 + word], table[c5 + word], _MASK32, _STEP32)
            r2, r6 = _exchange(table[c2 + word], table[c6 + word], _MASK32, _STEP32)
            r3, r7 = _exchange(table[c3 + word], table[c7 + word], _MASK32, _STEP32)
            r0, r2 = _exchange(r0, r2, _MASK16, _STEP16)
            r1, r3 = _exchange(r1, r3, _MASK16, _STEP16)
            r4, r6 = _exchange(r4, r6, _MASK16, _STEP16)
            r5, r7 = _exchange(r5, r7, _MASK16, _STEP16)
            row = base + word * _STEP8 * width + block
            out[row], out[row + width] = _exchange(r0, r1, _MASK8, _STEP8)
            out[row + _TWO * width], out[row + _THREE * width] = _exchange(r2, r3, _MASK8, _STEP8)
            out[row + _FOUR * width], out[row + _FIVE * width] = _exchange(r4, r5, _MASK8, _STEP8)
            out[row + _SIX * width], out[row + _SEVENTH * width] = _exchange(r6, r7, _MASK8, _STEP8)


@njit(cache=True, nogil=True)
def gray_patches(indices: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Write columns ``table[indices]`` as patches; P is a multiple of 8.

    ``indices`` int32 [n*P], ``table`` uint64 [T, q], ``out`` uint64 [n*P*q]: the bytes of uint8 [n, P, P, 1].
    """
    flat = table.reshape(-1)
    width = np.uint64(table.shape[1])
    size = width * _STEP8
    for start in range(np.uint64(0), np.uint64(len(indices)), size):
        _transpose_patch(indices, start, flat, width, out, start * width)


@njit(cache=True, nogil=True)
def rgb_patches(indices: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """As :func:`gray_patches`, each pixel three times: ``out`` is uint8 [n*P*P*3]."""
    flat = table.reshape(-1)
    width = np.uint64(table.shape[1])
    size = width * _STEP8
    tile = np.empty(size * width, np.uint64)
    gray = tile.view(np.uint8)
    at = np.uint64(0)
    for start in range(np.uint64(0), np.uint64(len(indices)), size):
        _transpose_patch(indices, start, flat, width, tile, np.uint64(0))
        for pixel in range(len(gray)):
            value = gray[pixel]
            out[at] = value
            out[at + _ONE] = value
            out[at + _TWO] = value
            at += _THREE


@njit(cache=True, nogil=True)
def any_patches(indices: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """Write columns ``table[indices]`` (``table`` uint8 [T, >= P]) to ``out`` uint8 [n, P, P, C], for any P."""
    size = out.shape[1]
    for index in range(len(indices)):
        for row in range(size):
            for channel in range(out.shape[3]):
                out[index // size, row, index % size, channel] = table[indices[index], row]


@njit(cache=True, nogil=True)
def paint_color(indices: np.ndarray, first: int, colors: np.ndarray, out: np.ndarray) -> None:
    """Write ``colors[i - first]`` (uint8 [k, P, 3]) for every index i >= ``first``; ``out`` is uint8 [n, P, P, 3]."""
    size = out.shape[1]
    for index in range(len(indices)):
        if indices[index] >= first:
            for row in range(size):
                for channel in range(3):
                    out[index // size, row, index % size, channel] = colors[indices[index] - first, row, channel]
