"""Where a text may be cut: the renderer's own word and grapheme boundaries, for cuts that the tokens ask for."""

import numpy as np

from megatron_pixel.rendering.itemize import mark_boundaries, word_classes
from megatron_pixel.rendering.segments import mark_grapheme_starts
from megatron_pixel.rendering.shaping import CLUSTER_BOUNDARY, WORD_BOUNDARY
from megatron_pixel.rendering.unicode_tables import GENERAL_CATEGORIES, load_tables


class WordBoundaries:
    """Finds the last good place for a cut."""

    def __init__(self) -> None:
        self._tables = load_tables()
        self._word_class = word_classes(
            self._tables.script, self._tables.script_tags, self._tables.category, GENERAL_CATEGORIES
        )

    def last(self, text: str, end: int) -> int:
        """The last word boundary of ``text`` from 1 to ``end`` (< len(text)); without one the last boundary between
        graphemes; without that ``end``."""
        codepoints = np.frombuffer(text[: end + 1].encode("utf-32-le"), dtype=np.uint32)
        starts = np.empty(len(codepoints), dtype=np.bool_)
        mark_grapheme_starts(codepoints, self._tables.grapheme_break, starts)
        boundaries = np.empty(len(codepoints), dtype=np.uint8)
        mark_boundaries(codepoints, starts, self._tables.flags, self._word_class, boundaries)
        for kind in (WORD_BOUNDARY, CLUSTER_BOUNDARY):
            places = np.flatnonzero(boundaries & kind)
            if len(places):
                return int(places[-1])
        return end
