"""The compiled loop of packing: which pages of a window share a row."""

import numpy as np
from numba import njit

_BLOCK = 64
"""Numbers of free positions that are looked over at once."""


def pack(lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most ``room`` positions for pages of these lengths, by best fit, decreasing.

    The longest page comes first, of equal ones the earlier; each goes into the fullest row that still has room for it,
    of equally full ones the one that was begun first. Takes time in proportion to the number of pages.

    Args:
        lengths: int32 [n], n at most 65,536; positions of each page, 1 to ``room``.
        room: positions of a row.

    Returns:
        ``(places, sizes)``: uint16 [n], the pages of one row after the other, rising in each, the rows in the order of
        their first pages; int32 [rows], the pages of each row.

    Raises:
        ValueError: a page is longer than a row, or has no length.
    """
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= room:
        raise ValueError(f"pages of {lengths.min()} to {lengths.max()} positions do not fit rows of {room}")
    places, sizes = np.empty(len(lengths), np.uint16), np.empty(len(lengths), np.int32)
    rows = _pack(np.ascontiguousarray(lengths, np.int32), room, places, sizes)
    return places, sizes[:rows]


@njit(cache=True, nogil=True)
def _pack(lengths: np.ndarray, room: int, places: np.ndarray, sizes: np.ndarray) -> int:
    """See :func:`pack`; returns the number of rows."""
    pages = len(lengths)
    # Pages by length, the longest first: a counting sort.
    starts = np.zeros(room + 2, np.int64)
    for page in range(pages):
        starts[room - lengths[page] + 1] += 1
    for length in range(room):
        starts[length + 1] += starts[length]
    order = np.empty(pages, np.int32)
    for page in range(pages):
        place = room - lengths[page]
        order[starts[place]] = page
        starts[place] += 1
    # Rows with so many free positions, as a list that rises: its first row, its last one, and the one after each.
    first = np.full(room + 1, -1, np.int32)
    last = np.full(room + 1, -1, np.int32)
    after = np.full(pages, -1, np.int32)
    counts = np.zeros(room // _BLOCK + 1, np.int32)
    row_of = np.empty(pages, np.int32)
    rows = 0
    for chosen in order:
        page = int(chosen)
        length = int(lengths[page])
        free = int(_least_free(first, counts, length))
        if free < 0:
            row, free = rows, room
            rows += 1
        else:
            row = int(first[free])
            first[free] = after[row]
            if first[free] < 0:
                last[free] = -1
            counts[free // _BLOCK] -= 1
        row_of[page] = row
        free -= length
        if free:
            counts[free // _BLOCK] += 1
            if last[free] < row:
                after[row] = -1
                if last[free] < 0:
                    first[free] = row
                else:
                    after[last[free]] = row
                last[free] = row
            elif first[free] > row:
                after[row] = first[free]
                first[free] = row
            else:
                before = first[free]
                while after[before] < row:
                    before = after[before]
                after[row] = after[before]
                after[before] = row
    # Rows are numbered anew, in the order of their first pages.
    number = np.full(rows, -1, np.int32)
    found = 0
    for page in range(pages):
        row = row_of[page]
        if number[row] < 0:
            number[row] = found
            sizes[found] = 0
            found += 1
        row_of[page] = number[row]
        sizes[number[row]] += 1
    ends = np.zeros(rows + 1, np.int64)
    for row in range(rows):
        ends[row + 1] = ends[row] + sizes[row]
    for page in range(pages):
        places[ends[row_of[page]]] = page
        ends[row_of[page]] += 1
    return rows


@njit(cache=True, nogil=True)
def _least_free(first: np.ndarray, counts: np.ndarray, least: int) -> int:
    """The smallest number of free positions, ``least`` or more, that a row has; -1 where none has as many."""
    block = least // _BLOCK
    if counts[block]:
        for free in range(least, min((block + 1) * _BLOCK, len(first))):
            if first[free] >= 0:
                return free
    for later in range(block + 1, len(counts)):
        if counts[later]:
            for free in range(later * _BLOCK, min((later + 1) * _BLOCK, len(first))):
                if first[free] >= 0:
                    return free
    return -1
