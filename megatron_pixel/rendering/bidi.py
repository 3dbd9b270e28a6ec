"""The Unicode Bidirectional Algorithm (UAX #9, revision 51 and later) on arrays, in linear time.

:func:`resolve_levels` applies rules P1 to L1, isolates (X5a-X6a) and paired brackets (N0) included;
:func:`visual_runs` applies L2. Mirroring (L4) belongs to the shaper. Rule names in the comments are those of UAX #9.

Every paragraph (P1) is resolved by itself; its characters are then looked at through *isolating run sequences* (BD13),
kept as linked lists in the array ``follow``. Characters that rule X9 removes keep their place in the text: they take
the level of the character before them, so that levels stay one per character (UAX #9, section 5.2).
"""

import numpy as np
from numba import njit

from megatron_pixel.rendering.unicode_tables import load_tables

# Bidi classes: positions in ``unicode_tables.BIDI_CLASSES``, spelled out because numba freezes them into its cache.
L, R, AL, EN, ES, ET, AN, CS, NSM, BN, B, S, WS, ON, LRE, LRO, RLE, RLO, PDF, LRI, RLI, FSI, PDI = range(23)

MAX_DEPTH = 125  # BD2
MAX_OPEN_BRACKETS = 63  # BD16
REMOVED = 255  # level of characters removed by X9, until they get their neighbour's
# Arabic numbers count: neutrals between two of them turn right-to-left (N1). So does every control that starts an
# embedding, an override or an isolate.
TURNING = (R, AL, AN, LRE, LRO, RLE, RLO, LRI, RLI, FSI)
FIRST_RTL = 0x590  # no character before it is right-to-left or changes direction


def has_rtl(codepoints: np.ndarray) -> bool:
    """Whether ``codepoints`` (uint32 [n]) need this algorithm at all: without right-to-left characters, Arabic numbers
    and directional controls every level of a left-to-right text is 0."""
    return bool(_has_rtl(codepoints, load_tables().bidi_class))


def resolve_levels(codepoints: np.ndarray, base: int = -1) -> np.ndarray:
    """Embedding level of every character; odd levels run right to left.

    Args:
        codepoints: uint32 [n], in logical order; a paragraph separator ends a paragraph.
        base: level of every paragraph: 0 left-to-right, 1 right-to-left, -1 by its first strong character (P2, P3).

    Returns:
        uint8 [n]. White space at the end of each paragraph has the paragraph's level (L1): a caller that breaks a
        paragraph into lines sets the levels of white space at the ends of these lines itself.
    """
    tables = load_tables()
    levels = np.zeros(len(codepoints), dtype=np.uint8)
    if base == 1 or _has_rtl(codepoints, tables.bidi_class):
        assign_levels(codepoints, tables.bidi_class, tables.bracket, base, levels)
    return levels


def visual_runs(levels: np.ndarray) -> np.ndarray:
    """Runs of one level in the order in which they stand on the line, from left to right (L2).

    ``levels`` is uint8 [n]; returns int32 [k, 3] of (start, end, level). A run of odd level is drawn right to left.
    """
    return _visual_runs(levels)


@njit(cache=True)
def _has_rtl(codepoints: np.ndarray, bidi_class: np.ndarray) -> bool:
    for codepoint in codepoints:  # noqa: SIM110 (compiled)
        if codepoint >= FIRST_RTL and bidi_class[codepoint] in TURNING:
            return True
    return False


@njit(cache=True)
def assign_levels(
    codepoints: np.ndarray, bidi_class: np.ndarray, bracket: np.ndarray, base: int, levels: np.ndarray
) -> None:
    """Compiled body of :func:`resolve_levels` with the tables it reads: fills ``levels``, uint8 [n]."""
    n = len(codepoints)
    original = np.empty(n, dtype=np.uint8)
    for i in range(n):
        original[i] = bidi_class[codepoints[i]]
    start = 0
    while start < n:  # P1
        end = start
        while end < n and original[end] != B:
            end += 1
        end = min(end + 1, n)
        kinds = original[start:end]
        pairs = _match_isolates(kinds)
        level = _first_strong_level(kinds, pairs, 0, end - start) if base < 0 else base
        _resolve_paragraph(codepoints[start:end], kinds, pairs, bracket, max(level, 0), levels[start:end])
        start = end


