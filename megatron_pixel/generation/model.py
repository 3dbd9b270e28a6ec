"""A checkpoint opened for reading: decoder, tokenizer and renderer together."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.generation.decoder import Decoder
from megatron_pixel.generation.prompts import Prompt
from megatron_pixel.interop.companions import other_fonts, renderer_for
from megatron_pixel.interop.open import Opened, open_any
from megatron_pixel.rendering.renderer import Renderer

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Model:
    """What :func:`open_model` opens. The tokenizer and the renderer are opened when they are first asked for."""

    checkpoint: Opened
    decoder: Decoder
    tokenizer_path: Path | None
    fonts: list[str]

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            UserError: it is not known, or has another number of entries than the model.
        """
        if self.tokenizer_path is None:
            raise UserError(f"the tokenizer of {self.checkpoint.folder} is not to be found: name it with --tokenizer")
        tokenizer = Tokenizer(self.tokenizer_path)
        if tokenizer.vocab_size != self.decoder.model.vocab_size:
            raise UserError(
                f"{self.tokenizer_path} has {tokenizer.vocab_size:,} entries, the model "
                f"{self.decoder.model.vocab_size:,}: it is not the tokenizer of this model"
            )
        return tokenizer

    @functools.cached_property
    def renderer(self) -> Renderer:
        """A renderer with the settings that the model's pages were made with."""
        shape = self.decoder.model
        return renderer_for(self.checkpoint.rendering, shape.num_channels, shape.patch_size, self.fonts)

    def notes(self) -> list[str]:
        """What a user of the renderer should know."""
        others = other_fonts(self.renderer, self.checkpoint.rendering)
        if not others:
            return []
        return [
            f"pages are drawn with other fonts than in training: {others[0]} and {len(others) - 1} more are not here"
        ]

    def text_prompt(self, text: str) -> Prompt:
        """BOS and the tokens of ``text``."""
        return Prompt(tokens=self._tokens(text))

    def pixel_prompt(self, text: str) -> Prompt:
        """``text`` rendered, without the black patch that would end the page.

        Raises:
            UserError: the text does not fit on a page that the model can read and go on from.
        """
        return Prompt(patches=self.page(text, self.decoder.model.seq_length)[:-1])

    def reading_prompt(self, text: str) -> Prompt:
        """``text`` rendered, the black patch, BOS: what comes next are the tokens of the page, as in a pair row."""
        pair = self.checkpoint.pair
        patches = self.page(text, min(pair.patches, self.decoder.model.seq_length))
        gap = pair.patches - len(patches) if pair.layout == "released" else 0
        return Prompt(patches, np.array([self.tokenizer.bos_id]), gap=gap)

    def page(self, text: str, most: int) -> np.ndarray:
        """The patches of ``text``, uint8 [n, P * P * C], its black end patch last.

        Raises:
            UserError: it needs more than ``most`` patches.
        """
        shape = self.decoder.model
        page = self.renderer.render(text, max(most, 2))
        if page.end < len(text):
            raise UserError(
                f"the prompt does not fit on a page of {most:,} patches: {page.end:,} of its {len(text):,} characters "
                "do; shorten it"
            )
        return page.patches(shape.num_channels).reshape(page.num_patches, -1)

    def _tokens(self, text: str) -> np.ndarray:
        tokens = self.tokenizer.encode(text).astype(np.int64)
        return np.concatenate([[self.tokenizer.bos_id], tokens])

    def drawing_prompt(self, text: str) -> Prompt:
        """BOS and the tokens of ``text``, which pixels shall follow. No row of pretraining has this order."""
        return Prompt(tokens=self._tokens(text), tokens_first=True)


def open_model(
    folder: Path,
    device: str | None = None,
    dtype: str | None = None,
    tokenizer: Path | None = None,
    fonts: list[str] | None = None,
) -> Model:
    """Open a run, a checkpoint or a released folder for generation.

    Args:
        folder: see :func:`megatron_pixel.interop.open.open_any`.
        device: such as ``cuda:1``; None takes a GPU where there is one.
        dtype: fp32, bf16 or fp16; None is bf16 on a GPU, fp32 elsewhere.
        tokenizer: instead of the one that is found.
        fonts: instead of the renderer's own chain.

    Raises:
        UserError: no checkpoint, or one that is not whole.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("bf16" if device.startswith("cuda") else "fp32")
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is none of {', '.join(DTYPES)}")
    checkpoint = open_any(folder)
    source = checkpoint.source
    decoder = Decoder(
        checkpoint.model, lambda name: source.read(name, "fp32"), set(source.shapes), device, DTYPES[dtype]
    )
    return Model(checkpoint, decoder, tokenizer or checkpoint.tokenizer, fonts or [])
