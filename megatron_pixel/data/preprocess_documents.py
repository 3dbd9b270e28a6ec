"""What happens to a document on its way into a dataset: tokens, pages, chunks of both, or the text of its pages."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron_pixel.config.schema import PairConfig, RenderingConfig
from megatron_pixel.data.codec import PageCodec
from megatron_pixel.data.manifest import Kind
from megatron_pixel.data.preprocess_chunks import PairChunker, Render, iterate_pages, with_ends
from megatron_pixel.data.strings import to_bytes
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer

Chunk = tuple[Page, np.ndarray | None]
"""A page, and in pair datasets the tokens of the same characters."""


class Piece(NamedTuple):
    """One sequence of a dataset as it goes to disk."""

    patches: int
    """Patches of its page, the black end patch included; 0 where there is no page."""
    sequences: dict[str, bytes | np.ndarray]
    """By content (``CONTENTS`` of the kind): an encoded page, int32 tokens, UTF-8 text."""


@dataclass(frozen=True)
class Recipe:
    """How documents are converted: everything that a worker process needs to know."""

    kind: Kind
    heldout_fraction: float
    rendering: RenderingConfig | None = None
    tokenizer: str | None = None
    pair: PairConfig | None = None
    codec: PageCodec | None = None

    @property
    def has_codec(self) -> bool:
        """Whether pages are stored."""
        return self.kind in ("pixels", "pairs")

    def make(self) -> "Converter":
        """Build fonts, tokenizer and tables; raises UserError for what is missing."""
        return Converter(self)


class Converter:
    """Converts documents."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.renderer = Renderer(recipe.rendering) if recipe.rendering else None
        self.tokenizer = Tokenizer(recipe.tokenizer) if recipe.tokenizer else None
        self.codec = recipe.codec
        """Made from a sample of the pages, so set later in the process that renders these."""
        self._chunker: PairChunker | None = None
        if recipe.kind == "pairs":
            assert self.renderer is not None
            assert self.tokenizer is not None
            assert recipe.pair is not None
            self._chunker = PairChunker(first_page(self.renderer), self.tokenizer, recipe.pair)

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary; 1 where there is none."""
        return self.tokenizer.vocab_size if self.tokenizer else 1

    def pieces(self, text: str) -> Iterator[Piece]:
        """The sequences of a document, one by one: those of a long one do not fit into memory together."""
        if self._recipe.kind == "text":
            assert self.tokenizer is not None
            yield Piece(0, {"tokens": with_ends(self.tokenizer, self.tokenizer.encode(text), last=True)})
            return
        for page, tokens in self.chunks(text):
            if self._recipe.kind == "strings":
                yield Piece(page.num_patches, {"strings": to_bytes(text[page.start : page.end])})
                continue
            assert self.codec is not None
            sequences: dict[str, bytes | np.ndarray] = {"pages": self.codec.encode(page)}
            if tokens is not None:
                sequences["tokens"] = tokens
            yield Piece(page.num_patches, sequences)

    def chunks(self, text: str) -> Iterator[Chunk]:
        """The pages of a document, each with its tokens where the dataset holds pairs."""
        assert self.renderer is not None
        if self._recipe.kind in ("pixels", "strings"):
            assert self._recipe.rendering is not None
            for page in iterate_pages(first_page(self.renderer), text, self._recipe.rendering.seq_length):
                yield page, None
        else:
            assert self._chunker is not None
            yield from self._chunker.chunks(text)


def first_page(renderer: Renderer) -> Render:
    """The first page of a text, cut between words; ``render`` of the released preset would cut as if by scissors."""
    if renderer.config.preset == "default":
        return renderer.render
    return lambda text, max_patches: renderer.pages(text, max_patches)[0]
