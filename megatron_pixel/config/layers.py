"""The small language that names decoder layers: ``none``, ``all``, or numbers and ranges such as ``1-12,24``."""

import re

from megatron_pixel.config.errors import UserError


def parse_layers(text: str, layers: int) -> frozenset[int]:
    """The named decoder layers, counted from 1.

    Args:
        text: ``none``, ``all`` or a comma-separated list of numbers and ranges.
        layers: how many there are.

    Raises:
        UserError: it says something else, or names a layer that the model does not have.
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
            raise UserError(f"{text!r}: expected none, all, or layers such as 1-12,24")
        first = int(match[1])
        last = int(match[2] or first)
        if not 1 <= first <= last <= layers:
            raise UserError(f"{text!r} names layers that are not there; valid: 1-{layers}")
        named |= set(range(first, last + 1))
    return frozenset(named)
