"""Unicode character properties as flat arrays over all 0x110000 code points.

Source of the data: the pinned packages ``unicodedata2`` (general category, bidi class, combining class, mirroring),
``fontTools.unicodedata`` (script, script extensions, mirroring pairs) and ``regex`` (emoji properties, grapheme
break classes, ignorable characters). All three carry their own copy of the Unicode character database, so the tables
are the same under every Python version; building them fails where the copies disagree.

Compiled functions take the arrays as arguments: arrays that they close over would be frozen into numba's cache.
"""

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np

NUM_CODEPOINTS = 0x110000
_FORMAT = 1  # raise it when the meaning of a table changes: cached tables of another format are not read

_CLASSES = "L R AL EN ES ET AN CS NSM BN B S WS ON LRE LRO RLE RLO PDF LRI RLI FSI PDI"
_CATEGORIES = "Cn Cc Cf Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp Zs"
BIDI_CLASSES = tuple(_CLASSES.split())
GENERAL_CATEGORIES = tuple(_CATEGORIES.split())

# Bits of ``UnicodeTables.flags``.
WHITE_SPACE = 1
DEFAULT_IGNORABLE = 2  # drawn as nothing where the font has no glyph
MIRRORED = 4  # Bidi_Mirrored: drawn mirrored in right-to-left runs
VARIATION_SELECTOR = 8
EMOJI = 16
EMOJI_PRESENTATION = 32  # colour by default; other emoji only before U+FE0F
EMOJI_MODIFIER = 64  # the five skin tones
EMOJI_MODIFIER_BASE = 128
EXTENDED_PICTOGRAPHIC = 256
REGIONAL_INDICATOR = 512  # flags are pairs of these
JOIN_CONTROL = 1024  # U+200C and U+200D

_FLAG_PROPERTIES = {
    WHITE_SPACE: "White_Space",
    DEFAULT_IGNORABLE: "Default_Ignorable_Code_Point",
    VARIATION_SELECTOR: "Variation_Selector",
    EMOJI: "Emoji",
    EMOJI_PRESENTATION: "Emoji_Presentation",
    EMOJI_MODIFIER: "Emoji_Modifier",
    EMOJI_MODIFIER_BASE: "Emoji_Modifier_Base",
    EXTENDED_PICTOGRAPHIC: "Extended_Pictographic",
    REGIONAL_INDICATOR: "Regional_Indicator",
    JOIN_CONTROL: "Join_Control",
}

# Low four bits of ``UnicodeTables.grapheme_break``: Grapheme_Cluster_Break, and Extended_Pictographic as a class.
GB_OTHER, GB_CR, GB_LF, GB_CONTROL, GB_EXTEND, GB_ZWJ, GB_RI, GB_PREPEND, GB_SPACING = range(9)
GB_L, GB_V, GB_T, GB_LV, GB_LVT, GB_PICTOGRAPH = range(9, 15)
_GB_NAMES = "Other CR LF Control Extend ZWJ Regional_Indicator Prepend SpacingMark L V T LV LVT".split()
# Bits 4 and 5: Indic_Conjunct_Break.
INCB_CONSONANT, INCB_LINKER, INCB_EXTEND = 16, 32, 48
_INCB_NAMES = {INCB_CONSONANT: "Consonant", INCB_LINKER: "Linker", INCB_EXTEND: "Extend"}

# The first script ids; further ones follow in the order of their tags.
COMMON, INHERITED, UNKNOWN = 0, 1, 2

# Bidi classes of unassigned code points, kept for scripts to come (the @missing lines of DerivedBidiClass.txt,
# Unicode 15; later versions only assign within them). Other unassigned ones are L; ignorables and noncharacters BN.
_UNASSIGNED_BIDI = (
    ("R", ((0x590, 0x5FF), (0x7C0, 0x85F), (0xFB1D, 0xFB4F), (0x10800, 0x10FFF), (0x1E800, 0x1EFFF))),
    (
        "AL",
        (
            *((0x600, 0x7BF), (0x860, 0x8FF), (0xFB50, 0xFDCF), (0xFDF0, 0xFDFF), (0xFE70, 0xFEFF)),
            *((0x10D00, 0x10D3F), (0x10EC0, 0x10EFF), (0x10F30, 0x10F6F)),
            *((0x1EC70, 0x1ECBF), (0x1ED00, 0x1ED4F), (0x1EE00, 0x1EEFF)),
        ),
    ),
    ("ET", ((0x20A0, 0x20CF),)),
)


