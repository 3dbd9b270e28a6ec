"""From settings, a start and examples to rows: which renderer, which tokenizer, which room."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.schema import ModelConfig, RenderingConfig
from megatron_pixel.data.rendered import effective_config
from megatron_pixel.data.rows import PairLayout
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.finetuning.batches import RowBuilder
from megatron_pixel.finetuning.classifier import one_channel
from megatron_pixel.finetuning.encoding import Caps, PageEncoder, TextEncoder
from megatron_pixel.finetuning.examples import Examples
from megatron_pixel.finetuning.origin import Start
from megatron_pixel.finetuning.sets import EncodedSet, SetMaker


@dataclass(frozen=True)
class Inputs:
    """How examples become rows in one run.

    Attributes:
        model: architecture, with one channel where pages are gray or binary.
        rendering: settings of the pages; None without images.
    """

    model: ModelConfig
    modality: str
    caps: Caps
    layout: PairLayout
    rendering: RenderingConfig | None
    tokenizer: Tokenizer | None
    maker: SetMaker

    def rows(self, examples: Examples) -> tuple[RowBuilder, bool]:
        """Rows of a split, and whether its set was made before."""
        encoded, found = self.maker.make(examples)
        return self.rows_of(encoded), found

    def rows_of(self, encoded: EncodedSet) -> RowBuilder:
        """Rows of an encoded set."""
        return RowBuilder(
            encoded,
            self.modality,
            self.model.patch_size,
            self.model.num_channels,
            self.layout,
            self.caps.patches,
            self.tokenizer.bos_id if self.tokenizer is not None else 1,
        )


def open_inputs(config: FinetuningConfig, start: Start) -> Inputs:
    """What the settings and the start together say.

    Raises:
        UserError: a tokenizer that is missing or another one than the start was trained with, rendering that the model
            cannot read, no room.
    """
    modality = config.modality
    if config.weights == "pretrained":
        start.check_modality(modality)
    model = start.model
    length = min(config.input.length, model.seq_length)
    caps = Caps.of(modality, length)
    released = start.released if config.input.layout == "auto" else config.input.layout == "released"
    rendering, pages, tokenizer, text = None, None, None, None
    settings: dict[str, Any] = {"caps": [caps.patches, caps.tokens], "released": released}
    if caps.patches:
        rendering = _rendering(config, start, caps.patches)
        if rendering.mode != "rgb" and model.num_channels == 3:
            model = one_channel(model)
        pages = PageEncoder(rendering)
        settings["rendering"] = pages.renderer.fingerprint()
    if caps.tokens:
        tokenizer = _tokenizer(config, start)
        text = TextEncoder(tokenizer, caps.tokens, "released" if released else "native")
        settings["tokenizer"] = tokenizer.sha256
    cache = Path(config.input.cache) if config.input.cache else None
    layout: PairLayout = "released" if released else "compact"
    return Inputs(model, modality, caps, layout, rendering, tokenizer, SetMaker(pages, text, settings, cache))


def _rendering(config: FinetuningConfig, start: Start, patches: int) -> RenderingConfig:
    """The start's own settings, and over them those that are given."""
    if config.rendering.patch_size not in (None, start.model.patch_size):
        raise UserError(
            f"rendering.patch_size: {config.rendering.patch_size}, and the model reads patches of "
            f"{start.model.patch_size}"
        )
    rendering = effective_config(start.rendering, replace(config.rendering, patch_size=None))
    if start.model.num_channels == 1 and rendering.mode == "rgb":
        if config.rendering.mode == "rgb":
            raise UserError(
                "rendering.mode: rgb, and the model was trained on pages of one channel: take gray or binary"
            )
        rendering = replace(rendering, mode="gray")
    return replace(rendering, seq_length=patches)


def _tokenizer(config: FinetuningConfig, start: Start) -> Tokenizer:
    path = Path(config.input.tokenizer) if config.input.tokenizer else start.tokenizer_file
    if path is None:
        raise UserError(
            f"input.tokenizer is not given, and no tokenizer lies beside the data that {start.where} was trained on: "
            "name the file of its sentencepiece model"
        )
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size != start.model.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size:,} pieces, and the model {start.model.vocab_size:,} (input.tokenizer)"
        )
    expected = start.tokenizer_sha256
    if expected and not tokenizer.sha256.startswith(expected) and config.weights == "pretrained":
        raise UserError(
            f"{path} (sha256 {tokenizer.sha256[:12]}) is not the tokenizer that {start.where} was trained with "
            f"(sha256 {expected}): its tokens would mean something else (input.tokenizer)"
        )
    return tokenizer
