"""Units of the rendering strategies: how text is cut into them, and where they are put."""

import itertools

import numpy as np
import pytest

from megatron_pixel.rendering.itemize import mark_boundaries, replace_controls, word_classes
from megatron_pixel.rendering.segments import mark_grapheme_starts
from megatron_pixel.rendering.shaping import COUNT, FIRST, FONT, LEVEL, RUN_COLUMNS, WIDTH, WORD_BOUNDARY
from megatron_pixel.rendering.strategies import CHARACTERS_OF_UNIT, gather, mark_units, place_units, snap_runs
from megatron_pixel.rendering.unicode_tables import GENERAL_CATEGORIES, load_tables
from megatron_pixel.rendering.words import ADVANCE, CLUSTER, GLYPH, GLYPH_COLUMNS, X


def units(text: str, strategy: str) -> list[str]:
    """The units of a text."""
    tables = load_tables()
    codepoints = np.array([ord(character) for character in text], dtype=np.uint32)
    n = len(codepoints)
    drawn, paragraphs, starts = np.empty(n, np.uint32), np.empty(n, np.bool_), np.empty(n, np.bool_)
    replace_controls(codepoints, drawn, paragraphs)
    mark_grapheme_starts(codepoints, tables.grapheme_break, starts)
    classes = word_classes(tables.script, tables.script_tags, tables.category, GENERAL_CATEGORIES)
    boundaries, marked = np.empty(n, np.uint8), np.empty(n, np.bool_)
    mark_boundaries(codepoints, starts, tables.flags, classes, boundaries)
    mark_units(drawn, boundaries, tables.flags, CHARACTERS_OF_UNIT[strategy], marked)
    firsts = [*np.flatnonzero(marked).tolist(), n]
    return [text[a:b] for a, b in itertools.pairwise(firsts)]


@pytest.mark.parametrize(
    ("text", "bigrams", "words"),
    [
        ("I must be", ["I ", "mu", "st ", "be"], ["I ", "must ", "be"]),
        ("growing small.", ["gr", "ow", "in", "g ", "sm", "al", "l."], ["growing ", "small."]),
        (" a  b\n\ncde ", [" ", "a  ", "b\n\n", "cd", "e "], [" ", "a  ", "b\n\n", "cde "]),
        ("e\u0301te\u0301", ["e\u0301t", "e\u0301"], ["e\u0301te\u0301"]),
        ("世界，你好", ["世", "界，", "你", "好"], ["世", "界，", "你", "好"]),
        ("👋🏽👩‍👩‍👧🇫🇷", ["👋🏽👩‍👩‍👧", "🇫🇷"], ["👋🏽👩‍👩‍👧🇫🇷"]),
        ("a\u200bb\u00adc", ["a\u200bb\u00ad", "c"], ["a\u200bb\u00adc"]),
        ("\u200ba\u200b b", ["\u200ba\u200b ", "b"], ["\u200ba\u200b ", "b"]),
        ("سلام عالم", ["سل", "ام ", "عا", "لم"], ["سلام ", "عالم"]),
        (" " * 40, [" " * 16, " " * 16, " " * 8], [" " * 16, " " * 16, " " * 8]),
        ("a" + " " * 20 + "b", ["a" + " " * 16, " " * 4, "b"], ["a" + " " * 16, " " * 4, "b"]),
    ],
)
def test_units(text: str, bigrams: list[str], words: list[str]):
    assert units(text, "bigram") == bigrams
    assert units(text, "word") == words


def test_long_words_are_cut():
    assert [len(unit) for unit in units("x" * 600, "word")] == [256, 256, 88]
    marks = units("a" + "\u0301" * 1000, "word")
    assert "".join(marks) == "a" + "\u0301" * 1000
    assert max(map(len, units("a" + "\u0301" * 1000, "bigram"))) <= 128


