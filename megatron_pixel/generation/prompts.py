"""What a decoder reads before it goes on: patches, tokens, or one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.generation.decoder import Cache, Decoder


@dataclass(frozen=True, eq=False)
class Prompt:
    """One row to go on from."""

    patches: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.uint8))
    """uint8 [n, P * P * C], may be empty."""
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 [m], may be empty."""
    tokens_first: bool = False
    """Tokens, then patches; else patches, then tokens."""
    gap: int = 0
    """Positions left out between the two: the padding of ``pair.layout: released``."""

    def __len__(self) -> int:
        return len(self.patches) + len(self.tokens)

    @property
    def next_position(self) -> int:
        """Position id of what comes next."""
        return len(self) + self.gap

    def position_ids(self) -> Tensor:
        """int64 [n + m]."""
        positions = torch.arange(len(self))
        first = len(self.tokens) if self.tokens_first else len(self.patches)
        positions[first:] += self.gap
        return positions

    def embedded(self, decoder: Decoder) -> Tensor:
        """[n + m, hidden]."""
        parts = []
        if len(self.patches):
            parts.append(decoder.embed_patches(torch.from_numpy(self.patches)))
        if len(self.tokens):
            parts.append(decoder.embed_tokens(torch.from_numpy(self.tokens)))
        return torch.cat(parts[::-1] if self.tokens_first else parts)


@dataclass(eq=False)
class Reading:
    """Prompts that were read, and where their continuations stand."""

    cache: Cache
    hidden: Tensor
    """[b, hidden] of the last position of each row."""
    next_positions: Tensor
    """int64 [b]."""

    def step(self, decoder: Decoder, embedded: Tensor) -> None:
        """Read one more position of every row, [b, hidden]."""
        self.hidden = decoder.forward(embedded[:, None], self.next_positions[:, None], self.cache)[:, 0]
        self.next_positions = self.next_positions + 1


def read(decoder: Decoder, prompts: Sequence[Prompt], more: int) -> Reading:
    """Read prompts, of different lengths perhaps, with room for ``more`` positions after each.

    Shorter ones are padded at their beginning, where nothing sees it.

    Raises:
        UserError: a prompt that is empty, or fills the context.
    """
    room = decoder.model.seq_length
    for number, prompt in enumerate(prompts, start=1):
        name = "the prompt" if len(prompts) == 1 else f"prompt {number}"
        if not len(prompt):
            raise UserError(f"{name} is empty: there is nothing to go on from")
        if prompt.next_position >= room:
            raise UserError(
                f"{name} takes {prompt.next_position:,} positions; the model reads {room:,}, and one must be left to "
                "write: shorten it"
            )
    longest = max(map(len, prompts))
    embedded = torch.zeros(len(prompts), longest, decoder.model.hidden, dtype=decoder.dtype, device=decoder.device)
    positions = torch.zeros(len(prompts), longest, dtype=torch.int64)
    content = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt)
        embedded[row, start:] = prompt.embedded(decoder)
        positions[row, start:] = prompt.position_ids()
        content[row, start:] = True
    cache = Cache(decoder, len(prompts), longest + more, content)
    hidden = decoder.forward(embedded, positions, cache)[:, -1]
    following = torch.tensor([prompt.next_position for prompt in prompts], device=decoder.device)
    return Reading(cache, hidden, following)


def room_for(decoder: Decoder, prompts: Sequence[Prompt], wanted: int | None) -> int:
    """Positions that can be written: as many as wanted, or as the context holds after the longest prompt."""
    free = decoder.model.seq_length - max((prompt.next_position for prompt in prompts), default=0)
    return max(free if wanted is None else min(wanted, free), 0)
