"""The two small languages inside the config: ``4:4:2`` for a mixture and ``0.5:data/c4`` for a weighted dataset."""

import math
import re
from typing import NamedTuple

from megatron_pixel.config.errors import UserError


class PerKind(NamedTuple):
    """One number for each kind of row."""

    text: int
    pixel: int
    pair: int


class WeightedPrefix(NamedTuple):
    """A dataset and its share of the rows of its kind, relative to the others."""

    weight: float
    prefix: str


def parse_mixture(text: str) -> PerKind:
    """``text:pixel:pair`` as whole numbers, not all zero; raises UserError otherwise."""
    match = re.fullmatch(r"([0-9]+):([0-9]+):([0-9]+)", text.strip())
    if not match or not any(int(part) for part in match.groups()):
        raise UserError(
            f"data.mixture: {text!r}: expected rows of a step as text:pixel:pair in whole numbers, not all zero, "
            "such as 4:4:2"
        )
    return PerKind(*(int(part) for part in match.groups()))


def rows_per_kind(mixture: PerKind, global_batch_rows: int) -> PerKind:
    """Rows of each kind in one step; raises UserError with the nearest valid batch sizes if a part is not whole."""
    unit = sum(mixture) // math.gcd(*mixture)
    if global_batch_rows < 1 or global_batch_rows % unit:
        below = global_batch_rows // unit * unit
        nearest = " or ".join(str(number) for number in (below, below + unit) if number > 0)
        raise UserError(
            f"training.global_batch_rows: {global_batch_rows} rows cannot be split {':'.join(map(str, mixture))}; "
            f"nearest valid: {nearest}"
        )
    return PerKind(*(part * global_batch_rows // sum(mixture) for part in mixture))


def parse_source(text: str) -> WeightedPrefix:
    """``weight:prefix`` or ``prefix`` (weight 1); raises UserError for a weight not above 0 or an empty prefix."""
    head, colon, tail = text.partition(":")
    if colon:
        try:
            weight = float(head)
        except ValueError:
            return WeightedPrefix(1.0, text)
        if not tail or not math.isfinite(weight) or weight <= 0:
            raise UserError(f"{text!r}: expected prefix or weight:prefix with a weight above 0, such as 0.5:data/c4")
        return WeightedPrefix(weight, tail)
    if not text:
        raise UserError("'': expected prefix or weight:prefix, such as 0.5:data/c4")
    return WeightedPrefix(1.0, text)
