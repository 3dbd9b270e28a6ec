"""Cutting documents: pages of pixels, and pairs of a page and its tokens.

Both walk through a document in windows a little longer than the page before, and widen one that is too short: what
follows the first character that does not fit cannot change a page. So the cost is linear in the length of a document.
"""

from collections.abc import Callable, Iterator

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import PairConfig
from megatron_pixel.data.preprocess_words import WordBoundaries
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.rendering.page import Page

Render = Callable[[str, int], Page]
"""The first page of a text, at most so many patches, cut at a word boundary: ``Renderer.render``."""

LEAST_PAIR_PATCHES = 8
LEAST_PAIR_TOKENS = 16
"""Below these caps a single wide or rare character may not fit."""


def iterate_pages(render: Render, text: str, max_patches: int) -> Iterator[Page]:
    """The pages of a document one by one; they tile it."""
    start = 0
    look = _first_look(max_patches)
    while True:
        window = text[start : start + look]
        page = render(window, max_patches)
        if page.end == len(window) and start + len(window) < len(text):
            look *= 2
            continue
        page.start, page.end = start, start + page.end
        yield page
        if page.end >= len(text):
            return
        look = _next_look(page)
        start = page.end


class PairChunker:
    """Cuts documents into pairs of a page and the tokens of the same characters."""

    def __init__(self, render: Render, tokenizer: Tokenizer, caps: PairConfig) -> None:
        self._render = render
        self._tokenizer = tokenizer
        self._caps = caps
        self._words = WordBoundaries()

    def chunks(self, text: str) -> Iterator[tuple[Page, np.ndarray]]:
        """The chunks of a document; their characters tile it. Tokens are int32 [n] and begin with BOS.

        Each is the longest run of whole words whose patches and tokens fit the caps, end patch, BOS and the EOS of the
        last one included; a longer word is cut between characters.
        """
        start = 0
        look = _first_look(self._caps.patches)
        while True:
            window = text[start : start + look]
            page = self._render(window, self._caps.patches)
            ids = self._tokenizer.encode(window[: page.end])
            last = start + page.end >= len(text)
            if len(ids) + 1 + last > self._caps.tokens:
                page, ids = self._shorten(window[: page.end])
                last = False
            elif page.end == len(window) and not last:
                look *= 2
                continue
            page.start, page.end = start, start + page.end
            yield page, with_ends(self._tokenizer, ids, last=last)
            if last:
                return
            look = _next_look(page)
            start = page.end

    def _shorten(self, chunk: str) -> tuple[Page, np.ndarray]:
        """The longest beginning of ``chunk`` that is not the whole of it and has room for its tokens and BOS."""
        room = self._caps.tokens - 1
        ends = self._tokenizer.encode_with_offsets(chunk).ends
        end = min(int(ends[min(room, len(ends)) - 1]), len(chunk) - 1)
        while end > 0:
            end = self._words.last(chunk, end)
            ids = self._tokenizer.encode(chunk[:end])
            page = self._render(chunk[:end], self._caps.patches)
            if len(ids) <= room and page.end == end:
                return page, ids
            # Without what follows, the end of the text may shape or merge a little differently.
            end = min(page.end, end - 1)
        raise UserError(f"--pair.tokens {self._caps.tokens} cannot hold the text {chunk[:16]!r}; allow more tokens")


def with_ends(tokenizer: Tokenizer, ids: np.ndarray, last: bool) -> np.ndarray:
    """BOS, the tokens, and EOS if they are the ``last`` of their document; int32."""
    ends = [tokenizer.eos_id] if last else []
    return np.concatenate([[tokenizer.bos_id], ids, ends]).astype(np.int32)


def _first_look(max_patches: int) -> int:
    return 4 * max_patches


def _next_look(page: Page) -> int:
    """Neighbouring pages are about equally long."""
    return (page.end - page.start) * 5 // 4 + 64
