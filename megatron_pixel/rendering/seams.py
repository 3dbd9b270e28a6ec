"""Where a run of text may be cut before shaping, without a change of any glyph.

The rule. A font's lookups (GSUB, GPOS) read sequences of neighboring glyphs, and one that reached over a cut would have
to read a glyph on either side of it. So a cut between two grapheme clusters is a *seam* where no lookup of the shaping
plan reads both a glyph of the one and a glyph of the other; what glyphs a character can become is followed through all
substitutions. Every lookup has a bit (beyond 60 they share), every character a mask, and the test is one AND.

Left out are lookups that read one glyph only, and the attachment of marks: there is no seam before a mark, nor before
what lookups may skip because it is not drawn. Lookups that skip base letters count as reading them. Fonts with tables
of Apple's kind or with an old kern table have no seams.

Outside lookups, HarfBuzz looks at neighbors in four ways. Syllables of complex scripts are reordered: seams are sought
only after spaces, which no syllable contains, and between any clusters of the Chinese and Japanese scripts, which have
none. Letters of some scripts join: there a word must have spaces or nothing on both sides. Digits around a
fraction slash become a fraction: they share a bit. A run against the direction of its script is turned around unless it
is a number: it has no seams.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from megatron_pixel.rendering.harfbuzz import LEFT_TO_RIGHT, RIGHT_TO_LEFT, ShapingFont, native_direction, script_tag
from megatron_pixel.rendering.unicode_tables import (
    DEFAULT_IGNORABLE,
    GENERAL_CATEGORIES,
    MIRRORED,
    NUM_CODEPOINTS,
    UnicodeTables,
)

NO_PLAN = -1
# Kinds of plans: seams after spaces only, the same with letters that join, between all clusters, nowhere.
SPACED, JOINING, DENSE, WHOLE = range(4)

NEVER_FIRST = np.uint64(1 << 63)
"""A mark, which attaches to what is before it, or a character that is not drawn."""
_NUMBER = np.uint64(1 << 62)
_ANY = np.uint64((1 << 62) - 1)
_LOOKUP_BITS = 60
_FRACTION_SLASH = 0x2044

# The scripts whose letters HarfBuzz joins, those set from right to left aside.
_JOINED = ("Adlm", "Arab", "Chrs", "Mand", "Mani", "Mong", "Nkoo", "Ougr", "Phag", "Phlp", "Rohg", "Sogd", "Syrc")
_DENSE = ("Hani",)

# Lookup types that read sequences of letters; extensions (GSUB 7, GPOS 9) are of the type inside.
_SEQUENCES = {"GSUB": (4, 5, 6, 8), "GPOS": (2, 3, 7, 8)}
_EXTENSION = {"GSUB": 7, "GPOS": 9}
_IGNORE_BASES, _IGNORE_LIGATURES = 2, 4
_BASE, _LIGATURE, _MARK = 1, 2, 3


@dataclass(frozen=True)
class _Lookup:
    """Glyphs (uint32) that it reads, may change and may put there, and whether neighbors decide."""

    read: np.ndarray
    changed: np.ndarray
    put: np.ndarray
    reads_neighbors: bool


class _FontRules:
    """What a font's tables say about characters side by side."""

    def __init__(self, font: ShapingFont, tables: UnicodeTables) -> None:
        self._font = font
        codepoints = font.codepoints()
        self.codepoints = codepoints[codepoints < NUM_CODEPOINTS]
        """uint32 [k]: the characters of the font."""
        self._glyphs = font.nominal_glyphs(self.codepoints)
        self._is_ignorable = tables.flags[self.codepoints] & DEFAULT_IGNORABLE != 0
        self._is_mark = np.isin(self._glyphs, font.glyphs_of_class(_MARK))
        is_number = tables.category[self.codepoints] == GENERAL_CATEGORIES.index("Nd")
        self._is_number = is_number | (self.codepoints == _FRACTION_SLASH)
        self._is_mirrored = tables.flags[self.codepoints] & MIRRORED != 0
        self._is_opaque = any(map(font.has_table, ("kern", "kerx", "morx", "mort", "trak", "Silf")))
        self._kinds = {table: _lookup_kinds(table, font.table(table)) for table in ("GSUB", "GPOS")}
        self._lookups: dict[tuple[str, int], _Lookup] = {}

    def masks(self, lookups: list[tuple[str, int]], direction: int) -> np.ndarray:
        """uint64 [k]: bits of the lookups that may read each character; ``direction`` is 1 from right to left."""
        if self._is_opaque:
            return np.full(len(self.codepoints), _ANY, dtype=np.uint64)
        masks = self._glyph_masks([self._lookup(*name) for name in lookups])[self._glyphs]
        _share_with_parts(self.codepoints, masks)
        if direction:
            masks[self._is_mirrored] |= _ANY  # drawn as other characters
        masks[self._is_number] |= _NUMBER
        masks[self._is_ignorable] |= _ANY
        masks[self._is_mark | self._is_ignorable] |= NEVER_FIRST
        return masks

    def _lookup(self, table: str, number: int) -> _Lookup:
        found = self._lookups.get((table, number))
        if found is None:
            read, changed, put = self._font.lookup_glyphs(table, number)
            types, flags = self._kinds[table][number]
            for skips, kind in ((_IGNORE_BASES, _BASE), (_IGNORE_LIGATURES, _LIGATURE)):
                if flags & skips:
                    read = np.concatenate([read, self._font.glyphs_of_class(kind)])
            if table == "GPOS":
                changed = put = np.empty(0, dtype=np.uint32)
            found = _Lookup(read, changed, put, not types.isdisjoint(_SEQUENCES[table]))
            self._lookups[table, number] = found
        return found

    def _glyph_masks(self, lookups: list[_Lookup]) -> np.ndarray:
        """uint64 [glyphs]: bits of the lookups that may read a glyph or what it becomes."""
        masks = np.zeros(self._font.num_glyphs, dtype=np.uint64)
        for order, lookup in enumerate(lookups):
            if lookup.reads_neighbors:
                masks[lookup.read] |= np.uint64(1 << (order % _LOOKUP_BITS))
        growing = True
        while growing:
            growing = False
            for lookup in lookups:
                reached = np.bitwise_or.reduce(masks[lookup.put], initial=np.uint64(0))
                if (masks[lookup.changed] & reached != reached).any():
                    masks[lookup.changed] |= reached
                    growing = True
        return masks


