"""Which font has which character, in a form that compiled code reads with two look-ups."""

from dataclasses import dataclass

import numpy as np

from megatron_pixel.rendering.itemize import NO_FONT
from megatron_pixel.rendering.unicode_tables import NUM_CODEPOINTS


@dataclass(frozen=True)
class Coverage:
    """Characters that are in the same fonts share a row: a few hundred rows describe all of Unicode."""

    row: np.ndarray
    """uint16 [0x110000]."""
    masks: np.ndarray
    """uint64 [rows, words]: bit ``f % 64`` of word ``f // 64`` is set where font f has the character."""
    first_font: np.ndarray
    """uint8 [rows]: the first font without color that has the character, or NO_FONT."""


def build_coverage(codepoints: list[np.ndarray], in_color: list[bool]) -> Coverage:
    """Table of the fonts whose characters are ``codepoints`` (uint32 arrays), in order of choice."""
    row = np.zeros(NUM_CODEPOINTS, dtype=np.int64)
    words = -(-len(codepoints) // 64)
    masks = np.zeros((1, words), dtype=np.uint64)
    for font, members in enumerate(codepoints):
        members = members[members < NUM_CODEPOINTS]
        old, inverse = np.unique(row[members], return_inverse=True)
        added = masks[old].copy()
        added[:, font // 64] |= np.uint64(1) << np.uint64(font % 64)
        row[members] = len(masks) + inverse
        masks = np.concatenate([masks, added])
    used, row = np.unique(row, return_inverse=True)
    masks = masks[used]
    first_font = np.full(len(masks), NO_FONT, dtype=np.uint8)
    for font in reversed(range(len(codepoints))):
        if not in_color[font]:
            has = (masks[:, font // 64] >> np.uint64(font % 64)) & np.uint64(1) == 1
            first_font[has] = font
    return Coverage(row.astype(np.uint16), masks, first_font)
