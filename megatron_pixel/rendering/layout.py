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
from megatron_pixel.rendering.itemize import (
    NO_FONT,
    choose_fonts,
    make_runs,
    mark_boundaries,
    replace_controls,
    word_classes,
)
from megatron_pixel.rendering.shaping import (
    END,
    GLYPH_ROWS,
    NO_ROOM,
    RUN_COLUMNS,
    find_cut,
    last_shown,
    place_runs,
    shape_runs,
)
from megatron_pixel.rendering.unicode_tables import (
    GENERAL_CATEGORIES,
    assign_scripts,
    load_tables,
    mark_grapheme_starts,
)

# A page shows at most as many characters as it has pixel columns, and this many: characters without width would
# otherwise never fill it.
_SPARE_CHARACTERS = 256
_PARAGRAPH_SEPARATOR = 0x2029
_CONTEXT = 5  # characters around a run that HarfBuzz looks at
_WIDEST = 2**31 - 1
_SHAPED_ALIKE = {"Hira": "Hani", "Kana": "Hani", "Bopo": "Hani"}


@dataclass(frozen=True)
class Line:
    """A text laid out. The arrays are scratch of the :class:`Layout`: they hold until its next call."""

    end: int
    """Characters of the text that the line shows."""
    width: int
    """Pixels from the start of the first glyph to the end of the last one's advance."""
    glyphs: np.ndarray
    """int32 [5, room]; see :mod:`megatron_pixel.rendering.shaping`."""
    run_glyphs: np.ndarray
    """int32 [runs + 1]: where each run's glyphs begin."""
    run_x: np.ndarray
    """int32 [runs]: pixels from the start of the line to each run."""

    def kept(self) -> "Line":
        """A copy that outlives the next call of the layout."""
        used = self.run_glyphs[-1]
        return replace(self, glyphs=self.glyphs[:, :used].copy(), run_glyphs=self.run_glyphs.copy())


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
        self._glyphs = np.zeros((GLYPH_ROWS, 8192), dtype=np.int32)
        self._run_glyphs = np.zeros(1, dtype=np.int32)
        self._run_width = np.zeros(0, dtype=np.int32)

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
        runs, drawn, starts = self._itemize(codepoints, base)
        shaped, width = self._shape(drawn, runs, 0, enough)
        line = self._place(runs[:shaped], total)
        if width <= limit and len(codepoints) == total:
            return line
        shown = last_shown(line.glyphs, line.run_glyphs, line.run_x, limit)
        following = np.flatnonzero(starts[shown + 1 :])
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
            runs, drawn, starts = self._itemize(window)
            shaped, width = self._shape(drawn, runs, 0, limit)
            if width > limit:
                break
        if width <= limit and size == total:
            return self._place(runs, total)

        boundaries = np.empty(size, dtype=np.uint8)
        mark_boundaries(window, starts, self._tables.flags, self._word_class, boundaries)
        end = size
        while cut := find_cut(runs, shaped, self._glyphs, self._run_glyphs, boundaries, limit, end):
            end = cut
            previous = runs[:shaped]
            runs, drawn, _ = self._itemize(codepoints[:end])
            same = _common_runs(previous, runs, end - _CONTEXT)
            shaped, width = self._shape(drawn, runs, same, limit)
            # Alone, the text may be a little wider than as the beginning of a longer one: letters at its end may
            # take another form.
            if width <= limit:
                break
        else:
            shaped, width = self._shape(drawn, runs, shaped, _WIDEST)  # one letter, wider than a page
        return self._place(runs, end)

    def _itemize(self, codepoints: np.ndarray, base: int = -1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs (int32 [k, 6]), what is drawn for each character (uint32 [n]), and first characters of clusters."""
        n = len(codepoints)
        tables = self._tables
        drawn = np.empty(n, dtype=np.uint32)
        paragraphs = np.empty(n, dtype=np.bool_)
        replace_controls(codepoints, drawn, paragraphs)
        if self._one_paragraph:
            paragraphs[:] = False
        starts = np.empty(n, dtype=np.bool_)
        mark_grapheme_starts(codepoints, tables.grapheme_break, starts)
        scripts = np.empty(n, dtype=np.uint8)
        assign_scripts(drawn, tables.script, tables.script_extension, tables.script_sets, tables.bracket, scripts)
        fonts = np.empty(n, dtype=np.uint8)
        coverage = self._coverage
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
        runs = np.empty((n, RUN_COLUMNS), dtype=np.int32)
        count = make_runs(drawn, starts, fonts, scripts, self._script_group, self.color_font, levels, paragraphs, runs)
        return runs[:count], drawn, starts

    def _levels(self, drawn: np.ndarray, paragraphs: np.ndarray, base: int) -> np.ndarray:
        """Bidi levels, uint8 [n]: every paragraph takes its direction from its own first letter."""
        if base != 1 and not bidi.has_rtl(drawn):
            return np.zeros(len(drawn), dtype=np.uint8)
        return bidi.resolve_levels(np.where(paragraphs, np.uint32(_PARAGRAPH_SEPARATOR), drawn), base)

    def _shape(self, drawn: np.ndarray, runs: np.ndarray, first: int, limit: int) -> tuple[int, int]:
        """Shape runs from ``first`` on until the width passes ``limit``; returns how many are shaped, and the width."""
        if len(self._run_width) < len(runs):
            self._run_width = _grown(self._run_width, len(runs))
            self._run_glyphs = _grown(self._run_glyphs, len(runs) + 1)
        while True:
            outcome, shaped, width = shape_runs(
                drawn,
                runs,
                first,
                limit,
                self._functions,
                self._buffer.address,
                self._count,
                self._fonts,
                self.first_glyph,
                self._script_tags,
                self._glyphs,
                self._run_glyphs,
                self._run_width,
            )
            if outcome != NO_ROOM:
                return shaped, width
            first = shaped
            wider = np.zeros((GLYPH_ROWS, 2 * self._glyphs.shape[1]), dtype=np.int32)
            wider[:, : self._glyphs.shape[1]] = self._glyphs
            self._glyphs = wider

    def _place(self, runs: np.ndarray, end: int) -> Line:
        run_x = np.empty(len(runs), dtype=np.int32)
        width = place_runs(runs, self._run_width, run_x)
        return Line(end, width, self._glyphs, self._run_glyphs[: len(runs) + 1], run_x)


def _common_runs(first: np.ndarray, second: np.ndarray, last_end: int) -> int:
    """How many leading runs are the same in both and end at ``last_end`` or before."""
    n = min(len(first), len(second))
    same = (first[:n] == second[:n]).all(axis=1) & (first[:n, END] <= last_end)
    return n if same.all() else int(np.argmin(same))


def _grown(array: np.ndarray, length: int) -> np.ndarray:
    grown = np.zeros(2 * length, dtype=array.dtype)
    grown[: len(array)] = array
    return grown
