"""Rows without files, for the ``-debug`` recipes and for tests: a tiny written language that a model can learn.

A lexicon of a few words is fixed once for all. A word has one token and a spelling of one to four patches from a small
bank; sentences follow a Markov chain over the words. So the next token can be guessed from the last one, the next patch
from several patches before it, and the tokens of a pair from its image. Train and held-out rows are drawn from the same
chain by different random streams; nothing depends on the seed of the run.
"""

from collections.abc import Iterator

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig, PairConfig
from megatron_pixel.data.rows import Kind, Piece, Row, fill_documents, fill_pair, fill_pixels, fill_text
from megatron_pixel.data.sampler import derive_key

BOS, EOS = 1, 2
FIRST_WORD = 3
"""Token of word 0."""
MAX_WORDS = 32
NUM_STROKES = 8
"""Patches of the bank besides the blank one and the black end patch."""
TRANSITIONS = (0.7, 0.15, 0.1, 0.05)
"""Probabilities of the four words that may follow a word."""
NUM_ROWS = {"train": 1 << 20, "heldout": 1 << 12}


class Language:
    """The lexicon, the chain and the bank of patches; the same for every split and run."""

    def __init__(self, vocab_size: int, patch_size: int, num_channels: int) -> None:
        if vocab_size <= FIRST_WORD + len(TRANSITIONS):
            raise UserError(
                f"model.vocab_size is {vocab_size}: synthetic data needs at least {FIRST_WORD + len(TRANSITIONS) + 1}"
            )
        self.num_words = min(MAX_WORDS, vocab_size - FIRST_WORD)
        rng = _generator("language")
        follows = np.stack([rng.permutation(self.num_words)[: len(TRANSITIONS)] for _ in range(self.num_words)])
        self._successors: list[list[int]] = follows.tolist()
        spellings = [rng.integers(1, NUM_STROKES + 1, rng.integers(1, 5)) for _ in range(self.num_words)]
        # Every word ends with a blank patch, number 0.
        self.spellings = [np.append(spelling, 0) for spelling in spellings]
        self.bank = _draw_bank(rng, patch_size, num_channels)
        """uint8 [1 + NUM_STROKES + 1, P, P, C]: blank, strokes, black."""

    def words(self, rng: np.random.Generator, count: int) -> list[int]:
        """A sentence of ``count`` words."""
        word = int(rng.integers(self.num_words))
        sentence = []
        for choice in rng.choice(len(TRANSITIONS), size=count, p=TRANSITIONS).tolist():
            sentence.append(word)
            word = self._successors[word][choice]
        return sentence

    def document(self, words: list[int]) -> np.ndarray:
        """Tokens of a sentence, int64 [len(words) + 2]."""
        return np.array([BOS, *(word + FIRST_WORD for word in words), EOS])

    def page(self, words: list[int], max_patches: int) -> np.ndarray:
        """Image of the sentence and its end patch, uint8 [n, P, P, C], cut to ``max_patches``."""
        spelled = np.concatenate([self.spellings[word] for word in words])[: max_patches - 1]
        return self.bank[np.append(spelled, len(self.bank) - 1)]


