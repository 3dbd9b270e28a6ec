"""Laying out: a text becomes one line of positioned glyphs, as much of it as fits."""

from dataclasses import dataclass, replace

import numpy as np

from megatron_pixel.rendering import bidi
from megatron_pixel.rendering.coverage import build_coverage
from megatron_pixel.rendering.fonts import FontFile
from megatron_pixel.rendering.harfbuzz import (
    PIXEL,
    PIXEL_BITS,
    ShapingBuffer,
    ShapingFont,
    function_addresses,
    script_tag,
)
from megatron_pixel.rendering.itemize import NO_FONT, choose_fonts, mark_boundaries, replace_controls, word_classes
from megatron_pixel.rendering.runs import make_runs, make_styles
from megatron_pixel.rendering.seams import Seams
from megatron_pixel.rendering.segments import assign_scripts, mark_grapheme_starts
from megatron_pixel.rendering.shaping import (
    COUNT,
    END,
    FIRST,
    IS_WORD,
    NO_ROOM,
    NO_WORD,
    PARAGRAPH,
    RUN_COLUMNS,
    find_cut,
    last_shown,
    place_runs,
    shape_runs,
)
from megatron_pixel.rendering.simple_text import character_traits, itemize_simple
from megatron_pixel.rendering.unicode_tables import GENERAL_CATEGORIES, load_tables
from megatron_pixel.rendering.words import WordCache

# A page shows at most as many characters as it has pixel columns, and this many: characters without width would
# otherwise never fill it.
_SPARE_CHARACTERS = 256
_PARAGRAPH_SEPARATOR = 0x2029
_CONTEXT = 5  # characters around a run that HarfBuzz looks at
_WIDEST = 2**31 - 1
_SHAPED_ALIKE = {"Hira": "Hani", "Kana": "Hani", "Bopo": "Hani"}


@dataclass(frozen=True, slots=True)
class Line:
    """A text laid out. The arrays are scratch of the :class:`Layout`: they hold until its next call."""

    end: int
    """Characters of the text that the line shows."""
    width: int
    """Pixels from the start of the first glyph to the end of the last one's advance."""
    glyphs: np.ndarray
    """int32 [room, 5]; see :mod:`megatron_pixel.rendering.words`."""
    runs: np.ndarray
    """int32 [runs, 11], which name their glyphs and places; see :mod:`megatron_pixel.rendering.shaping`."""
    order: np.ndarray
    """int32 [runs]: the runs from left to right."""

    def kept(self) -> "Line":
        """A copy that outlives the next call of the layout."""
        runs = self.runs.copy()
        counts = runs[:, COUNT]
        firsts = np.cumsum(counts, dtype=np.int32) - counts
        glyphs = self.glyphs[np.repeat(runs[:, FIRST] - firsts, counts) + np.arange(counts.sum())]
        runs[:, FIRST] = firsts
        return replace(self, glyphs=glyphs, runs=runs, order=self.order.copy())


@dataclass(frozen=True, slots=True)
class _Itemized:
    """A text cut into runs. The arrays are scratch, as those of a :class:`Line`."""

    drawn: np.ndarray
    """uint32 [n]: what is drawn for each character."""
    starts: np.ndarray
    """bool [n]: first characters of grapheme clusters."""
    runs: np.ndarray
    """int32 [runs, 11]."""
    strong: int
    """The first character with a script of its own, n where there is none; -1 where the text is not simple."""


