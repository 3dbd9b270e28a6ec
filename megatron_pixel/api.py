"""Load a checkpoint and use it, in a few lines.

    from megatron_pixel.api import load

    model = load("runs/demo")
    model.embed(["one text", "another"])      # float32 [2, hidden]
    model.logits("one text")                  # float32 [tokens, vocabulary]
    model.generate("one text", max_tokens=20)

``load`` takes a run, a checkpoint, or a folder in the released Hugging Face layout; no process group, no GPU and no
megatron-core are needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.generation.model import Model, open_model
from megatron_pixel.generation.pages import Stopping, write_patches
from megatron_pixel.generation.prompts import Prompt
from megatron_pixel.generation.sampling import Sampling
from megatron_pixel.generation.tokens import write_tokens

Modality = Literal["text", "pixel"]
Pooling = Literal["last", "mean"]


def load(
    checkpoint: str | Path,
    device: str | None = None,
    dtype: str | None = None,
    tokenizer: str | Path | None = None,
    fonts: Sequence[str] = (),
) -> "PixelModel":
    """Open a checkpoint.

    Args:
        checkpoint: a run's folder (its newest whole checkpoint), a folder ``step-...``, or a released folder.
        device: such as ``cuda:1``; None takes a GPU where there is one.
        dtype: ``fp32``, ``bf16`` or ``fp16``; None is bf16 on a GPU, fp32 elsewhere.
        tokenizer: ``tokenizer.model``; None takes the one that the model was trained with, where it still lies.
        fonts: font files, instead of the renderer's own.

    Raises:
        UserError: no checkpoint, or one that is not whole.
    """
    place = None if tokenizer is None else Path(tokenizer)
    return PixelModel(open_model(Path(checkpoint), device, dtype, place, list(fonts)))


class PixelModel:
    """A checkpoint in memory. Texts are read as tokens (``modality="text"``) or rendered (``modality="pixel"``)."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def parts(self) -> Model:
        """Decoder, tokenizer, renderer and the checkpoint itself."""
        return self._model

    def embed(self, texts: Sequence[str], modality: Modality = "text", pooling: Pooling = "last") -> Tensor:
        """Embeddings of texts, float32 [n, hidden].

        Args:
            texts: read one by one; a long one is refused and not cut.
            modality: how they are read.
            pooling: the state of the last position (the last token, or the black end patch), as classifiers take it,
                or the mean over all positions.

        Raises:
            UserError: a text that does not fit the context; no tokenizer; no patch embedder.
        """
        rows = []
        for text in texts:
            hidden = self._hidden(text, modality)
            rows.append((hidden[-1] if pooling == "last" else hidden.mean(0)).float().cpu())
        return torch.stack(rows) if rows else torch.empty(0, self._model.decoder.model.hidden)

    def logits(self, text: str, modality: Modality = "text") -> Tensor:
        """What follows each position of a text: float32 [tokens, vocabulary], logits of the next token, or
        [patches, P * P * C], the predicted next patch in the units of the head.

        Raises:
            UserError: as :meth:`embed`, or no such head.
        """
        head = "token" if modality == "text" else "patch"
        with torch.no_grad():
            return self._model.decoder.head(head, self._hidden(text, modality)).cpu()

    def generate(
        self, text: str, max_tokens: int | None = None, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> str:
        """What the model writes after ``text``."""
        model = self._model
        prompt = model.text_prompt(text)
        sampling = Sampling(temperature, top_p, seed)
        written = write_tokens(model.decoder, [prompt], sampling, max_tokens, model.tokenizer.eos_id)[0]
        before = model.tokenizer.decode(prompt.tokens)
        return model.tokenizer.decode([*prompt.tokens.tolist(), *written.tokens])[len(before) :]

    def draw(self, text: str, max_patches: int | None = None, contrast: float = 1.0) -> np.ndarray:
        """The page of ``text`` and what the model writes on it, uint8 [n, P, P, C]."""
        model = self._model
        prompt = model.pixel_prompt(text)
        page = write_patches(model.decoder, [prompt], Stopping(max_patches), contrast)[0]
        shape = model.decoder.model
        strip = np.concatenate([prompt.patches, page.patches])
        return strip.reshape(-1, shape.patch_size, shape.patch_size, shape.num_channels)

    def _hidden(self, text: str, modality: Modality) -> Tensor:
        """States after the final norm, [positions, hidden]."""
        model, decoder = self._model, self._model.decoder
        room = decoder.model.seq_length
        prompt = model.text_prompt(text) if modality == "text" else Prompt(model.page(text, room))
        if len(prompt) > room:
            raise UserError(f"the text has {len(prompt):,} positions; the model reads {room:,}: shorten it")
        with torch.no_grad():
            return decoder.forward(prompt.embedded(decoder)[None], prompt.position_ids()[None])[0]
