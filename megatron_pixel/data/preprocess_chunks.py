"""Cutting documents: pages of pixels, and pairs of a page and its tokens.

Both walk through a document with a bounded look-ahead, so that the cost is linear in its length whatever it holds.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import PairConfig
from megatron_pixel.data.preprocess_words import WordBoundaries
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.rendering.page import Page

Pages = Callable[[str, int], list[Page]]
"""``Renderer.pages``: a text as pages of at most so many patches."""
Render = Callable[[str, int], Page]
"""``Renderer.render``: the first of these pages."""

PORTION_CHARACTERS = 1 << 16

LEAST_PAIR_PATCHES = 8
LEAST_PAIR_TOKENS = 16
"""Below these caps a single wide or rare character may not fit."""


def iterate_pages(pages: Pages, text: str, max_patches: int) -> Iterator[Page]:
    """The pages of a document one by one; they tile it. A long one is rendered in portions, to bound the memory."""
    start = 0
    portion = PORTION_CHARACTERS
    while True:
        window = text[start : start + portion]
        rendered = pages(window, max_patches)
        if start + len(window) < len(text):
            if len(rendered) == 1:
                portion *= 2
                continue
            rendered.pop()  # what follows the portion may belong to its last page too
        yield from (replace(page, start=start + page.start, end=start + page.end) for page in rendered)
        start += rendered[-1].end
        if start >= len(text):
            return
        portion = PORTION_CHARACTERS


class PairChunker:
    """Cuts documents into pairs of a page and the tokens of the same characters."""

    def __init__(self, render: Render, tokenizer: Tokenizer, caps: PairConfig) -> None:
        self._render = render
        self._tokenizer = tokenizer
        self._caps = caps
        self._words = WordBoundaries()
        # No longer text than this has so few tokens, so there is no need to look further.
        self._limit = caps.tokens * tokenizer.longest_piece

    def chunks(self, text: str) -> Iterator[tuple[Page, np.ndarray]]:
        """The chunks of a document; their characters tile it. Tokens are int32 [n] and begin with BOS.

        Each is the longest run of whole words whose patches and tokens fit the caps, end patch, BOS and the EOS of the
        last one included; a longer word is cut between characters.
        """
        start = 0
        look = _first_look(self._caps.patches)
        while True:
            page = _fit(self._render, text, start, self._caps.patches, look, self._limit)
            ids = self._tokenizer.encode(text[start : page.end])
            last = page.end >= len(text)
            if len(ids) + 1 + last > self._caps.tokens:
                page, ids = self._shorten(text, page)
                last = False
            yield page, with_ends(self._tokenizer, ids, last=last)
            if last:
                return
            look = _next_look(page)
            start = page.end

    def _shorten(self, text: str, page: Page) -> tuple[Page, np.ndarray]:
        """The longest beginning of ``page`` that is not the whole of it and has room for its tokens and BOS."""
        room = self._caps.tokens - 1
        chunk = text[page.start : page.end]
        ends = self._tokenizer.encode_with_offsets(chunk).ends
        end = min(int(ends[min(room, len(ends)) - 1]), len(chunk) - 1)
        while end > 0:
            end = self._words.last(chunk, end)
            ids = self._tokenizer.encode(chunk[:end])
            shown = self._render(chunk[:end], self._caps.patches)
            if len(ids) <= room and shown.end == end:
                return replace(shown, start=page.start, end=page.start + end), ids
            # Without what follows, the end of the text may shape or merge a little differently.
            end = min(shown.end, end - 1)
        raise UserError(f"--pair.tokens {self._caps.tokens} cannot hold the text {chunk[:16]!r}; allow more tokens")


def with_ends(tokenizer: Tokenizer, ids: np.ndarray, last: bool) -> np.ndarray:
    """BOS, the tokens, and EOS if they are the ``last`` of their document; int32."""
    ends = [tokenizer.eos_id] if last else []
    return np.concatenate([[tokenizer.bos_id], ids, ends]).astype(np.int32)


def _fit(render: Render, text: str, start: int, max_patches: int, look: int, limit: int) -> Page:
    """The page that begins at ``start``, rendered from a window of ``look`` characters that grows, up to ``limit``,
    until the page is full: what follows the first character that does not fit cannot change it."""
    while True:
        window = text[start : start + min(look, limit)]
        page = render(window, max_patches)
        if page.end < len(window) or start + len(window) >= len(text) or look >= limit:
            break
        look *= 2
    return replace(page, start=start, end=start + page.end)


def _first_look(max_patches: int) -> int:
    return 4 * max_patches


def _next_look(page: Page) -> int:
    """Neighbouring pages are about equally long."""
    return (page.end - page.start) * 5 // 4 + 64