class Layout:
    """Itemizes, shapes and measures text in the fonts of a chain."""

    def __init__(self, fonts: list[FontFile], pixels: float, one_paragraph: bool) -> None:
        self._one_paragraph = one_paragraph
        self._tables = load_tables()
        em = pixels * PIXEL
        self._shaping_fonts = [
            ShapingFont(font.path, font.index, (round(em), round(em * font.height))) for font in fonts
        ]
        in_color = [any(map(font.has_table, ("COLR", "CBDT", "sbix"))) for font in self._shaping_fonts]
        self.color_font = in_color.index(True) if True in in_color else NO_FONT
        self._coverage = build_coverage([font.codepoints() for font in self._shaping_fonts], in_color)
        self.first_glyph = np.cumsum([0, *(font.num_glyphs for font in self._shaping_fonts)]).astype(np.int64)
        """int64 [fonts + 1]: where each font's glyphs begin in the numbering over all fonts."""

        tags = self._tables.script_tags
        self._script_tags = np.array([script_tag(tag) for tag in tags], dtype=np.uint32)
        self._script_group = np.array([tags.index(_SHAPED_ALIKE.get(tag, tag)) for tag in tags], dtype=np.uint8)
        self._word_class = word_classes(self._tables.script, tags, self._tables.category, GENERAL_CATEGORIES)
        self._fonts = np.array([font.address for font in self._shaping_fonts], dtype=np.int64)
        self._functions = function_addresses()
        self._buffer = ShapingBuffer()
        self._count = np.zeros(1, dtype=np.uint32)
        self._features = np.zeros(0, dtype=np.uint32)
        self._traits = character_traits(self._tables, self._coverage, self.color_font)
        self._seams = Seams(self._shaping_fonts, self._tables)
        self._cache = WordCache()
        self._make_scratch(4096)

    def glyph_advances(self) -> np.ndarray:
        """int16 [glyphs of all fonts]: advances in pixels before shaping, rounded as shaping rounds them."""
        advances = np.concatenate([font.advances() for font in self._shaping_fonts])
        return np.clip((advances + PIXEL // 2) >> PIXEL_BITS, -(2**15), 2**15 - 1).astype(np.int16)

    def most_characters(self, limit: int) -> int:
        """The most characters that a line of ``limit`` pixels shows."""
        return limit + _SPARE_CHARACTERS

    def whole(self, codepoints: np.ndarray, limit: int, base: int = -1) -> Line:
        """Lay out a text (uint32 [n]) as one line, whatever its length, as far as its first ``limit`` pixels need it.

        ``base`` is the paragraph's level, -1 for the direction of its first letter. The line's ``end`` is the character
        after the last one that begins within these pixels.
        """
        total = len(codepoints)
        enough = limit
        if base == 1 or bidi.has_rtl(codepoints):
            enough = _WIDEST  # what stands at the left may be the end of the text
        else:
            codepoints = codepoints[: self.most_characters(limit)]
        text = self._itemize(codepoints, base)
        shaped, width = self._shape(text.drawn, text.runs, 0, enough)
        line = self._place(text.runs[:shaped], total)
        if width <= limit and len(codepoints) == total:
            return line
        shown = last_shown(line.runs, line.glyphs, limit)
        following = np.flatnonzero(text.starts[shown + 1 :])
        end = shown + 1 + int(following[0]) if len(following) else len(codepoints)
        return replace(line, end=end, width=max(width, limit + 1))

    def fitting(self, codepoints: np.ndarray, limit: int) -> Line:
        """Lay out as much of a text (uint32 [n]) as ``limit`` pixels hold, cut between words where it is too long.

        The line is what laying out ``codepoints[:line.end]`` alone gives.
        """
        total = len(codepoints)
        most = min(self.most_characters(limit), total)
        # Most pages are full long before they have as many characters as pixels.
        for size in sorted({min(limit // 4 + _SPARE_CHARACTERS, most), most}):
            window = codepoints[:size]
            text = self._itemize(window)
            shaped, width = self._shape(text.drawn, text.runs, 0, limit)
            if width > limit:
                break
        if (width <= limit and size == total) or total == 0:
            return self._place(text.runs, total)

        seen = min(int(text.runs[shaped - 1, END]) + 1, size)
        boundaries = np.empty(seen, dtype=np.uint8)
        mark_boundaries(window[:seen], text.starts, self._tables.flags, self._word_class, boundaries)
        end = size
        while cut := find_cut(text.runs, shaped, self._cache.glyphs, boundaries, limit, end):
            end = cut
            before = text.runs[:shaped].copy()
            text = self._cut(text, codepoints, end)
            same = _common_runs(before, text.runs, end - _CONTEXT)
            text.runs[:same] = before[:same]
            shaped, width = self._shape(text.drawn, text.runs, same, limit)
            # Alone, the text may be a little wider than as the beginning of a longer one: letters at its end may
            # take another form.
            if width <= limit:
                break
        else:
            shaped, width = self._shape(text.drawn, text.runs, shaped, _WIDEST)  # one letter, wider than a page
        return self._place(text.runs, end)

    def _cut(self, text: _Itemized, codepoints: np.ndarray, end: int) -> _Itemized:
        """Itemize ``codepoints[:end]``, given the same of more of it."""
        if not 0 <= text.strong < end and text.strong != len(text.drawn):
            return self._itemize(codepoints[:end])
        # Simple text is itemized from left to right, so its beginning is the same.
        count = int(np.searchsorted(text.runs[:, END], end)) + 1
        runs = text.runs[:count]
        if runs[-1, END] > end:
            runs[-1, END] = end
            runs[-1, IS_WORD] = NO_WORD  # what ends it has not been looked at
        return _Itemized(text.drawn[:end], text.starts[:end], runs, min(text.strong, end))

    def _make_scratch(self, length: int) -> None:
        self._drawn = np.empty(length, dtype=np.uint32)
        self._starts = np.empty(length, dtype=np.bool_)
        self._styles = np.empty(length, dtype=np.uint32)
        self._runs = np.empty((length, RUN_COLUMNS), dtype=np.int32)
        self._order = np.empty(length, dtype=np.int32)

    def _itemize(self, codepoints: np.ndarray, base: int = -1) -> _Itemized:
        """Cut a text (uint32 [n]) into runs; ``base`` is the level of its paragraphs, -1 for that of their letters."""
        n = len(codepoints)
        if n > len(self._drawn):
            self._make_scratch(2 * n)
        drawn, starts, styles = self._drawn[:n], self._starts[:n], self._styles[:n]
        tables, coverage, seams = self._tables, self._coverage, self._seams
        strong = -1
        if base != 1:
            strong = itemize_simple(
                codepoints,
                self._traits,
                self._one_paragraph,
                tables.flags,
                tables.script,
                tables.script_extension,
                tables.script_sets,
                tables.bracket,
                coverage.row,
                coverage.masks,
                coverage.first_font,
                self._script_group,
                self.color_font,
                drawn,
                starts,
                styles,
            )
        if strong < 0:
            self._itemize_fully(codepoints, base, drawn, starts, styles)
        while True:
            count = make_runs(drawn, starts, styles, seams.plans, seams.kinds, seams.pages, seams.masks, self._runs)
            if count >= 0:
                return _Itemized(drawn, starts, self._runs[:count], strong)
            style = int(styles[-1 - count])
            seams.add(style & 255, style >> 8 & 255, style >> 16 & 1)

    def _itemize_fully(
        self, codepoints: np.ndarray, base: int, drawn: np.ndarray, starts: np.ndarray, styles: np.ndarray
    ) -> None:
        n = len(codepoints)
        tables, coverage = self._tables, self._coverage
        paragraphs = np.empty(n, dtype=np.bool_)
        replace_controls(codepoints, drawn, paragraphs)
        if self._one_paragraph:
            paragraphs[:] = False
        mark_grapheme_starts(codepoints, tables.grapheme_break, starts)
        scripts = np.empty(n, dtype=np.uint8)
        assign_scripts(drawn, tables.script, tables.script_extension, tables.script_sets, tables.bracket, scripts)
        fonts = np.empty(n, dtype=np.uint8)
        choose_fonts(
            drawn,
            starts,
            tables.flags,
            tables.script,
            coverage.row,
            coverage.masks,
            coverage.first_font,
            self.color_font,
            fonts,
        )
        levels = self._levels(drawn, paragraphs, base)
        make_styles(fonts, scripts, self._script_group, self.color_font, levels, paragraphs, styles)

    def _levels(self, drawn: np.ndarray, paragraphs: np.ndarray, base: int) -> np.ndarray:
        """Bidi levels, uint8 [n]: every paragraph takes its direction from its own first letter."""
        if base != 1 and not bidi.has_rtl(drawn):
            return np.zeros(len(drawn), dtype=np.uint8)
        return bidi.resolve_levels(np.where(paragraphs, np.uint32(_PARAGRAPH_SEPARATOR), drawn), base)

    def _shape(self, drawn: np.ndarray, runs: np.ndarray, first: int, limit: int) -> tuple[int, int]:
        """Shape runs from ``first`` on until the width passes ``limit``; returns how many are shaped, and the width."""
        cache = self._cache
        if first == 0:
            cache.start()
        while True:
            outcome, shaped, width = shape_runs(
                drawn,
                runs,
                first,
                limit,
                self._functions,
                self._buffer.address,
                self._features,
                self._count,
                self._fonts,
                self.first_glyph,
                self._script_tags,
                cache.words,
                cache.characters,
                cache.glyphs,
                cache.counters,
            )
            if outcome != NO_ROOM:
                return shaped, width
            first = shaped
            cache.grow(runs[:shaped, FIRST])

    def _place(self, runs: np.ndarray, end: int) -> Line:
        order = self._order[: len(runs)]
        width = place_runs(runs, order)
        return Line(end, width, self._cache.glyphs, runs, order)


def _common_runs(first: np.ndarray, second: np.ndarray, last_end: int) -> int:
    """How many leading runs are the same in both and end at ``last_end`` or before."""
    n = min(len(first), len(second))
    columns = slice(0, PARAGRAPH + 1)
    same = (first[:n, columns] == second[:n, columns]).all(axis=1) & (first[:n, END] <= last_end)
    return n if same.all() else int(np.argmin(same))