@dataclass(frozen=True)
class UnicodeTables:
    """Properties by code point; every array but ``script_sets`` has length 0x110000."""

    bidi_class: np.ndarray
    """uint8: index into ``BIDI_CLASSES``."""
    bracket: np.ndarray
    """int16: +k opens and -k closes bracket pair k (Bidi_Paired_Bracket; canonical equivalents share k), else 0."""
    category: np.ndarray
    """uint8: index into ``GENERAL_CATEGORIES``."""
    combining_class: np.ndarray
    """uint8: Canonical_Combining_Class."""
    flags: np.ndarray
    """uint16: the bits WHITE_SPACE ... JOIN_CONTROL of this module."""
    grapheme_break: np.ndarray
    """uint8: GB_* in the low four bits, INCB_* above."""
    script: np.ndarray
    """uint8: script id; ``script_tags[id]`` is its ISO 15924 tag, as HarfBuzz takes it."""
    script_extension: np.ndarray
    """uint16: row of ``script_sets``."""
    script_sets: np.ndarray
    """bool [k, number of scripts]: scripts that use the character (UAX #24); Common and Inherited alone mean any."""
    script_tags: tuple[str, ...]
    """ISO 15924 tags by script id: ``("Zyyy", "Zinh", "Zzzz", "Adlm", ...)``."""


@lru_cache(maxsize=1)
def load_tables() -> UnicodeTables:
    """The tables, from the cache folder; the first call with these package versions builds them and puts them there."""
    path = cache_folder() / f"unicode-{_key()}.npz"
    tables = _read(path)
    if tables is None:
        tables = _build()
        _write(path, tables)
    for table in fields(UnicodeTables):
        value = getattr(tables, table.name)
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
    return tables


def unicode_versions() -> dict[str, str]:
    """Versions that the tables depend on, for manifests."""
    import unicodedata2

    packages = {name: version(name) for name in ("unicodedata2", "fonttools", "regex")}
    return {"unicode": unicodedata2.unidata_version, **packages}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/megatron_pixel`` or ``~/.cache/megatron_pixel``; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "megatron_pixel"


def _key() -> str:
    return hashlib.sha256(repr((_FORMAT, sorted(unicode_versions().items()))).encode()).hexdigest()[:16]


# On disk every table is a list of runs (first code point, value): 0.1 MB in all, unpacked in milliseconds.


