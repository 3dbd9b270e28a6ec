"""Going on in pixels: a real loop that writes one patch after another, each seen by those that follow."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.generation.decoder import Decoder
from megatron_pixel.generation.pixels import Unnormalizer, prompt_deviation
from megatron_pixel.generation.prompts import Prompt, read, room_for


@dataclass(frozen=True)
class Stopping:
    """When a page ends."""

    most: int | None = None
    """Patches to write at the most; None fills the context."""
    blank_patches: int = 4
    """Normalized targets: end after so many predictions in a row that are close to zero; 0 never does."""
    near_zero: float = 0.3
    """Root mean square below which a normalized prediction counts as close to zero: a patch of text has 1, what models
    predict for one 0.5 and more."""
    black: float = 0.15
    """Raw targets: end at a patch whose mean, white being 1, is below this."""

    def check(self) -> None:
        """Raise UserError for values that cannot be."""
        for name, value in (("--max-patches", self.most), ("--blank-patches", self.blank_patches)):
            if value is not None and value < 0:
                raise UserError(f"{name} {value}: must be 0 or more")


@dataclass(frozen=True, eq=False)
class WrittenPage:
    """The continuation of one prompt."""

    patches: np.ndarray
    """uint8 [n, P * P * C]; blank ones that ended the page are left out, a black one is its last."""
    ended_by: str
    """``black patch``, ``blank patches`` or ``length``."""


def write_patches(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    stopping: Stopping,
    contrast: float = 1.0,
    on_patch: Callable[[int, int], None] | None = None,
) -> list[WrittenPage]:
    """Go on from each prompt until a page ends (:class:`Stopping`).

    Args:
        decoder: with patch embedder and pixel head.
        prompts: read as one batch; pages without their black end patch, or anything else that pixels shall follow.
        stopping: when to end.
        contrast: factor on the estimated contrast of normalized predictions; above 1 against predictions that fade.
        on_patch: called with the patches written and those that may be.

    Raises:
        UserError: a prompt that is empty or too long, no pixel head, settings that cannot be.
    """
    stopping.check()
    target = decoder.model.patch_target
    budget = room_for(decoder, prompts, stopping.most)
    deviations = torch.tensor([contrast * prompt_deviation(prompt.patches) for prompt in prompts])
    pixels_of = Unnormalizer(target, deviations.to(decoder.device))
    watch = _Watch(len(prompts), target == "raw", stopping)
    steps: list[Tensor] = []
    with torch.inference_mode():
        reading = read(decoder, prompts, budget)
        while len(steps) < budget:
            predictions = decoder.head("patch", reading.hidden)
            steps.append(pixels_of(predictions))
            watch.see(predictions, len(steps))
            if on_patch is not None:
                on_patch(len(steps), budget)
            if watch.all_ended or len(steps) == budget:
                break
            reading.step(decoder, decoder.embed_patches(steps[-1]))
    values = decoder.model.patch_size**2 * decoder.model.num_channels
    written = torch.stack(steps, dim=1).cpu().numpy() if steps else np.empty((len(prompts), 0, values), np.uint8)
    return [watch.page(row, written[row]) for row in range(len(prompts))]


class _Watch:
    """Which rows have ended, and why."""

    def __init__(self, rows: int, raw: bool, stopping: Stopping) -> None:
        self._raw, self._stopping = raw, stopping
        self._ends: dict[int, tuple[int, str]] = {}
        self._blank = [0] * rows

    @property
    def all_ended(self) -> bool:
        return len(self._ends) == len(self._blank)

    def see(self, predictions: Tensor, written: int) -> None:
        """The predictions [b, d] of patch number ``written`` (from 1)."""
        if self._raw:
            black = predictions.mean(-1) < self._stopping.black
            for row in black.nonzero().flatten().tolist():
                self._ends.setdefault(row, (written, "black patch"))
            return
        near_zero = predictions.square().mean(-1).sqrt() < self._stopping.near_zero
        for row, blank in enumerate(near_zero.tolist()):
            self._blank[row] = self._blank[row] + 1 if blank else 0
            if self._stopping.blank_patches and self._blank[row] == self._stopping.blank_patches:
                self._ends.setdefault(row, (written - self._stopping.blank_patches, "blank patches"))

    def page(self, row: int, patches: np.ndarray) -> WrittenPage:
        end, reason = self._ends.get(row, (len(patches), "length"))
        return WrittenPage(patches[:end], reason)
