"""Going on in text, token by token."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from megatron_pixel.generation.decoder import Decoder
from megatron_pixel.generation.prompts import Prompt, read, room_for
from megatron_pixel.generation.sampling import Sampler, Sampling


@dataclass(frozen=True)
class Written:
    """The continuation of one prompt."""

    tokens: list[int]
    """Without the end-of-document token."""
    ended_by: str
    """``end of document``, or ``length``."""


def write_tokens(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    most: int | None = None,
    eos_id: int | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[Written]:
    """Go on from each prompt until the end-of-document token, ``most`` tokens, or the end of the context.

    Args:
        decoder: with a token head.
        prompts: read as one batch.
        sampling: how tokens are drawn.
        most: tokens for each; None fills the context.
        eos_id: ends a row; None writes on to the length.
        on_token: called with the number of the prompt and each token as it is drawn.

    Raises:
        UserError: a prompt that is empty or too long, no token head, sampling settings that cannot be.
    """
    sampler = Sampler(sampling, decoder.device)
    budget = room_for(decoder, prompts, most)
    with torch.inference_mode():
        reading = read(decoder, prompts, budget)
        written: list[list[int]] = [[] for _ in prompts]
        open_rows = set(range(len(prompts)))
        for left in range(budget, 0, -1):
            drawn = sampler(decoder.head("token", reading.hidden))
            for row, token in enumerate(drawn.tolist()):
                if row not in open_rows:
                    continue
                if token == eos_id:
                    open_rows.discard(row)
                    continue
                written[row].append(token)
                if on_token is not None:
                    on_token(row, token)
            if not open_rows or left == 1:
                break
            reading.step(decoder, decoder.embed_tokens(drawn))
    return [Written(tokens, "length" if row in open_rows else "end of document") for row, tokens in enumerate(written)]
