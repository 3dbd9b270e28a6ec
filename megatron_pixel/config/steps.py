"""The small language that names a range of steps: ``10:13``, both included, or ``10``."""

import re

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