class SyntheticSource:
    """Rows of one kind in the synthetic language; the protocol of :mod:`megatron_pixel.data.sources`.

    Args:
        kind: kind of the rows.
        split: ``train`` or ``heldout``.
        model: vocabulary, row length, patch size and channels.
        pair: caps and layout of pair rows.
        packed: whether rows of the training split hold several short documents that do not see each other.
    """

    rows_per_block = 64
    note = ""

    def __init__(self, kind: Kind, split: str, model: ModelConfig, pair: PairConfig, packed: bool = False) -> None:
        self.kind = kind
        self.name = self.identity = f"{kind.name.lower()}:synthetic"
        self.num_rows = NUM_ROWS[split]
        self._split = split
        self.seq_length = model.seq_length
        self.patch_values = 0 if kind == Kind.TEXT else model.patch_size**2 * model.num_channels
        self._pair = pair
        self._apart, self._packed = packed, packed and split == "train"
        self._language = Language(model.vocab_size, model.patch_size, model.num_channels)

    def row(self, index: int, out: Row | None = None) -> Row:
        """Row ``index``: always the same, and drawn in well under a millisecond."""
        rng = _generator(self.name, self._split, index)
        row = out or Row.empty(self.seq_length, self.patch_values, (self.name, index))
        if self.kind == Kind.TEXT:
            return self._text_row(rng, row)
        if self._packed:
            return fill_documents(row, list(self._pieces(rng, row)))
        if self.kind == Kind.PIXEL:
            page = self._language.page(self._language.words(rng, self.seq_length), self._page_length(rng))
            return fill_pixels(row, self._place(page, row))
        return self._pair_row(rng, row)

    def _place(self, page: np.ndarray, row: Row) -> int:
        """Writes a page at the beginning of a row; returns its patches."""
        row.page(page.shape[1])[: len(page)] = page
        return len(page)

    def _text_row(self, rng: np.random.Generator, row: Row) -> Row:
        documents = list(self._documents(rng))
        starts = np.cumsum([0, *(len(document) for document in documents[:-1])])
        tokens = np.concatenate(documents)[: self.seq_length]
        return fill_text(row, tokens, starts, self._apart)

    def _documents(self, rng: np.random.Generator) -> Iterator[np.ndarray]:
        length = 0
        while length < self.seq_length:
            count = int(rng.integers(max(1, self.seq_length // 8), self.seq_length + 1))
            document = self._language.document(self._language.words(rng, count))
            length += len(document)
            yield document

    def _pieces(self, rng: np.random.Generator, row: Row) -> Iterator[Piece]:
        """Pages or pairs of a few words until the next one does not fit, their patches in their places."""
        start = 0
        while True:
            words = self._language.words(rng, int(rng.integers(1, 4)))
            page = self._language.page(words, min(self._pair.patches, self.seq_length))
            tokens = self._language.document(words)[: self._pair.tokens] if self.kind == Kind.PAIR else None
            piece = Piece(len(page), tokens, self._pair.patches if self._pair.layout == "released" else None)
            if start and start + piece.length > self.seq_length:
                return
            row.page(page.shape[1])[start : start + len(page)] = page
            start += piece.length
            yield piece

    def _page_length(self, rng: np.random.Generator) -> int:
        return int(rng.integers(max(2, self.seq_length // 2), self.seq_length + 1))

    def _pair_row(self, rng: np.random.Generator, row: Row) -> Row:
        words = self._language.words(rng, max(1, self._pair.tokens - 2))
        patches = np.cumsum([len(self._language.spellings[word]) for word in words])
        fitting = max(1, int(np.searchsorted(patches, self._pair.patches - 1, side="right")))
        words = words[: max(1, int(rng.integers(fitting // 2, fitting + 1)))]
        drawn = self._place(self._language.page(words, self._pair.patches), row)
        tokens = self._language.document(words)[: self._pair.tokens]
        return fill_pair(row, drawn, tokens, self._pair.layout, self._pair.patches)


def _generator(*parts: str | int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(int.from_bytes(derive_key("synthetic", *parts)[:16], "little")))


def _draw_bank(rng: np.random.Generator, patch_size: int, num_channels: int) -> np.ndarray:
    bank = np.full((NUM_STROKES + 2, patch_size, patch_size, num_channels), 255, np.uint8)
    for patch in bank[1:-1]:
        for _ in range(3):
            # A stroke is a dark bar, upright or lying, about a sixth of the patch thick.
            start, across = rng.integers(0, patch_size, 2)
            thick, long = max(1, patch_size // 6), max(2, patch_size // 2)
            if rng.integers(2):
                patch[start : start + long, across : across + thick] = 0
            else:
                patch[across : across + thick, start : start + long] = 0
    bank[-1] = 0
    return bank
