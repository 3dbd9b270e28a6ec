"""Choosing the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_pixel.config.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability."""
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for values that cannot be."""
        if self.temperature < 0:
            raise UserError(f"--temperature {self.temperature}: must be 0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p {self.top_p}: must be above 0 and at most 1")


class Sampler:
    """Draws by one :class:`Sampling`; the same seed gives the same tokens on the same device.

    Raises:
        UserError: values that cannot be.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        sampling.check()
        self._sampling = sampling
        self._generator = torch.Generator(device).manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """int64 [b] from fp32 [b, vocabulary]."""
        if self._sampling.temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / self._sampling.temperature, dim=-1)
        if self._sampling.top_p < 1:
            probabilities = nucleus(probabilities, self._sampling.top_p)
        return torch.multinomial(probabilities, 1, generator=self._generator).squeeze(-1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Set to 0 all but the fewest likeliest tokens whose probabilities reach ``top_p``; fp32 [b, vocabulary].

    The likeliest token always stays. Not normalized again.
    """
    ordered, order = probabilities.sort(dim=-1, descending=True)
    # A token stays if those before it have not reached top_p.
    left_out = ordered.cumsum(-1) - ordered >= top_p
    left_out[..., 0] = False
    return probabilities.masked_fill(left_out.scatter(-1, order, left_out), 0.0)
