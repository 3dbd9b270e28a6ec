"""Laying out with a rendering strategy other than ``continuous``: the text of a page is shaped as ever, and then its
glyphs are moved to where the strategy wants them (see :mod:`megatron_pixel.rendering.strategies`)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megatron_pixel.rendering.fonts import FontFile
from megatron_pixel.rendering.itemize import mark_boundaries
from megatron_pixel.rendering.layout import Layout, Line
from megatron_pixel.rendering.shaping import (
    CLUSTER_BOUNDARY,
    COUNT,
    END,
    FIRST,
    PLACE,
    RUN_COLUMNS,
    WORD_BOUNDARY,
    find_cut,
)
from megatron_pixel.rendering.strategies import CHARACTERS_OF_UNIT, gather, mark_units, place_units, snap_runs
from megatron_pixel.rendering.words import GLYPH_COLUMNS

Ink = Callable[[Line], np.ndarray]
"""int32 [2, k]: of the glyphs of a line, in the order of its runs, pixels from the pen to the ink, and of the ink."""

_NO_LIGATURES = ("liga", "clig")
_EVERYWHERE = 0xFFFFFFFF
_LONGEST_FIRST_TRY = 3  # characters for each patch: few pages hold more


@dataclass(frozen=True, slots=True)
class _Arranged:
    """A text whose glyphs are where they belong."""

    line: Line
    boundaries: np.ndarray
    """uint8 [n]: see ``mark_boundaries``."""
    starts: np.ndarray
    """int32 [units]: first characters; empty for ``mono``."""
    ends: np.ndarray
    """int32 [units]: the patch after each unit."""


class UnitLayout(Layout):
    """A :class:`Layout` for strategies ``bigram``, ``word`` and ``mono``. Widths are counted from a patch boundary."""

    def __init__(self, fonts: list[FontFile], pixels: float, strategy: str, patch_size: int, ink: Ink) -> None:
        super().__init__(fonts, pixels, one_paragraph=False)
        self._most = CHARACTERS_OF_UNIT.get(strategy, 0)
        """Characters of a unit; 0 for ``mono``, which has none."""
        self._patch_size = patch_size
        self._ink = ink
        if strategy != "word":  # a ligature would join two patches
            settings = [(int.from_bytes(tag.encode(), "big"), 0, 0, _EVERYWHERE) for tag in _NO_LIGATURES]
            self._features = np.array(settings, dtype=np.uint32).ravel()

    def fitting(self, codepoints: np.ndarray, limit: int) -> Line:
        """As :meth:`Layout.fitting`: the line is what laying out ``codepoints[:line.end]`` alone gives."""
        total = len(codepoints)
        most = min(self.most_characters(limit), total)
        first_try = _LONGEST_FIRST_TRY * limit // self._patch_size
        for size in sorted({min(first_try, most), most}):
            arranged = self._arrange(codepoints[:size], limit)
            if arranged.line.width > limit:
                break
        if arranged.line.width <= limit and arranged.line.end == total:
            return arranged.line
        end = arranged.line.end + 1
        while cut := self._cut_before(arranged, end, limit):
            end = cut
            arranged = self._arrange(codepoints[:end], 0)
            # Alone, the text may be a little wider than as the beginning of a longer one: letters at its end may
            # take another form.
            if arranged.line.width <= limit:
                break
        return arranged.line

    def _arrange(self, codepoints: np.ndarray, limit: int) -> _Arranged:
        """Lay out a text, or (with a ``limit``) as much of it as is wider than that for certain."""
        text = self._itemize(codepoints)
        # Placing may take away the room beside the ink of a letter, hence a little more than the limit.
        shaped, _ = self._shape(text.drawn, text.runs, 0, limit + limit // 4 if limit else 2**31 - 1)
        runs = text.runs[:shaped]
        end = int(runs[-1, END]) if shaped else 0
        boundaries = np.empty(end, dtype=np.uint8)
        nothing = np.empty(0, dtype=np.int32)
        if end:
            mark_boundaries(codepoints[:end], text.starts, self._tables.flags, self._word_class, boundaries)
        glyphs = np.empty((int(runs[:, COUNT].sum()), GLYPH_COLUMNS), dtype=np.int32)
        gather(runs, self._cache.glyphs, glyphs)
        if not self._most or not end:
            snap_runs(boundaries, runs, glyphs, self.color_font, self._patch_size // 2)
            line = self._place(runs, end)
            return _Arranged(Line(end, line.width, glyphs, runs, line.order), boundaries, nothing, nothing)
        runs[:, PLACE] = 0  # they have no places yet
        units = np.empty(end, dtype=np.bool_)
        mark_units(text.drawn[:end], boundaries, self._tables.flags, self._most, units)
        ink = self._ink(Line(end, 0, glyphs, runs, np.arange(shaped, dtype=np.int32)))
        placed = np.empty_like(glyphs)
        starts, ends = np.empty(end, dtype=np.int32), np.empty(end, dtype=np.int32)
        flags, size = self._tables.flags, self._patch_size
        count, used = place_units(text.drawn, units, flags, runs, glyphs, ink, size, placed, starts, ends)
        whole = np.zeros((1, RUN_COLUMNS), dtype=np.int32)
        whole[0, [END, FIRST, COUNT, PLACE]] = end, 0, used, 0
        line = Line(end, int(ends[count - 1]) * size, placed, whole, np.zeros(1, dtype=np.int32))
        return _Arranged(line, boundaries, starts[:count], ends[:count])

    def _cut_before(self, arranged: _Arranged, before: int, limit: int) -> int:
        """The last place before ``before`` where the text may be cut so that it fits ``limit``; 0 if there is none.

        Between words; without one, between units; in a first unit that is too long, between characters.
        """
        if not self._most:
            line = arranged.line
            return find_cut(line.runs, len(line.runs), line.glyphs, arranged.boundaries, limit, before)
        starts, ends = arranged.starts[1:], arranged.ends[:-1]
        fitting = starts[(ends <= limit // self._patch_size) & (starts < before)]
        between_words = fitting[arranged.boundaries[fitting] & WORD_BOUNDARY != 0]
        if len(between_words):
            return int(between_words[-1])
        if len(fitting):
            return int(fitting[-1])
        first_unit = int(arranged.starts[1]) if len(arranged.starts) > 1 else arranged.line.end
        clusters = np.flatnonzero(arranged.boundaries[: min(first_unit, before)] & CLUSTER_BOUNDARY)
        if not len(clusters):
            return 0
        # The rooms of its characters are about equal; if not, the next call takes away more.
        share = limit / max(int(arranged.ends[0]) * self._patch_size, limit, 1)
        return int(clusters[min(max(int(len(clusters) * share) - 1, 0), len(clusters) - 1)])
