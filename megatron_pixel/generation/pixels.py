"""From what the pixel head predicts to pixels that a page can hold.

A raw head predicts pixels / 255. A normalized head predicts ``(x - mean) / deviation`` of the next patch, with that
patch's own mean and deviation: brightness and contrast are lost, and nothing else says them. They are estimated:

- **contrast**: the deviation is the average one of the prompt's patches that show anything (:data:`DEVIATION` where
  there is no prompt page);
- **brightness**: paper is white. The patch is shifted so that its 85th percentile, which in a patch of text is ground
  and not ink, becomes white.

So ``x = 1 + deviation * (p - percentile(p, 85))``, clipped and rounded. A prediction close to zero, which stands for a
blank patch as well as for the black end patch, comes out as paper.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

DEVIATION = 0.3
"""Of a patch of black 8-point text at 120 dots an inch, pixels in 0..1: the average over English pages."""
GROUND = 0.85
"""Part of the values of a patch of text that are darker than its ground, at the most."""
_BLANK = 1e-3
"""Deviation below which a patch shows nothing."""


def prompt_deviation(patches: np.ndarray) -> float:
    """Average deviation of the patches that show anything, pixels in 0..1; :data:`DEVIATION` where none does.

    Args:
        patches: uint8 [n, P * P * C].
    """
    if not len(patches):
        return DEVIATION
    deviations = (patches.astype(np.float32) / 255).std(axis=1, ddof=1)
    shown = deviations[deviations > _BLANK]
    return float(shown.mean()) if len(shown) else DEVIATION


class Unnormalizer:
    """Predictions to pixels.

    Args:
        target: what the head predicts.
        deviations: float [b], contrast of the patches of each row; not used where ``target`` is raw.
    """

    def __init__(self, target: Literal["normalised", "raw"], deviations: Tensor) -> None:
        self._raw = target == "raw"
        self._deviations = deviations

    def __call__(self, predictions: Tensor) -> Tensor:
        """uint8 [b, d] from float [b, d]."""
        values = predictions.float()
        if not self._raw:
            ground = values.quantile(GROUND, dim=-1, keepdim=True)
            values = 1 + self._deviations[:, None] * (values - ground)
        return (values * 255).round().clamp(0, 255).to(torch.uint8)
