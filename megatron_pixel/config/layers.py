"""The small language that names decoder layers: ``none``, ``all``, or numbers and ranges such as ``1-12,24``."""

import re
from collections.abc import Collection

from megatron_pixel.config.errors import UserError


def parse_layers(text: str, layers: int) -> frozenset[int]:
    """The named decoder layers, counted from 1.

    Args:
        text: ``none``, ``all`` or a comma-separated list of numbers and ranges.
        layers: how many there are.

    Raises:
        UserError: it says something else, or names a layer that the model does not have. ``auto`` is something else,
            too: :mod:`megatron_pixel.config.automatic` turns it into one of these first.
    """
    words = text.strip()
    if words == "none":
        return frozenset()
    if words == "all":
        return frozenset(range(1, layers + 1))
    named: set[int] = set()
    for part in words.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:-([0-9]+))?\s*", part)
        if not match:
            raise UserError(f"{text!r}: expected none, all, auto, or layers such as 1-12,24")
        first = int(match[1])
        last = int(match[2] or first)
        if not 1 <= first <= last <= layers:
            raise UserError(f"{text!r} names layers that are not there; valid: 1-{layers}")
        named |= set(range(first, last + 1))
    return frozenset(named)


def name_layers(named: Collection[int], layers: int) -> str:
    """Inverse of :func:`parse_layers`, as short as can be: ``none``, ``all``, ``1-12,24``."""
    if not named:
        return "none"
    if len(named) == layers:
        return "all"
    ordered = sorted(named)
    firsts = [layer for layer in ordered if layer - 1 not in named]
    lasts = [layer for layer in ordered if layer + 1 not in named]
    spans = zip(firsts, lasts, strict=True)
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