@njit(cache=True)
def _match_isolates(kinds: np.ndarray) -> np.ndarray:
    """BD9: at an isolate initiator the position of its PDI (n where it has none), at a PDI its initiator's or -1."""
    n = len(kinds)
    pairs = np.full(n, -1, dtype=np.int32)
    open_at = np.empty(n, dtype=np.int32)
    depth = 0
    for i in range(n):
        if kinds[i] in (LRI, RLI, FSI):
            pairs[i] = n
            open_at[depth] = i
            depth += 1
        elif kinds[i] == PDI and depth > 0:
            depth -= 1
            pairs[i] = open_at[depth]
            pairs[open_at[depth]] = i
    return pairs


@njit(cache=True)
def _first_strong_level(kinds: np.ndarray, pairs: np.ndarray, start: int, end: int) -> int:
    """P2, P3: 0 or 1 by the first strong character outside isolates, -1 where there is none."""
    i = start
    while i < end:
        kind = kinds[i]
        if kind == L:
            return 0
        if kind in (R, AL):
            return 1
        i = pairs[i] + 1 if kind in (LRI, RLI, FSI) else i + 1
    return -1


@njit(cache=True)
def _resolve_paragraph(
    codepoints: np.ndarray, original: np.ndarray, pairs: np.ndarray, bracket: np.ndarray, base: int, levels: np.ndarray
) -> None:
    n = len(original)
    kinds = original.copy()  # changed by overrides, then by the rules W and N
    _explicit_levels(kinds, original, pairs, base, levels)

    # X10: link the characters that X9 left into isolating run sequences.
    follow = np.full(n, -1, dtype=np.int32)
    is_first = np.zeros(n, dtype=np.bool_)
    level_before = np.full(n, base, dtype=np.uint8)  # of the character before, or the paragraph's
    level_after = np.full(n, base, dtype=np.uint8)
    last = -1
    for i in range(n):
        if levels[i] == REMOVED:
            continue
        if last >= 0:
            level_before[i] = levels[last]
            level_after[last] = levels[i]
        if last >= 0 and levels[last] == levels[i]:
            follow[last] = i
        elif original[i] == PDI and pairs[i] >= 0 and follow[pairs[i]] < 0:
            follow[pairs[i]] = i
        else:
            is_first[i] = True
        last = i

    sequence = np.empty(n, dtype=np.int32)
    for first in range(n):
        if not is_first[first]:
            continue
        count = 0
        i = first
        while i >= 0:
            sequence[count] = i
            count += 1
            i = follow[i]
        tail = sequence[count - 1]
        after = level_after[tail]
        if original[tail] in (LRI, RLI, FSI):
            after = base  # no PDI in sight: what follows inside is not this sequence's neighbour
        before_kind = R if max(level_before[first], levels[first]) % 2 else L
        after_kind = R if max(after, levels[tail]) % 2 else L
        members = sequence[:count]
        _weak_types(kinds, members, before_kind)
        _paired_brackets(codepoints, kinds, original, members, bracket, before_kind, levels[first] % 2)
        _neutral_types(kinds, members, before_kind, after_kind, levels[first] % 2)
        for i in members:  # I1, I2
            if levels[i] % 2 == 0:
                if kinds[i] == R:
                    levels[i] += 1
                elif kinds[i] != L:
                    levels[i] += 2
            elif kinds[i] != R:
                levels[i] += 1
    _trailing_space_levels(original, base, levels)


