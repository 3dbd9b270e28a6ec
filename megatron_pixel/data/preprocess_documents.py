"""What happens to a document on its way into a dataset: tokens, pages, chunks of both, or the text of its pages.

Runs in worker processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_pixel.config.schema import PairConfig, RenderingConfig
from megatron_pixel.data.codec import PageCodec
from megatron_pixel.data.documents import Document
from megatron_pixel.data.manifest import Kind
from megatron_pixel.data.preprocess_chunks import PairChunker, Render, iterate_pages, with_ends
from megatron_pixel.data.split import is_heldout
from megatron_pixel.data.strings import to_bytes
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer

Chunk = tuple[Page, np.ndarray | None]
"""A page, and in pair datasets the tokens of the same characters."""


@dataclass
class Converted:
    """A document as it goes to disk. In a pair dataset sequence i of ``pages`` and of ``tokens`` are the same chunk."""

    heldout: bool
    pages: list[bytes] = field(default_factory=list)
    """Encoded pages."""
    strings: list[bytes] = field(default_factory=list)
    """Text of each page."""
    patches: list[int] = field(default_factory=list)
    """Patches of each page, the black end patch included."""
    tokens: list[np.ndarray] = field(default_factory=list)
    """int32, BOS and EOS included."""


@dataclass(frozen=True)
class Recipe:
    """How documents are converted: everything that a worker process needs to know."""

    kind: Kind
    heldout_fraction: float
    rendering: RenderingConfig | None = None
    tokenizer: str | None = None
    pair: PairConfig | None = None
    codec: PageCodec | None = None

    def make(self) -> "Converter":
        """Build fonts, tokenizer and tables; raises UserError for what is missing."""
        return Converter(self)


class Converter:
    """Converts batches of documents."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self.renderer = Renderer(recipe.rendering) if recipe.rendering else None
        self.tokenizer = Tokenizer(recipe.tokenizer) if recipe.tokenizer else None
        self.codec = recipe.codec
        """Built from the first pages of the corpus, so set later in the process that renders these."""
        self._chunker: PairChunker | None = None
        if recipe.kind == "pairs":
            assert self.renderer is not None
            assert self.tokenizer is not None
            assert recipe.pair is not None
            self._chunker = PairChunker(first_page(self.renderer), self.tokenizer, recipe.pair)

    def __call__(self, batch: Sequence[Document]) -> list[Converted]:
        return [self.convert(document.text) for document in batch]

    def convert(self, text: str, chunks: Iterable[Chunk] | None = None) -> Converted:
        """One document; ``chunks`` are its :meth:`chunks` where they are known already."""
        result = Converted(is_heldout(text, self._recipe.heldout_fraction))
        if self._recipe.kind == "text":
            assert self.tokenizer is not None
            result.tokens.append(with_ends(self.tokenizer, self.tokenizer.encode(text), last=True))
            return result
        for page, tokens in self.chunks(text) if chunks is None else chunks:
            result.patches.append(page.num_patches)
            if self._recipe.kind == "strings":
                result.strings.append(to_bytes(text[page.start : page.end]))
            else:
                assert self.codec is not None
                result.pages.append(self.codec.encode(page))
            if tokens is not None:
                result.tokens.append(tokens)
        return result

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