class Shaped:
    """Made-up runs: every character is one glyph, whose advance is its number in ``advances``."""

    def __init__(self, text: str, levels: list[int], advances: dict[str, int]) -> None:
        self.letters = sorted(advances)
        n = len(text)
        self.drawn = np.array([ord(letter) for letter in text], np.uint32)
        bounds = [0, *(i for i in range(1, n) if levels[i] != levels[i - 1]), n]
        self.runs = np.zeros((len(bounds) - 1, RUN_COLUMNS), np.int32)
        self.glyphs = np.zeros((n, GLYPH_COLUMNS), np.int32)
        self.bearing = dict.fromkeys(self.letters, 1)
        self.width = {letter: 0 if letter == " " else advances[letter] - 2 for letter in self.letters}
        for r, (first, last) in enumerate(itertools.pairwise(bounds)):
            self.runs[r, :2] = first, last
            self.runs[r, LEVEL] = levels[first]
            self.runs[r, [FIRST, COUNT]] = first, last - first
            order = range(last - 1, first - 1, -1) if levels[first] % 2 else range(first, last)
            pen = 0
            for k, i in zip(range(first, last), order, strict=True):
                advance = advances[text[i]]
                self.glyphs[k, [GLYPH, X, ADVANCE, CLUSTER]] = self.letters.index(text[i]), pen, advance, i - first
                pen += advance
            self.runs[r, WIDTH] = pen

    def place(self, starts: list[int], size: int = 16) -> tuple[list[tuple[str, int]], list[int]]:
        """Letters with their pens, in the order they were placed, and the ends of the units."""
        n = len(self.drawn)
        marked = np.zeros(n, np.bool_)
        marked[starts] = True
        placed = np.zeros((n, GLYPH_COLUMNS), np.int32)
        firsts, ends = np.zeros(n, np.int32), np.zeros(n, np.int32)
        letters = [self.letters[number] for number in self.glyphs[:, GLYPH]]
        ink = np.array([[table[letter] for letter in letters] for table in (self.bearing, self.width)], np.int32)
        flags = load_tables().flags
        count, used = place_units(self.drawn, marked, flags, self.runs, self.glyphs, ink, size, placed, firsts, ends)
        assert firsts[:count].tolist() == starts
        return [(self.letters[glyph], x) for glyph, x in placed[:used, [GLYPH, X]].tolist()], ends[:count].tolist()


PIXELS = {"a": 8, "b": 8, "c": 7, "m": 13, " ": 4}


def test_units_begin_at_patches_and_take_what_they_need():
    shaped = Shaped("abmmc", [0] * 5, PIXELS)
    pens, ends = shaped.place([0, 2, 4])
    # The ink of "ab" is 15 pixels wide, that of "mm" 25.
    assert pens == [("a", 0), ("b", 8), ("m", 16), ("m", 29), ("c", 48)]
    assert ends == [1, 3, 4]


def test_white_space_takes_room_behind_its_unit_and_no_glyph():
    pens, ends = Shaped("ab ab", [0] * 5, PIXELS).place([0, 3])
    assert pens == [("a", 0), ("b", 8), ("a", 32), ("b", 40)]
    assert ends == [2, 3]
    assert Shaped("ac ", [0] * 3, PIXELS).place([0])[1] == [2]
    assert Shaped("cc  ", [0] * 4, {**PIXELS, " ": 1}).place([0])[1] == [1]
    assert Shaped("   a", [0] * 4, PIXELS).place([0, 3]) == ([("a", 16)], [1, 2])


def test_ink_left_of_the_pen_stays_in_the_unit():
    shaped = Shaped("aba", [0] * 3, PIXELS)
    shaped.bearing["b"] = -3
    pens, ends = shaped.place([0, 1])
    assert pens == [("a", 0), ("b", 19), ("a", 27)]  # b's ink begins at 16
    assert ends == [1, 3]  # and a's ends at 34


def test_units_follow_reading_order_and_bidi_holds_inside():
    # Logical order abc; all three right to left: as one unit reversed, as units in order.
    shaped = Shaped("abc", [1] * 3, PIXELS)
    assert shaped.place([0])[0] == [("c", 0), ("b", 7), ("a", 15)]
    assert shaped.place([0, 2])[0] == [("b", 0), ("a", 8), ("c", 16)]
    # A number inside right-to-left text: level 2 keeps its own order and stands left of what comes before it.
    shaped = Shaped("abcm", [1, 2, 2, 1], PIXELS)
    assert shaped.place([0])[0] == [("m", 0), ("b", 13), ("c", 21), ("a", 28)]


def test_the_grid_of_mono():
    boundaries = np.zeros(5, np.uint8)
    boundaries[[3, 4]] = WORD_BOUNDARY
    shaped = Shaped("acm a", [0] * 5, PIXELS)
    snap_runs(boundaries, shaped.runs, shaped.glyphs, 9, 8)
    assert shaped.glyphs[:, X].tolist() == [0, 8, 17, 34, 40]
    assert shaped.glyphs[:, ADVANCE].tolist() == [8, 8, 16, 8, 8]
    assert shaped.runs[0, WIDTH] == 48
    # In a font that is not the first one, whole words stand on the grid: 28 pixels of 32.
    shaped = Shaped("acm a", [0] * 5, PIXELS)
    shaped.runs[0, FONT] = 1
    snap_runs(boundaries, shaped.runs, shaped.glyphs, 9, 8)
    assert shaped.glyphs[:, X].tolist() == [2, 10, 17, 34, 40]
    assert shaped.runs[0, WIDTH] == 48


def test_gathered_glyphs_follow_the_runs():
    runs = np.zeros((2, RUN_COLUMNS), np.int32)
    runs[:, FIRST], runs[:, COUNT] = [5, 1], [2, 3]
    pool = np.arange(40, dtype=np.int32).reshape(8, GLYPH_COLUMNS)
    gathered = np.zeros((5, GLYPH_COLUMNS), np.int32)
    gather(runs, pool, gathered)
    assert gathered.tolist() == pool[[5, 6, 1, 2, 3]].tolist()
    assert runs[:, FIRST].tolist() == [0, 2]