class Seams:
    """Masks of the characters of the plans met so far, as compiled code reads them."""

    def __init__(self, fonts: list[ShapingFont], tables: UnicodeTables) -> None:
        self._fonts = fonts
        self._tables = tables
        self._rules: dict[int, _FontRules] = {}
        self._known: dict[tuple, np.ndarray] = {}
        self.plans: np.ndarray = np.full((len(fonts), len(tables.script_tags), 2), NO_PLAN, dtype=np.int16)
        """int16 [fonts, scripts, directions]: number of the plan, NO_PLAN before it is needed."""
        self.kinds: np.ndarray = np.zeros(0, dtype=np.uint8)
        """uint8 [plans]: SPACED, JOINING, DENSE or WHOLE."""
        self.pages: np.ndarray = np.zeros((0, NUM_CODEPOINTS >> 8), dtype=np.uint32)
        """uint32 [plans, 0x1100]: the row of ``masks`` for 256 characters."""
        self.masks: np.ndarray = np.full((1, 256), _ANY | NEVER_FIRST, dtype=np.uint64)
        """uint64 [pages, 256]: bits of the lookups that may read the character; row 0 for those not in the font."""

    def add(self, font: int, script: int, direction: int) -> None:
        """Work out a plan; ``direction`` is 0 or 1 (from right to left)."""
        tag = self._tables.script_tags[script]
        reading = RIGHT_TO_LEFT if direction else LEFT_TO_RIGHT
        lookups = self._fonts[font].lookups(script_tag(tag), reading)
        # Most scripts that a font does not know by name are shaped by the same lookups.
        key = font, direction, *lookups
        if key not in self._known:
            if font not in self._rules:
                self._rules[font] = _FontRules(self._fonts[font], self._tables)
            rules = self._rules[font]
            self._known[key] = self._add_masks(rules.codepoints, rules.masks(lookups, direction))
        kind = DENSE if tag in _DENSE else JOINING if direction or tag in _JOINED else SPACED
        if native_direction(script_tag(tag)) not in (reading, None):
            kind = WHOLE
        self.plans[font, script, direction] = len(self.kinds)
        self.kinds = np.append(self.kinds, np.uint8(kind))
        self.pages = np.concatenate([self.pages, self._known[key][np.newaxis]])

    def _add_masks(self, codepoints: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Enter the masks of characters; returns their pages, uint32 [0x1100]."""
        rows, places = np.unique(codepoints >> 8, return_inverse=True)
        added = np.full((len(rows), 256), _ANY | NEVER_FIRST, dtype=np.uint64)
        added[places, codepoints & 255] = masks
        pages = np.zeros(NUM_CODEPOINTS >> 8, dtype=np.uint32)
        pages[rows] = len(self.masks) + np.arange(len(rows))
        self.masks = np.concatenate([self.masks, added])
        return pages


def _lookup_kinds(table: str, data: bytes) -> list[tuple[set[int], int]]:
    """Types (of all subtables) and flags of each lookup of a GSUB or GPOS table."""
    if not data:
        return []
    (lookups,) = struct.unpack_from(">H", data, 8)
    (count,) = struct.unpack_from(">H", data, lookups)
    kinds = []
    for (offset,) in struct.iter_unpack(">H", data[lookups + 2 : lookups + 2 + 2 * count]):
        lookup = lookups + offset
        kind, flags, subtables = struct.unpack_from(">3H", data, lookup)
        types = {kind}
        if kind == _EXTENSION[table]:
            places = struct.iter_unpack(">H", data[lookup + 6 : lookup + 6 + 2 * subtables])
            types = {struct.unpack_from(">2H", data, lookup + place)[1] for (place,) in places}
        kinds.append((types, flags))
    return kinds


@lru_cache(maxsize=1)
def _decompositions() -> tuple[np.ndarray, np.ndarray]:
    """Characters that decompose canonically, each as often as it has parts, and these parts: uint32 [k] both."""
    import unicodedata2

    pairs = []
    for page in range(0, NUM_CODEPOINTS, 256):
        characters = "".join(map(chr, range(page, page + 256)))
        if unicodedata2.normalize("NFD", characters) != characters:
            for character in characters:
                parts = unicodedata2.normalize("NFD", character)
                pairs += [(ord(character), ord(part)) for part in parts if part != character]
    whole, parts = np.array(pairs, dtype=np.uint32).T
    return whole, parts


def _share_with_parts(codepoints: np.ndarray, masks: np.ndarray) -> None:
    """Let characters and those they are composed of share bits: HarfBuzz takes the form that the font has."""
    whole, parts = _decompositions()
    both = np.isin(whole, codepoints) & np.isin(parts, codepoints)
    at, part_at = np.searchsorted(codepoints, whole[both]), np.searchsorted(codepoints, parts[both])
    np.bitwise_or.at(masks, at, masks[part_at])
    np.bitwise_or.at(masks, part_at, masks[at])