def _read(path: Path) -> UnicodeTables | None:
    arrays: dict[str, np.ndarray] = {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            for name in (table.name for table in fields(UnicodeTables)):
                if name in ("script_sets", "script_tags"):
                    arrays[name] = stored[name]
                else:
                    ends = np.append(stored[f"{name}_starts"][1:], NUM_CODEPOINTS)
                    arrays[name] = np.repeat(stored[f"{name}_values"], ends - stored[f"{name}_starts"])
                    if arrays[name].shape != (NUM_CODEPOINTS,):
                        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent, torn or unreadable: it is only a cache
    tags = tuple(str(tag) for tag in arrays.pop("script_tags"))
    return UnicodeTables(**arrays, script_tags=tags)


def _write(path: Path, tables: UnicodeTables) -> None:
    arrays = {"script_sets": tables.script_sets, "script_tags": np.array(tables.script_tags)}
    for table in fields(UnicodeTables):
        if table.name not in arrays:
            values = getattr(tables, table.name)
            starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
            arrays[f"{table.name}_starts"], arrays[f"{table.name}_values"] = starts, values[starts]
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:  # no home folder, read-only, full: the tables are built again next time
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _build() -> UnicodeTables:
    import regex
    import unicodedata2
    from fontTools.unicodedata import Mirrored

    every = "".join(map(chr, range(NUM_CODEPOINTS)))

    def ids(prop: Callable[[str], str], names: Iterable[str]) -> np.ndarray:
        number = {name: i for i, name in enumerate(names)}
        return np.fromiter((number[v] for v in map(prop, every)), dtype=np.uint8, count=NUM_CODEPOINTS)

    def spans(prop: str) -> list[slice]:
        return [slice(*match.span()) for match in regex.finditer(rf"\p{{{prop}}}+", every)]

    category = ids(unicodedata2.category, GENERAL_CATEGORIES)
    assigned = category != GENERAL_CATEGORIES.index("Cn")
    known_to_regex = np.ones(NUM_CODEPOINTS, dtype=bool)
    for span in spans("General_Category=Cn"):
        known_to_regex[span] = False
    if not np.array_equal(assigned, known_to_regex):
        raise RuntimeError(
            f"the packages unicodedata2 and regex hold different versions of Unicode ({unicode_versions()}): "
            "install the versions that requirements.txt pins"
        )

    flags = np.zeros(NUM_CODEPOINTS, dtype=np.uint16)
    for bit, prop in _FLAG_PROPERTIES.items():
        for span in spans(prop):
            flags[span] |= bit
    flags[[i for i, mirrored in enumerate(map(unicodedata2.mirrored, every)) if mirrored]] |= MIRRORED

    grapheme_break = np.zeros(NUM_CODEPOINTS, dtype=np.uint8)
    grapheme_break[(flags & EXTENDED_PICTOGRAPHIC) != 0] = GB_PICTOGRAPH
    for value, name in list(enumerate(_GB_NAMES))[1:]:
        for span in spans(f"Grapheme_Cluster_Break={name}"):
            grapheme_break[span] = value
    for value, name in _INCB_NAMES.items():
        for span in spans(f"Indic_Conjunct_Break={name}"):
            grapheme_break[span] |= value

    bidi_class = ids(unicodedata2.bidirectional, ("", *BIDI_CLASSES))
    missing = bidi_class == 0
    bidi_class[missing] = 1
    bidi_class -= 1
    for name, ranges in _UNASSIGNED_BIDI:
        for first, last in ranges:
            bidi_class[first : last + 1][missing[first : last + 1]] = BIDI_CLASSES.index(name)
    noncharacter = (np.arange(NUM_CODEPOINTS) & 0xFFFE) == 0xFFFE
    noncharacter[0xFDD0:0xFDF0] = True
    bidi_class[missing & (noncharacter | ((flags & DEFAULT_IGNORABLE) != 0))] = BIDI_CLASSES.index("BN")

    script, script_extension, script_sets, script_tags = _script_tables()
    return UnicodeTables(
        bidi_class=bidi_class,
        bracket=_bracket_table(Mirrored.MIRRORED, category, bidi_class),
        category=category,
        combining_class=np.fromiter(map(unicodedata2.combining, every), dtype=np.uint8, count=NUM_CODEPOINTS),
        flags=flags,
        grapheme_break=grapheme_break,
        script=script,
        script_extension=script_extension,
        script_sets=script_sets,
        script_tags=script_tags,
    )


def _bracket_table(mirrors: dict[int, int], category: np.ndarray, bidi_class: np.ndarray) -> np.ndarray:
    """BidiBrackets.txt is derived, as its header says: category Ps or Pe, bidi class ON, and a mirroring partner."""
    import unicodedata2

    table = np.zeros(NUM_CODEPOINTS, dtype=np.int16)
    opens, neutral = GENERAL_CATEGORIES.index("Ps"), BIDI_CLASSES.index("ON")
    closes = GENERAL_CATEGORIES.index("Pe")
    numbers: dict[str, int] = {}
    for first, second in mirrors.items():
        if category[first] == opens and category[second] == closes and bidi_class[first] == neutral:
            canonical = unicodedata2.normalize("NFD", chr(first))  # U+2329 pairs with U+3009 too
            pair = numbers.setdefault(canonical, len(numbers) + 1)
            table[first], table[second] = pair, -pair
    return table


def _script_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    from fontTools.unicodedata import ScriptExtensions, Scripts

    tags = ("Zyyy", "Zinh", "Zzzz", *sorted(set(Scripts.VALUES) - {"Zyyy", "Zinh", "Zzzz"}))
    number = {tag: i for i, tag in enumerate(tags)}

    def unpack(starts: list[int], values: list[int], dtype: type) -> np.ndarray:
        return np.repeat(np.array(values, dtype=dtype), np.diff([*starts, NUM_CODEPOINTS]))

    script = unpack(Scripts.RANGES, [number[tag] for tag in Scripts.VALUES], np.uint8)
    # The first rows stand for one script each, so that a character without extensions has its script's row.
    rows: dict[frozenset[str], int] = {frozenset([tag]): i for i, tag in enumerate(tags)}
    values = [-1 if v is None else rows.setdefault(frozenset(v), len(rows)) for v in ScriptExtensions.VALUES]
    extension = unpack(ScriptExtensions.RANGES, values, np.int32)
    extension = np.where(extension < 0, script, extension).astype(np.uint16)
    sets = np.zeros((len(rows), len(tags)), dtype=bool)
    for members, row in rows.items():
        sets[row, [number[tag] for tag in members]] = True
    sets[[COMMON, INHERITED]] = True
    return script, extension, sets, tags
