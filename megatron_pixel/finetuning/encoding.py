"""Examples as patches and tokens: rendered and tokenized once, at the length that rows have room for.

The rule for texts that are too long: the end is cut. Pages are cut between words; of two texts the longer one is cut,
both if each takes more than half. What was cut is counted, never silent.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.finetuning.examples import Examples
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer

LEAST_LENGTH = 8
"""Positions below which neither a pair of texts nor its separators fit."""


@dataclass(frozen=True)
class Caps:
    """Room of a row."""

    patches: int
    """At the most, black patches included; 0 without an image."""
    tokens: int
    """At the most, BOS and EOS included; 0 without tokens."""

    @classmethod
    def of(cls, modality: str, length: int) -> "Caps":
        """Room of a row of ``length`` positions; a pair row gives half of them to each.

        Raises:
            UserError: too short for anything.
        """
        if length < LEAST_LENGTH * (2 if modality == "pair" else 1):
            raise UserError(f"input.length: {length} positions hold no example; 128 is a small length, 768 the paper's")
        if modality == "pair":
            return cls(length // 2, length - length // 2)
        return cls(length, 0) if modality == "pixel" else cls(0, length)


class TextEncoder:
    """Tokens of examples.

    Args:
        tokenizer: of the checkpoint.
        cap: tokens of a row at the most.
        layout: ``native``: ``BOS first EOS``, and ``BOS second EOS`` behind it, as documents follow each other in
            pretraining; ``released``: BOS before each text, no EOS, as Llama's tokenizer joins pairs.
    """

    def __init__(self, tokenizer: Tokenizer, cap: int, layout: str) -> None:
        self._tokenizer, self._cap = tokenizer, cap
        self._closes = layout == "native"

    def encode(self, texts: tuple[str, ...]) -> tuple[np.ndarray, bool]:
        """int32 [m] and whether something was cut."""
        parts = [self._tokenizer.encode(text) for text in texts]
        room = self._cap - len(parts) * (2 if self._closes else 1)
        rooms = shared_room([len(part) for part in parts], room)
        tokens: list[np.ndarray] = []
        for part, most in zip(parts, rooms, strict=True):
            tokens += [np.array([self._tokenizer.bos_id], np.int32), part[:most]]
            if self._closes:
                tokens.append(np.array([self._tokenizer.eos_id], np.int32))
        return np.concatenate(tokens), sum(rooms) < sum(map(len, parts))


def shared_room(needs: list[int], room: int) -> list[int]:
    """How much of one or two texts fits: the longer one gives way, both if each needs more than half."""
    if sum(needs) <= room:
        return needs
    if len(needs) == 1:
        return [room]
    half = room // 2
    if needs[0] <= half:
        return [needs[0], room - needs[0]]
    if needs[1] <= room - half:
        return [room - needs[1], needs[1]]
    return [half, room - half]


class PageEncoder:
    """Images of examples: one text, or two with a black patch between them; a black patch at the end."""

    def __init__(self, rendering: RenderingConfig) -> None:
        self.renderer = Renderer(rendering)

    def page(self, texts: tuple[str, ...]) -> tuple[Page, bool]:
        """The page and whether something was cut."""
        if len(texts) == 1:
            page = self.renderer.render(texts[0])
        else:
            page = self.renderer.render_pair(*texts)
        return page, page.end < sum(map(len, texts))

    def rendered(
        self, images: Sequence[bytes], num_patches: Sequence[int], names: Sequence[str]
    ) -> Iterator[tuple[Page, bool]]:
        """The pages of released rendered rows, in the colors of ``rendering.mode``.

        As in the released code, an image is cut at its right edge to the length of a row, and its end patch counts.
        """
        for image, count, name in zip(images, num_patches, names, strict=True):
            yield self._from_png(image, count, name)

    def _from_png(self, image: bytes, count: int, name: str) -> tuple[Page, bool]:
        config = self.renderer.config
        size, most = config.patch_size, config.seq_length
        try:
            with Image.open(io.BytesIO(image)) as opened:
                pixels = np.asarray(opened.convert("RGB" if config.mode == "rgb" else "L"))
        except (OSError, ValueError) as error:
            raise UserError(f"{name}: the image is no PNG that can be read: {error}") from None
        patches = count + 1  # the black one at the end
        if pixels.shape[0] != size or pixels.shape[1] < patches * size:
            raise UserError(
                f"{name}: an image of {pixels.shape[1]} x {pixels.shape[0]} pixels does not hold {patches} patches of "
                f"{size} x {size}"
            )
        if config.mode == "binary":
            pixels = np.where(pixels < config.binary_threshold, 0, 255).astype(np.uint8)
        kept = min(patches, most)
        columns = np.ascontiguousarray(pixels[:, : kept * size].swapaxes(0, 1))
        if columns.ndim == 3 and (columns == columns[..., :1]).all():
            columns = np.ascontiguousarray(columns[..., 0])
        return Page(columns, kept, 0, 0, size), kept < patches


def texts_of(examples: Examples) -> Iterator[tuple[str, ...]]:
    """The one or two texts of each example."""
    if examples.second is None:
        return ((text,) for text in examples.first)
    return zip(examples.first, examples.second, strict=True)
