"""From characters to fonts: what every character is drawn as, in which font, and where a page may end."""

import numpy as np
from numba import njit

from megatron_pixel.rendering.shaping import CLUSTER_BOUNDARY, WORD_BOUNDARY
from megatron_pixel.rendering.unicode_tables import (
    DEFAULT_IGNORABLE,
    EMOJI,
    EMOJI_MODIFIER,
    EMOJI_PRESENTATION,
    EXTENDED_PICTOGRAPHIC,
    INHERITED,
    REGIONAL_INDICATOR,
    WHITE_SPACE,
)

NO_FONT = 255

_LONGEST_CLUSTER = 64

# Bits of ``word_class``: a page may end after a character of the first kind that stands before one of the second.
ENDS_WORD, BEGINS_WORD = 1, 2
_UNSPACED = ("Hani", "Hira", "Kana", "Bopo", "Yiii")
_NEVER_FIRST = "々ーゝゞヽヾ〻ぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶ・：；！？‼⁇⁈⁉、。，．｡､｜～〜…‥％"
_NEVER_LAST = "＄￥￡"

SPACE = 0x20
_NOTHING = 0x2060  # WORD JOINER: never drawn, joins nothing, in no bidi run of its own
_TEXT_STYLE, _EMOJI_STYLE, _KEYCAP, _JOINER = 0xFE0E, 0xFE0F, 0x20E3, 0x200D


@njit(cache=True, nogil=True)
def replace_controls(codepoints: np.ndarray, drawn: np.ndarray, paragraphs: np.ndarray) -> None:
    """Say what each character is drawn as (``drawn``, uint32 [n]) and which ends a paragraph (``paragraphs``, bool).

    Line breaks of any kind, tab, vertical tab and form feed are one space each, and CR LF is one space. Other controls
    are not drawn. A lone surrogate is U+FFFD.
    """
    before = np.uint32(0)
    for i in range(len(codepoints)):
        c = codepoints[i]
        paragraphs[i] = False
        shown = c
        if c < 0x20 or 0x7F <= c < 0xA0:
            if 9 <= c <= 13 or c == 0x85:
                shown = np.uint32(_NOTHING if c == 10 and before == 13 else SPACE)
                paragraphs[i] = c == 10 or c == 13 or c == 0x85
            else:
                shown = np.uint32(_NOTHING)
        elif c >= 0x2028:
            if c <= 0x2029:
                shown = np.uint32(SPACE)
                paragraphs[i] = c == 0x2029
            elif 0xD800 <= c < 0xE000:
                shown = np.uint32(0xFFFD)
        drawn[i] = shown
        before = c


@njit(cache=True, nogil=True)
def covers(masks: np.ndarray, row: int, font: int) -> bool:
    return (masks[row, font >> 6] >> np.uint64(font & 63)) & np.uint64(1) != 0


@njit(cache=True, nogil=True)
def _has_cluster(
    drawn: np.ndarray, start: int, end: int, flags: np.ndarray, coverage: np.ndarray, masks: np.ndarray, font: int
) -> bool:
    for i in range(start, end):
        if not flags[drawn[i]] & DEFAULT_IGNORABLE and not covers(masks, coverage[drawn[i]], font):
            return False
    return True


@njit(cache=True, nogil=True)
def _wants_color(drawn: np.ndarray, start: int, end: int, flags: np.ndarray) -> bool:
    """Whether the cluster is an emoji to be drawn in color (UTS #51)."""
    base = flags[drawn[start]]
    if not base & (EMOJI | EXTENDED_PICTOGRAPHIC):
        return False
    if base & REGIONAL_INDICATOR:
        return end - start == 2
    if start + 1 == end:
        return base & EMOJI_PRESENTATION != 0
    if drawn[start + 1] == _TEXT_STYLE:
        return False
    if base & EMOJI_PRESENTATION:
        return True
    for i in range(start + 1, end):
        c = drawn[i]
        if c in (_EMOJI_STYLE, _KEYCAP) or flags[c] & EMOJI_MODIFIER:
            return True
        if c == _JOINER and i + 1 < end and flags[drawn[i + 1]] & EXTENDED_PICTOGRAPHIC:
            return True
    return False


@njit(cache=True, nogil=True)
def lone_font(
    base: int,
    row: int,
    current: int,
    flags: np.ndarray,
    script: np.ndarray,
    masks: np.ndarray,
    first_font: np.ndarray,
) -> int:
    """The font of a character that is a cluster by itself, NO_FONT where none has it; see :func:`choose_fonts`."""
    font = first_font[row]
    if flags[base] & (WHITE_SPACE | DEFAULT_IGNORABLE):
        if font == NO_FONT or covers(masks, row, current) or flags[base] & DEFAULT_IGNORABLE:
            font = current
    elif font != 0 and script[base] <= INHERITED and covers(masks, row, current):
        font = current
    return font