@njit(cache=True)
def _explicit_levels(kinds: np.ndarray, original: np.ndarray, pairs: np.ndarray, base: int, levels: np.ndarray) -> None:
    """X1 to X8; characters that X9 removes get the level REMOVED."""
    stack_level = np.empty(MAX_DEPTH + 2, dtype=np.uint8)
    stack_override = np.empty(MAX_DEPTH + 2, dtype=np.uint8)  # L, R or ON for none
    stack_isolate = np.empty(MAX_DEPTH + 2, dtype=np.bool_)
    stack_level[0], stack_override[0], stack_isolate[0] = base, ON, False
    top = 0
    overflow_isolates = overflow_embeddings = valid_isolates = 0
    for i in range(len(kinds)):
        kind = original[i]
        if kind in (LRE, LRO, RLE, RLO, LRI, RLI, FSI):
            isolate = kind in (LRI, RLI, FSI)
            if kind == FSI:  # X5c
                kind = RLI if _first_strong_level(original, pairs, i + 1, pairs[i]) == 1 else LRI
            if isolate:
                levels[i] = stack_level[top]
                if stack_override[top] != ON:
                    kinds[i] = stack_override[top]
            else:
                levels[i] = REMOVED
            level = int(stack_level[top])
            level = (level + 1) | 1 if kind in (RLE, RLO, RLI) else (level + 2) & ~1
            if level <= MAX_DEPTH and overflow_isolates == 0 and overflow_embeddings == 0:
                top += 1
                stack_level[top], stack_isolate[top] = level, isolate
                stack_override[top] = R if kind == RLO else L if kind == LRO else ON
                valid_isolates += isolate
            elif isolate:
                overflow_isolates += 1
            elif overflow_isolates == 0:
                overflow_embeddings += 1
        elif kind == PDI:  # X6a
            if overflow_isolates > 0:
                overflow_isolates -= 1
            elif valid_isolates > 0:
                overflow_embeddings = 0
                while not stack_isolate[top]:
                    top -= 1
                top -= 1
                valid_isolates -= 1
            levels[i] = stack_level[top]
            if stack_override[top] != ON:
                kinds[i] = stack_override[top]
        elif kind == PDF:  # X7
            levels[i] = REMOVED
            if overflow_isolates == 0:
                if overflow_embeddings > 0:
                    overflow_embeddings -= 1
                elif not stack_isolate[top] and top > 0:
                    top -= 1
        elif kind == BN:
            levels[i] = REMOVED
        elif kind == B:  # X8
            levels[i] = base
        else:  # X6
            levels[i] = stack_level[top]
            if stack_override[top] != ON:
                kinds[i] = stack_override[top]


@njit(cache=True)
def _weak_types(kinds: np.ndarray, members: np.ndarray, before_kind: int) -> None:
    """W1 to W7 on one isolating run sequence; afterwards only L, R, EN, AN and neutrals are left."""
    before = before_kind
    for i in members:  # W1
        if kinds[i] == NSM:
            kinds[i] = ON if before in (LRI, RLI, FSI, PDI) else before
        before = kinds[i]
    strong = before_kind
    for i in members:  # W2, W3
        if kinds[i] in (L, R, AL):
            strong = kinds[i]
        elif kinds[i] == EN and strong == AL:
            kinds[i] = AN
        if kinds[i] == AL:
            kinds[i] = R
    for k in range(1, len(members) - 1):  # W4
        before, kind, after = kinds[members[k - 1]], kinds[members[k]], kinds[members[k + 1]]
        if before == after and ((before == EN and kind in (ES, CS)) or (before == AN and kind == CS)):
            kinds[members[k]] = before
    k = 0
    while k < len(members):  # W5, W6
        kind = kinds[members[k]]
        if kind == ET:
            stop = k
            while stop < len(members) and kinds[members[stop]] == ET:
                stop += 1
            number = (k > 0 and kinds[members[k - 1]] == EN) or (stop < len(members) and kinds[members[stop]] == EN)
            for i in members[k:stop]:
                kinds[i] = EN if number else ON
            k = stop
        else:
            if kind in (ES, CS):
                kinds[members[k]] = ON
            k += 1
    strong = before_kind
    for i in members:  # W7
        if kinds[i] in (L, R):
            strong = kinds[i]
        elif kinds[i] == EN and strong == L:
            kinds[i] = L


