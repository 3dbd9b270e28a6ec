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
# Columns of the table of words: hash, first character and number of characters, tag (font, script, direction), first
# glyph and number of glyphs, width in pixels.
HASH, CHARACTERS, LENGTH, TAG, WORD_FIRST, WORD_COUNT, WORD_WIDTH = range(7)
_WORD_COLUMNS = 7
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
        self.slots: np.ndarray = np.full(2 * _MOST_WORDS, -1, dtype=np.int32)
        """int32 [a power of two]: row of ``words``, or -1."""
        self.words: np.ndarray = np.empty((_MOST_WORDS, _WORD_COLUMNS), dtype=np.int64)
        """int64 [room, 7]."""
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
            counters[WORDS] == _MOST_WORDS
            or counters[USED_CHARACTERS] > _MOST_CHARACTERS - LONGEST_WORD
            or counters[FRONT] > _MOST_GLYPHS
        ):
            self.clear()

    def clear(self) -> None:
        """Forget all words."""
        self.slots[:] = -1
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
    codepoints: np.ndarray,
    start: int,
    end: int,
    tag: int,
    slots: np.ndarray,
    words: np.ndarray,
    characters: np.ndarray,
) -> tuple[int, int, int]:
    """Look up ``codepoints[start:end]``; returns its row of ``words`` or -1, its slot, and its hash."""
    mixed = np.uint64(tag) * _MIX
    for i in range(start, end):
        mixed = (mixed ^ np.uint64(codepoints[i])) * _MIX
    mixed ^= mixed >> np.uint64(32)
    key: int = np.int64(mixed)  # type: ignore[assignment]
    mask = len(slots) - 1
    slot: int = key & mask
    while slots[slot] >= 0:
        word = slots[slot]
        if words[word, HASH] == key and words[word, LENGTH] == end - start and words[word, TAG] == tag:
            place = words[word, CHARACTERS] - start
            same = True
            for i in range(start, end):
                same &= characters[place + i] == codepoints[i]
            if same:
                return word, slot, key
        slot = (slot + 1) & mask
    return -1, slot, key


@njit(cache=True, nogil=True)
def add_word(
    codepoints: np.ndarray,
    start: int,
    end: int,
    tag: int,
    slot: int,
    key: int,
    count: int,
    width: int,
    slots: np.ndarray,
    words: np.ndarray,
    characters: np.ndarray,
    counters: np.ndarray,
) -> None:
    """Enter a word whose ``count`` glyphs have just been written at the end of the front part."""
    word, place = counters[WORDS], counters[USED_CHARACTERS]
    words[word, HASH] = key
    words[word, CHARACTERS] = place
    words[word, LENGTH] = end - start
    words[word, TAG] = tag
    words[word, WORD_FIRST] = counters[FRONT]
    words[word, WORD_COUNT] = count
    words[word, WORD_WIDTH] = width
    for i in range(start, end):
        characters[place + i - start] = codepoints[i]
    slots[slot] = word
    counters[WORDS] += 1
    counters[USED_CHARACTERS] += end - start
    counters[FRONT] += count


@njit(cache=True, nogil=True)
def has_room(size: int, words: np.ndarray, characters: np.ndarray, counters: np.ndarray) -> bool:
    """Whether one more word of ``size`` characters can be kept."""
    return counters[WORDS] < len(words) and counters[USED_CHARACTERS] + size <= len(characters)
