"""The word cache: what HarfBuzz made of a word is kept, so that most of a text is looked up and not shaped.

A word is a stretch of a run that is shaped alone as it is shaped in its run, whatever stands around it (see
:mod:`megatron_pixel.rendering.seams`), so its glyphs depend on its characters, font, script and direction only. The
cache is a hash table; the characters of its words lie in one array, their glyphs in the front part of the array of
glyphs, whose back part holds what is shaped for the present page alone. When it is full, it is emptied.
"""

import numpy as np
from numba import njit

# Columns of the int32 array of glyphs: glyph number over all fonts, pen position within the run plus offset, offset
# upwards, advance (all in pixels), first character, counted from the start of the run.
GLYPH, X, Y, ADVANCE, CLUSTER = range(5)
GLYPH_COLUMNS = 5
# Columns of the int32 table of words, 32 bytes a row, so that a look-up touches little memory: a part of the hash, tag
# (font, script, direction) and number of characters (0: an empty slot), first character, first glyph and number of
# glyphs, width in pixels.
HASH, TAG, CHARACTERS, WORD_FIRST, WORD_COUNT, WORD_WIDTH = range(6)
_WORD_COLUMNS = 8
# Counters: words, their characters, glyphs of the front part, first glyph of the back part.
WORDS, USED_CHARACTERS, FRONT, BACK = range(4)

LONGEST_WORD = 48
"""Longer words are rarely met again."""
_MOST_WORDS = 1 << 16
_MOST_CHARACTERS = 1 << 20
_MOST_GLYPHS = 1 << 20
_MIX = np.uint64(0x9E3779B97F4A7C15)


class WordCache:
    """Arrays of the cache; compiled code fills them."""

    def __init__(self) -> None:
        self.words: np.ndarray = np.zeros((2 * _MOST_WORDS, _WORD_COLUMNS), dtype=np.int32)
        """int32 [a power of two, 8]: the hash table, at most half full."""
        self.characters: np.ndarray = np.empty(_MOST_CHARACTERS, dtype=np.uint32)
        """uint32 [room]."""
        self.glyphs: np.ndarray = np.empty((1 << 15, GLYPH_COLUMNS), dtype=np.int32)
        """int32 [room, 5]."""
        self.counters: np.ndarray = np.array([0, 0, 0, len(self.glyphs)], dtype=np.int64)
        """int64 [4]."""

    def start(self) -> None:
        """Begin a page: what was shaped for the one before is forgotten, and everything if the cache is full."""
        counters = self.counters
        counters[BACK] = len(self.glyphs)
        if (
            counters[WORDS] == len(self.words) // 2
            or counters[USED_CHARACTERS] > _MOST_CHARACTERS - LONGEST_WORD
            or counters[FRONT] > _MOST_GLYPHS
        ):
            self.clear()

    def clear(self) -> None:
        """Forget all words."""
        self.words[:] = 0
        self.counters[:] = 0, 0, 0, len(self.glyphs)

    def grow(self, first: np.ndarray) -> None:
        """Make room for twice as many glyphs; ``first`` (places of glyphs in use) is moved along."""
        old, back = self.glyphs, int(self.counters[BACK])
        self.glyphs = np.empty((2 * len(old), GLYPH_COLUMNS), dtype=np.int32)
        self.glyphs[: self.counters[FRONT]] = old[: self.counters[FRONT]]
        self.glyphs[len(old) + back :] = old[back:]
        first[first >= back] += len(old)
        self.counters[BACK] += len(old)


@njit(cache=True, nogil=True)
def find_word(
    codepoints: np.ndarray, start: int, end: int, tag: int, words: np.ndarray, characters: np.ndarray
) -> tuple[bool, int, int]:
    """Look up ``codepoints[start:end]``; returns whether it is there, its row of ``words`` or the one that it may
    take, and the part of its hash that is kept."""
    mixed = np.uint64(tag) * _MIX
    for i in range(start, end):
        mixed = (mixed ^ np.uint64(codepoints[i])) * _MIX
    mixed ^= mixed >> np.uint64(32)
    key: int = np.int32(mixed & np.uint64(0x7FFFFFFF))  # type: ignore[assignment]
    mask = np.uint64(len(words) - 1)
    row: int = np.int64((mixed >> np.uint64(31)) & mask)  # type: ignore[assignment]
    sought = np.int32(tag << 8 | (end - start))
    while words[row, TAG] != 0:
        if words[row, HASH] == key and words[row, TAG] == sought:
            place = np.int64(words[row, CHARACTERS]) - start
            same = True
            for i in range(start, end):
                same &= characters[place + i] == codepoints[i]
            if same:
                return True, row, key
        row = (row + 1) & (len(words) - 1)
    return False, row, key


@njit(cache=True, nogil=True)
def add_word(
    codepoints: np.ndarray,
    start: int,
    end: int,
    tag: int,
    row: int,
    key: int,
    count: int,
    width: int,
    words: np.ndarray,
    characters: np.ndarray,
    counters: np.ndarray,
) -> None:
    """Enter a word whose ``count`` glyphs have just been written at the end of the front part."""
    place = counters[USED_CHARACTERS]
    words[row, HASH] = key
    words[row, TAG] = tag << 8 | (end - start)
    words[row, CHARACTERS] = place
    words[row, WORD_FIRST] = counters[FRONT]
    words[row, WORD_COUNT] = count
    words[row, WORD_WIDTH] = width
    for i in range(start, end):
        characters[place + i - start] = codepoints[i]
    counters[WORDS] += 1
    counters[USED_CHARACTERS] += end - start
    counters[FRONT] += count


@njit(cache=True, nogil=True)
def has_room(size: int, words: np.ndarray, characters: np.ndarray, counters: np.ndarray) -> bool:
    """Whether one more word of ``size`` characters can be kept."""
    return 2 * counters[WORDS] < len(words) and counters[USED_CHARACTERS] + size <= len(characters)
