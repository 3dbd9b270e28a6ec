"""Two scans over a text: where user-perceived characters begin, and which script each character is written in."""

import numpy as np
from numba import njit

from megatron_pixel.rendering.unicode_tables import (
    COMMON,
    GB_CONTROL,
    GB_CR,
    GB_EXTEND,
    GB_L,
    GB_LF,
    GB_LV,
    GB_LVT,
    GB_OTHER,
    GB_PICTOGRAPH,
    GB_PREPEND,
    GB_RI,
    GB_SPACING,
    GB_T,
    GB_V,
    GB_ZWJ,
    INCB_CONSONANT,
    INCB_EXTEND,
    INCB_LINKER,
    INHERITED,
    UNKNOWN,
    load_tables,
)

MOST_OPEN_PAIRS = 64  # of brackets; one more, and all are forgotten


def grapheme_starts(codepoints: np.ndarray) -> np.ndarray:
    """Where user-perceived characters begin (UAX #29, extended grapheme clusters, conjuncts included).

    ``codepoints`` is uint32 [n]; returns bool [n], true at the first code point of every cluster.
    """
    starts = np.empty(len(codepoints), dtype=np.bool_)
    mark_grapheme_starts(codepoints, load_tables().grapheme_break, starts)
    return starts


@njit(cache=True, nogil=True)
def mark_grapheme_starts(codepoints: np.ndarray, grapheme_break: np.ndarray, starts: np.ndarray) -> None:
    """Compiled body of :func:`grapheme_starts`: fills ``starts``, bool [n]."""
    before = GB_CONTROL
    indicators = 0  # regional indicators directly before: an odd number awaits its partner
    emoji = 0  # 1 after a pictograph and its extenders, 2 after the joiner that follows them
    conjunct = 0  # 1 after a consonant and extenders, 2 once a linker stands among them
    for i in range(len(codepoints)):
        value = grapheme_break[codepoints[i]]
        if value == GB_OTHER and before == GB_OTHER:  # two plain letters, as most are
            starts[i] = True
            indicators = emoji = conjunct = 0
            continue
        kind, incb = value & 15, value & 48
        if before in (GB_CONTROL, GB_CR, GB_LF) or kind in (GB_CONTROL, GB_CR, GB_LF):  # GB3, GB4, GB5
            joined = before == GB_CR and kind == GB_LF
        else:
            joined = (
                (before == GB_L and kind in (GB_L, GB_V, GB_LV, GB_LVT))  # GB6: Hangul syllables
                or (before in (GB_LV, GB_V) and kind in (GB_V, GB_T))  # GB7
                or (before in (GB_LVT, GB_T) and kind == GB_T)  # GB8
                or kind in (GB_EXTEND, GB_ZWJ, GB_SPACING)  # GB9, GB9a
                or before == GB_PREPEND  # GB9b
                or (conjunct == 2 and incb == INCB_CONSONANT)  # GB9c
                or (emoji == 2 and kind == GB_PICTOGRAPH)  # GB11: ZWJ sequences
                or (kind == GB_RI and indicators % 2 == 1)  # GB12, GB13: flags
            )
        starts[i] = i == 0 or not joined

        indicators = indicators + 1 if kind == GB_RI else 0
        if kind == GB_PICTOGRAPH:
            emoji = 1
        elif emoji == 1 and kind == GB_ZWJ:
            emoji = 2
        elif not (emoji == 1 and kind == GB_EXTEND):
            emoji = 0
        if incb == INCB_CONSONANT:
            conjunct = 1
        elif conjunct > 0 and incb == INCB_LINKER:
            conjunct = 2
        elif incb != INCB_EXTEND:
            conjunct = 0
        before = kind


def resolve_scripts(codepoints: np.ndarray) -> np.ndarray:
    """One script for every character, so that runs of one script can be shaped together (UAX #24, section 5.1).

    Characters of no script of their own (spaces, digits, punctuation, marks) take the script before them, at the start
    of the text the one after; so do characters used with several scripts, as far as their extensions allow, and
    marks always. A closing bracket takes the script of its opening one. ``codepoints`` is uint32 [n]; returns uint8
    [n] of script ids, ``COMMON`` only where the text has no script at all.
    """
    tables = load_tables()
    scripts = np.empty(len(codepoints), dtype=np.uint8)
    assign_scripts(codepoints, tables.script, tables.script_extension, tables.script_sets, tables.bracket, scripts)
    return scripts


@njit(cache=True, nogil=True)
def assign_scripts(
    codepoints: np.ndarray,
    script: np.ndarray,
    script_extension: np.ndarray,
    script_sets: np.ndarray,
    bracket: np.ndarray,
    scripts: np.ndarray,
) -> None:
    """Compiled body of :func:`resolve_scripts`: fills ``scripts``, uint8 [n]."""
    n = len(codepoints)
    open_pairs = np.empty(MOST_OPEN_PAIRS, dtype=np.int16)
    open_scripts = np.empty(MOST_OPEN_PAIRS, dtype=np.uint8)
    depth = 0
    # What may follow is asked for at the start only, so looking ahead costs one scan of the text.
    current = np.uint8(COMMON)
    for i in range(n):
        if script[codepoints[i]] > INHERITED:
            current = script[codepoints[i]]
            break
    for i in range(n):
        current, depth = next_script(
            codepoints[i], current, depth, open_pairs, open_scripts, script, script_extension, script_sets, bracket
        )
        scripts[i] = current


@njit(cache=True, nogil=True)
def next_script(
    character: int,
    current: int,
    depth: int,
    open_pairs: np.ndarray,
    open_scripts: np.ndarray,
    script: np.ndarray,
    script_extension: np.ndarray,
    script_sets: np.ndarray,
    bracket: np.ndarray,
) -> tuple[int, int]:
    """The script of a character after one of script ``current``, and the number of open brackets after it.

    ``open_pairs`` and ``open_scripts`` (int16, uint8 [MOST_OPEN_PAIRS]) are the stack of open brackets, ``depth`` deep.
    """
    own = script[character]
    allowed = script_extension[character]
    pair = bracket[character]
    if pair < 0:
        for level in range(depth - 1, -1, -1):
            if open_pairs[level] == -pair:
                current = open_scripts[level]
                depth = level
                break
    elif not script_sets[allowed, current]:
        if own > INHERITED:
            current = own
        elif own == COMMON and allowed > UNKNOWN:
            # The first of the scripts that use it. A mark belongs to its base whatever that is (UAX #24, 5.2).
            for candidate in range(script_sets.shape[1]):
                if script_sets[allowed, candidate]:
                    current = candidate
                    break
    if pair > 0:
        if depth == MOST_OPEN_PAIRS:
            depth = 0
        open_pairs[depth], open_scripts[depth] = pair, current
        depth += 1
    return current, depth