@njit(cache=True, nogil=True)
def choose_fonts(
    drawn: np.ndarray,
    starts: np.ndarray,
    flags: np.ndarray,
    script: np.ndarray,
    coverage: np.ndarray,
    masks: np.ndarray,
    first_font: np.ndarray,
    color_font: int,
    fonts: np.ndarray,
) -> None:
    """Choose a font for every grapheme cluster: the first of the chain that has all its characters.

    ``starts``: bool [n], first characters of clusters. ``coverage``: uint16 [0x110000], the row of ``masks`` (uint64
    [k, words], a bit a font) and of ``first_font`` (uint8 [k], fonts without color) of each character.
    ``color_font``: font number of the color emoji, or ``NO_FONT``. Fills ``fonts``, uint8 [n].

    Spaces and characters that are not drawn stay in the font before them, and so do symbols and marks of no script,
    unless the first font has them. Where no font has the whole cluster, its base decides and each mark that this font
    lacks goes to the first font that has it. What is in no font goes to the first one, which draws its empty box.
    """
    n = len(drawn)
    current = 0
    start = 0
    while start < n:
        end = start + 1
        while end < n and not starts[end]:
            end += 1
        base = drawn[start]
        row = coverage[base]
        if color_font != NO_FONT and covers(masks, row, color_font) and _wants_color(drawn, start, end, flags):
            fonts[start:end] = color_font
            start = end
            continue
        if end == start + 1:
            font = lone_font(base, row, current, flags, script, masks, first_font)
            whole = True
        else:
            sticky = script[base] <= INHERITED and first_font[row] != 0
            font, whole = current, sticky and _has_cluster(drawn, start, end, flags, coverage, masks, current)
            if not whole:
                font, whole = first_font[row], False
                for candidate in range(font, masks.shape[1] * 64 if font != NO_FONT else 0):
                    if candidate != color_font and _has_cluster(drawn, start, end, flags, coverage, masks, candidate):
                        font, whole = candidate, True
                        break
        if font == NO_FONT:
            font = color_font if color_font != NO_FONT and covers(masks, row, color_font) else 0
        fonts[start:end] = font
        if not whole:
            for i in range(start + 1, end):
                own = coverage[drawn[i]]
                if flags[drawn[i]] & DEFAULT_IGNORABLE == 0 and not covers(masks, own, font):
                    fonts[i] = first_font[own] if first_font[own] != NO_FONT else font
        if font != color_font:
            current = font
        start = end


@njit(cache=True, nogil=True)
def mark_boundaries(
    codepoints: np.ndarray,
    starts: np.ndarray,
    flags: np.ndarray,
    word_class: np.ndarray,
    boundaries: np.ndarray,
) -> None:
    """Where a page may end: fills ``boundaries`` (uint8 [n]), bit CLUSTER_BOUNDARY or both, before each character.

    A word ends next to white space and between characters of scripts that are written without it, except before
    closing and after opening punctuation. ``word_class``: uint8 [0x110000], constants of this module. A cluster is cut
    after every 64 characters, or an endless one would fill a page beyond its edge.
    """
    boundaries[0] = 0
    cluster = 0
    for i in range(1, len(codepoints)):
        boundaries[i] = 0
        if not starts[i]:
            if (i - cluster) % _LONGEST_CLUSTER == 0:
                boundaries[i] = CLUSTER_BOUNDARY
            continue
        cluster = i
        boundaries[i] = CLUSTER_BOUNDARY
        before, after = codepoints[i - 1], codepoints[i]
        beside_space = (flags[before] | flags[after]) & WHITE_SPACE
        if beside_space or (word_class[before] & ENDS_WORD and word_class[after] & BEGINS_WORD):
            boundaries[i] |= WORD_BOUNDARY


def word_classes(
    script: np.ndarray, script_tags: tuple[str, ...], category: np.ndarray, categories: tuple[str, ...]
) -> np.ndarray:
    """uint8 [0x110000]: the bits ENDS_WORD and BEGINS_WORD for characters written without spaces between words."""
    classes = np.zeros(len(script), dtype=np.uint8)
    unspaced = np.isin(script, [script_tags.index(tag) for tag in _UNSPACED])
    unspaced[0x3000:0x3040] = True  # CJK symbols and punctuation
    unspaced[0xFF00:0xFFEF] = True  # full-width and half-width forms
    opening = np.isin(category, [categories.index(name) for name in ("Ps", "Pi")])
    closing = np.isin(category, [categories.index(name) for name in ("Pe", "Pf", "Mn", "Mc", "Me", "Lm", "Sk")])
    classes[unspaced & ~opening] |= ENDS_WORD
    classes[unspaced & ~closing] |= BEGINS_WORD
    for characters, bit in ((_NEVER_FIRST, BEGINS_WORD), (_NEVER_LAST, ENDS_WORD)):
        for character in characters:
            classes[ord(character)] &= np.uint8(~bit & 0xFF)
    classes[0x0F0B] = ENDS_WORD  # the Tibetan mark between syllables
    classes[0x0F40:0x0FBD] |= BEGINS_WORD
    return classes
