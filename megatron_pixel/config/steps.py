"""The small languages that name steps: ``10:13``, both included, or ``10``; and lists such as ``120-139``, ``200``."""

import re
from collections.abc import Iterable

from megatron_pixel.config.errors import UserError


def parse_steps(text: str) -> tuple[int, int]:
    """First and last step.

    Raises:
        UserError: it is no such range.
    """
    match = re.fullmatch(r"\s*([0-9]+)(?::([0-9]+))?\s*", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"{text!r}: expected the first and the last step to record, such as 10:13; steps count from 1")
    return first, last


Ranges = tuple[tuple[int, int], ...]
"""First and last step of each stretch, in order, apart from each other."""


def parse_ranges(words: Iterable[str]) -> Ranges:
    """``["120-139", "200"]`` -> ``((120, 139), (200, 200))``.

    Raises:
        UserError: a word is neither a number nor a range that goes up.
    """
    ranges = []
    for word in words:
        first, dash, last = word.partition("-")
        last = last if dash else first
        if not first.isdecimal() or not last.isdecimal() or not 1 <= int(first) <= int(last):
            raise UserError(f"{word!r} is no step and no range of steps such as 120-139; steps count from 1")
        ranges.append((int(first), int(last)))
    return joined(ranges)


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in order, those that touch or overlap made one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1][1] + 1:
            found[-1] = found[-1][0], max(found[-1][1], last)
        else:
            found.append((first, last))
    return tuple(found)