@njit(cache=True)
def _paired_brackets(
    codepoints: np.ndarray,
    kinds: np.ndarray,
    original: np.ndarray,
    members: np.ndarray,
    bracket: np.ndarray,
    before_kind: int,
    embedding: int,
) -> None:
    """N0 on one isolating run sequence whose level has the direction ``embedding`` (0 or 1)."""
    count = len(members)
    any_bracket = False
    for i in members:
        if kinds[i] == ON and bracket[codepoints[i]] != 0:
            any_bracket = True
            break
    if not any_bracket:
        return

    # BD16: find the pairs; a running count of strong characters tells later what stands inside each.
    partner = np.full(count, -1, dtype=np.int32)
    strong_counts = np.zeros((count + 1, 2), dtype=np.int32)
    open_at = np.empty(MAX_OPEN_BRACKETS, dtype=np.int32)
    depth = 0
    searching = True
    for k in range(count):
        i = members[k]
        strong_counts[k + 1] = strong_counts[k]
        if kinds[i] in (L, R, EN, AN):
            strong_counts[k + 1, 0 if kinds[i] == L else 1] += 1
        pair = bracket[codepoints[i]] if kinds[i] == ON and searching else np.int16(0)
        if pair > 0:
            if depth == MAX_OPEN_BRACKETS:
                searching = False
            else:
                open_at[depth] = k
                depth += 1
        elif pair < 0:
            for level in range(depth - 1, -1, -1):
                if bracket[codepoints[members[open_at[level]]]] == -pair:
                    partner[open_at[level]] = k
                    depth = level
                    break

    strong = 1 if before_kind == R else 0  # direction of the last strong character before k, resolved brackets included
    for k in range(count):
        i = members[k]
        if partner[k] >= 0:
            inside = strong_counts[partner[k]] - strong_counts[k + 1]
            direction = -1
            if inside[embedding] > 0:
                direction = embedding  # N0 b
            elif inside[1 - embedding] > 0:
                direction = strong if strong != embedding else embedding  # N0 c
            if direction >= 0:
                for side in range(2):
                    end = k if side == 0 else partner[k]
                    kinds[members[end]] = R if direction else L
                    following = end + 1  # marks on a bracket go with it
                    while following < count and original[members[following]] == NSM and kinds[members[following]] == ON:
                        kinds[members[following]] = R if direction else L
                        following += 1
        if kinds[i] == L:
            strong = 0
        elif kinds[i] in (R, EN, AN):
            strong = 1


@njit(cache=True)
def _neutral_types(kinds: np.ndarray, members: np.ndarray, before_kind: int, after_kind: int, embedding: int) -> None:
    """N1, N2 on one isolating run sequence: neutrals take the direction of both sides where these agree."""
    count = len(members)
    before = before_kind
    k = 0
    while k < count:
        kind = kinds[members[k]]
        if kind in (L, R, EN, AN):
            before = L if kind == L else R
            k += 1
            continue
        stop = k
        while stop < count and kinds[members[stop]] not in (L, R, EN, AN):
            stop += 1
        after = after_kind
        if stop < count:
            after = L if kinds[members[stop]] == L else R
        resolved = before if before == after else (R if embedding else L)
        for i in members[k:stop]:
            kinds[i] = resolved
        k = stop


@njit(cache=True)
def _trailing_space_levels(original: np.ndarray, base: int, levels: np.ndarray) -> None:
    """L1, then a level for the characters that X9 removed."""
    trailing = True
    for i in range(len(original) - 1, -1, -1):
        kind = original[i]
        if kind in (S, B):
            levels[i] = base
            trailing = True
        elif kind in (WS, LRI, RLI, FSI, PDI) or levels[i] == REMOVED:
            if trailing:
                levels[i] = base
        else:
            trailing = False
    before = np.uint8(base)
    for i in range(len(original)):
        if levels[i] == REMOVED:
            levels[i] = before
        before = levels[i]


@njit(cache=True)
def _visual_runs(levels: np.ndarray) -> np.ndarray:
    n = len(levels)
    count = 0
    highest, lowest_odd = 0, 255
    for i in range(n):
        level = int(levels[i])
        count += i == 0 or level != levels[i - 1]
        highest = max(highest, level)
        if level % 2:
            lowest_odd = min(lowest_odd, level)
    runs = np.empty((count, 3), dtype=np.int32)
    k = -1
    for i in range(n):
        if i == 0 or levels[i] != levels[i - 1]:
            k += 1
            runs[k, 0] = i
            runs[k, 2] = levels[i]
        runs[k, 1] = i + 1
    for level in range(highest, lowest_odd - 1, -1):
        start = 0
        while start < count:
            end = start
            while end < count and runs[end, 2] >= level:
                end += 1
            if end > start + 1:
                runs[start:end] = runs[start:end][::-1].copy()
            start = end + 1
    return runs
