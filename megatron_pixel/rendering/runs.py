"""From styles to runs: where one call of HarfBuzz, or one look-up of a word, ends and the next begins."""

import numpy as np
from numba import njit

from megatron_pixel.rendering.itemize import SPACE
from megatron_pixel.rendering.seams import DENSE, NEVER_FIRST, NO_PLAN, SPACED, WHOLE
from megatron_pixel.rendering.shaping import AT_SEAM, END, FONT, IS_WORD, LEVEL, NO_WORD, PARAGRAPH, SCRIPT, START, WORD
from megatron_pixel.rendering.words import LONGEST_WORD

# A run is shaped in pieces of whole words, so that a long document is not shaped far beyond the end of its page; a
# word as long as this is cut anyway, so that no text takes more than linear time.
_PIECE, _LONGEST_RUN = 384, 2048

PARAGRAPH_END = np.uint32(1 << 24)
"""Bit of a style; its font is in bits 0 to 7, the script in 8 to 15, the bidi level in 16 to 23."""


@njit(cache=True, nogil=True)
def make_styles(
    fonts: np.ndarray,
    scripts: np.ndarray,
    script_group: np.ndarray,
    color_font: int,
    levels: np.ndarray,
    paragraphs: np.ndarray,
    styles: np.ndarray,
) -> None:
    """Pack what the characters of a run have in common into ``styles``, uint32 [n].

    ``script_group`` (uint8 by script id) names one script for those that are shaped alike and alternate within words
    (kanji and kana); emoji have none.
    """
    for i in range(len(styles)):
        font = np.uint32(fonts[i])
        script = np.uint32(0 if font == color_font else script_group[scripts[i]])
        styles[i] = font | script << np.uint32(8) | np.uint32(levels[i]) << np.uint32(16)
        if paragraphs[i]:
            styles[i] |= PARAGRAPH_END


@njit(cache=True, nogil=True)
def _is_seam(drawn: np.ndarray, starts: np.ndarray, i: int, plan: int, pages: np.ndarray, masks: np.ndarray) -> bool:
    """Whether the text may be cut between the clusters before and after character ``i``, which begins one."""
    c = drawn[i]
    right = masks[pages[plan, c >> 8], c & 255]
    if right & NEVER_FIRST:
        return False
    k = i + 1
    while k < len(drawn) and not starts[k]:
        c = drawn[k]
        right |= masks[pages[plan, c >> 8], c & 255]
        k += 1
    left = np.uint64(0)
    k = i - 1
    while True:
        c = drawn[k]
        left |= masks[pages[plan, c >> 8], c & 255]
        if k == 0 or starts[k]:
            break
        k -= 1
    return left & right & ~NEVER_FIRST == 0


@njit(cache=True, nogil=True)
def make_runs(
    drawn: np.ndarray,
    starts: np.ndarray,
    styles: np.ndarray,
    plans: np.ndarray,
    kinds: np.ndarray,
    pages: np.ndarray,
    masks: np.ndarray,
    runs: np.ndarray,
) -> int:
    """Cut the text where its style changes and at seams; returns the number of rows of ``runs``.

    ``styles``: uint32 [n], see :func:`make_styles`. A paragraph's end is a run of its own, so that the space in its
    place stands at the right of it. ``plans`` and the next three: see
    :class:`~megatron_pixel.rendering.seams.Seams`. Where a plan is not known yet, -1 - place of a character that needs
    it is returned. Rows: see :mod:`megatron_pixel.rendering.shaping`.
    """
    n = len(drawn)
    count = 0
    paragraph = 0
    piece = 0
    while piece < n:
        look = np.int64(styles[piece])
        ends_paragraph = look & np.int64(PARAGRAPH_END) != 0
        font, script, level = look & 255, look >> 8 & 255, look >> 16 & 255
        plan = plans[font, script, level & 1]
        if plan == NO_PLAN:
            return -1 - piece
        kind = kinds[plan]
        if ends_paragraph and piece > 0:
            paragraph += 1
        start = piece
        last = False
        while not last:
            end = start + 1
            last = ends_paragraph
            while not last:
                if end == n or styles[end] != look or end - piece >= _LONGEST_RUN:
                    last = True
                elif starts[end] and (drawn[end - 1] == SPACE or kind == DENSE):
                    if drawn[end - 1] == SPACE and drawn[end] != SPACE and end - piece >= _PIECE:
                        last = True
                    elif kind != WHOLE and _is_seam(drawn, starts, end, plan, pages, masks):
                        break
                    else:
                        end += 1
                else:
                    end += 1
            alone = kind in (SPACED, DENSE) or (
                (start == 0 or drawn[start - 1] == SPACE)
                and (drawn[end - 1] == SPACE or end == n or drawn[end] == SPACE)
            )
            runs[count, START] = start
            runs[count, END] = end
            runs[count, FONT] = font
            runs[count, SCRIPT] = script
            runs[count, LEVEL] = level
            runs[count, PARAGRAPH] = paragraph
            runs[count, IS_WORD] = NO_WORD
            if alone and end - start <= LONGEST_WORD:
                runs[count, IS_WORD] = WORD if start == piece else AT_SEAM
            count += 1
            start = end
        if ends_paragraph:
            paragraph += 1
        piece = start
    return count
