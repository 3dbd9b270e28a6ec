"""The short way from characters to styles, for text that runs from left to right in characters of one code point."""

import numpy as np
from numba import njit

from megatron_pixel.rendering.bidi import TURNING
from megatron_pixel.rendering.coverage import Coverage
from megatron_pixel.rendering.itemize import NO_FONT, SPACE, covers, lone_font
from megatron_pixel.rendering.runs import PARAGRAPH_END
from megatron_pixel.rendering.segments import MOST_OPEN_PAIRS, next_script
from megatron_pixel.rendering.unicode_tables import (
    COMMON,
    DEFAULT_IGNORABLE,
    EMOJI_PRESENTATION,
    GB_LV,
    GB_LVT,
    GB_OTHER,
    GB_PICTOGRAPH,
    INHERITED,
    NUM_CODEPOINTS,
    WHITE_SPACE,
    UnicodeTables,
)

_TAB, _LINE_FEED = 9, 10

# Flags of a character: text of such characters is simple; its script is its own and no other's, or any; its font is
# the same in every text; it is drawn in color.
_SIMPLE, _OWN_SCRIPT, _ANY_SCRIPT, _FIXED_FONT, _IN_COLOR = (np.uint32(1 << bit) for bit in range(16, 21))


def character_traits(tables: UnicodeTables, coverage: Coverage, color_font: int) -> np.ndarray:
    """uint32 [0x110000]: what :func:`itemize_simple` asks of a character, in one look-up.

    The font in bits 0 to 7, the script in 8 to 15, and the flags of this module.
    """
    traits = np.zeros(NUM_CODEPOINTS, dtype=np.uint32)
    kind = tables.grapheme_break & 15
    simple: np.ndarray = (kind == GB_OTHER) | (kind == GB_LV) | (kind == GB_LVT) | (kind == GB_PICTOGRAPH)
    simple = simple & ~np.isin(tables.bidi_class, TURNING)
    simple[0xD800:0xE000] = simple[0x2028:0x202A] = False
    simple[[_TAB, _LINE_FEED]] = True
    traits[simple] |= _SIMPLE
    own_row = tables.script_extension == tables.script
    traits[own_row & (tables.script > INHERITED) & (tables.bracket == 0)] |= _OWN_SCRIPT
    in_any = np.take(tables.script_sets.all(axis=1), tables.script_extension)
    traits[in_any & (tables.bracket == 0)] |= _ANY_SCRIPT
    has_color = np.zeros(NUM_CODEPOINTS, dtype=np.bool_)
    if color_font != NO_FONT:
        has_color = (coverage.masks[coverage.row, color_font >> 6] >> np.uint64(color_font & 63)) & np.uint64(1) != 0
        has_color &= tables.flags & EMOJI_PRESENTATION != 0
    font = coverage.first_font[coverage.row]
    fixed = (tables.flags & (WHITE_SPACE | DEFAULT_IGNORABLE) == 0) & (font != NO_FONT) & ~has_color
    traits[fixed & ((font == 0) | (tables.script > INHERITED))] |= _FIXED_FONT
    traits[has_color] |= _IN_COLOR
    return traits | font | tables.script.astype(np.uint32) << 8


@njit(cache=True, nogil=True)
def itemize_simple(
    codepoints: np.ndarray,
    traits: np.ndarray,
    one_paragraph: bool,
    flags: np.ndarray,
    script: np.ndarray,
    script_extension: np.ndarray,
    script_sets: np.ndarray,
    bracket: np.ndarray,
    coverage: np.ndarray,
    masks: np.ndarray,
    first_font: np.ndarray,
    script_group: np.ndarray,
    color_font: int,
    drawn: np.ndarray,
    starts: np.ndarray,
    styles: np.ndarray,
) -> int:
    """All of itemization in one pass, for text that runs from left to right and has no cluster of two characters.

    Most text is so. Fills ``drawn``, ``starts`` and ``styles`` as :func:`replace_controls`, ``mark_grapheme_starts``,
    ``assign_scripts``, :func:`choose_fonts` and :func:`make_styles` would, by the same rules. Returns the first
    character with a script of its own (their number where there is none), or -1 where the text is not so simple.
    """
    n = len(codepoints)
    strong = n
    for i in range(n):
        trait = traits[codepoints[i]]
        if not trait & _SIMPLE:
            return -1
        if strong == n and (trait >> 8 & 255) > INHERITED:
            strong = i
    current = script[codepoints[strong]] if strong < n else np.uint8(COMMON)
    open_pairs = np.empty(MOST_OPEN_PAIRS, dtype=np.int16)
    open_scripts = np.empty(MOST_OPEN_PAIRS, dtype=np.uint8)
    depth = 0
    current_font = np.int64(0)
    for i in range(n):
        c = codepoints[i]
        paragraph_end = np.uint32(0)
        if c < 0x20:
            paragraph_end = np.uint32(0) if c == _TAB or one_paragraph else PARAGRAPH_END
            c = np.uint32(SPACE)
        drawn[i] = c
        starts[i] = True
        trait = traits[c]
        if trait & _OWN_SCRIPT:
            current = np.uint8(trait >> 8 & 255)
        elif not trait & _ANY_SCRIPT:
            current, depth = next_script(
                c, current, depth, open_pairs, open_scripts, script, script_extension, script_sets, bracket
            )
        if trait & _FIXED_FONT:
            own = current_font = np.int64(trait & 255)
        elif trait & _IN_COLOR:
            own = np.int64(color_font)
        else:
            row = coverage[c]
            own = np.int64(lone_font(c, row, current_font, flags, script, masks, first_font))
            if own == NO_FONT:
                own = np.int64(color_font if color_font != NO_FONT and covers(masks, row, color_font) else 0)
            if own != color_font:
                current_font = own
        group = np.uint32(0 if own == color_font else script_group[current])
        styles[i] = np.uint32(own) | group << np.uint32(8) | paragraph_end
    return strong
