"""Datasets opened for reading: token streams, pages, pairs."""

import bisect
import hashlib
import json
from dataclasses import asdict
from functools import cached_property
from typing import Any, NoReturn

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec_base import DamagedPageError
from megatron_pixel.data.dataset_codecs import DatasetCodecs
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.manifest import Manifest, content_prefix
from megatron_pixel.data.split import SPLITS, TRAIN
from megatron_pixel.data.strings import to_text
from megatron_pixel.rendering.page import Page

_OPTIONS = {"text": "data.text", "pixels": "data.pixels", "pairs": "data.pairs", "strings": "data.pixels"}


def fingerprint_of(manifest: Manifest, split: str) -> str:
    """SHA-256 over the names and hashes of the split's files and the codec: equal content, equal fingerprint."""
    files = {name: file.sha256 for name, file in manifest.splits[split].files.items()}
    content = json.dumps([files, [asdict(codec) for codec in manifest.codecs]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


class _Store:
    """One split of a dataset. Opening reads the manifest and the headers of the indexes, never the data."""

    kind: str

    def __init__(self, prefix: str, split: str = TRAIN) -> None:
        """Raises UserError for a dataset that is missing, damaged, of a newer format, or of another kind."""
        if split not in SPLITS:
            raise UserError(f"no split {split!r}: a dataset has {' and '.join(SPLITS)}")
        self.prefix = prefix
        self.split = split
        self.manifest = Manifest.read(prefix)
        if self.manifest.kind != self.kind:
            raise UserError(
                f"{prefix} is a {self.manifest.kind} dataset and cannot be opened as {self.kind}; it belongs under "
                f"{_OPTIONS[self.manifest.kind]}"
            )

    @cached_property
    def fingerprint(self) -> str:
        """What :func:`fingerprint_of` gives."""
        return fingerprint_of(self.manifest, self.split)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.prefix, self.split)


class TokenStore(_Store):
    """A text dataset as one stream of tokens over all documents, each ``BOS tokens... EOS``."""

    kind = "text"

    def __init__(self, prefix: str, split: str = TRAIN) -> None:
        super().__init__(prefix, split)
        self.reader = IndexedReader(content_prefix(prefix, split, "tokens"))

    @property
    def num_tokens(self) -> int:
        """Length of the stream."""
        return self.reader.num_elements

    @property
    def num_documents(self) -> int:
        """Documents of the stream."""
        return self.reader.num_documents

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the stream, across documents: a read-only view, uint16 or int32."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start} to {stop} of {self.num_tokens} in {self.prefix}")
        return self.reader.elements[start:stop]

    def document_start(self, document: int) -> int:
        """Position in the stream of the first token of ``document``; of the end for ``num_documents``."""
        reader = self.reader
        sequence = int(reader.document_bounds[document])
        return int(reader.pointers[sequence]) // reader.dtype.itemsize if sequence < len(reader) else self.num_tokens

    def document_at(self, position: int) -> int:
        """Document that holds the token at ``position``, found by bisection of the index."""
        # The arrays of the map are not aligned, so np.searchsorted would copy the whole of them.
        return bisect.bisect_right(range(self.num_documents), position, key=self.document_start) - 1

    def starts_between(self, start: int, stop: int) -> np.ndarray:
        """Positions in [start, stop) at which documents begin: int64, rising. Takes O(log documents + result)."""
        documents = range(self.num_documents)
        first, last = (bisect.bisect_left(documents, bound, key=self.document_start) for bound in (start, stop))
        return np.array([self.document_start(document) for document in range(first, last)], np.int64)

    @cached_property
    def documents(self) -> np.ndarray:
        """int64 [num_documents + 1]: where each document begins, and the end. Reads the whole index."""
        starts = np.append(self.reader.pointers // self.reader.dtype.itemsize, self.num_tokens)
        return starts[self.reader.document_bounds].astype(np.int64)


class _Pages(_Store):
    """What page and pair datasets share."""

    def __init__(self, prefix: str, split: str = TRAIN) -> None:
        super().__init__(prefix, split)
        self.pages = IndexedReader(content_prefix(prefix, split, "pages"))
        self._codecs = DatasetCodecs(prefix, self.manifest, split)

    def __len__(self) -> int:
        return len(self.pages)

    @property
    def patch_size(self) -> int:
        """Height and width of a patch in pixels."""
        return self._codecs.first().patch_size

    def page(self, index: int) -> Page:
        """Page ``index``; its start and end are 0. Raises UserError naming a damaged page."""
        try:
            return self._codecs.of_page(index).decode(self.pages[index].data)
        except DamagedPageError as error:
            self._refuse(index, error)

    def patches(self, index: int, num_channels: int, out: np.ndarray | None = None) -> np.ndarray:
        """Patches of page ``index``, uint8 [n, P, P, C], into the beginning of ``out`` if given.

        See :meth:`PageCodec.decode_patches`. Raises UserError naming a damaged page.
        """
        try:
            return self._codecs.of_page(index).decode_patches(self.pages[index].data, num_channels, out)
        except DamagedPageError as error:
            self._refuse(index, error)

    def num_patches(self, index: int) -> int:
        """Patches of page ``index``, end patch included, without decoding it."""
        try:
            return self._codecs.of_page(index).num_patches(self.pages[index].data)
        except DamagedPageError as error:
            self._refuse(index, error)

    def lengths(self, first: int, stop: int) -> np.ndarray:
        """Patches of the pages ``first`` to ``stop``, int32, in a fraction of the time of :meth:`num_patches` of each.

        Raises UserError naming a damaged page.
        """
        data = self.pages.elements
        parts = [np.empty(0, np.int32)]
        for codec, begin, end in self._codecs.stretches(first, stop):
            if isinstance(codec, UserError):
                raise codec
            starts, sizes = self.pages.pointers[begin:end], self.pages.sizes[begin:end]
            if (starts < 0).any() or (sizes < 0).any() or (starts + sizes > len(data)).any():
                raise UserError(f"{self.pages.path_prefix}.idx: pages {begin} to {end} lie outside the data: damaged")
            try:
                parts.append(codec.lengths(data, starts, sizes))
            except DamagedPageError:
                for page in range(begin, end):
                    self.num_patches(page)  # names the page
                raise
        return np.concatenate(parts)

    def _refuse(self, index: int, error: DamagedPageError) -> NoReturn:
        raise UserError(
            f"{self.pages.path_prefix}.bin: page {index} is damaged: {error}; copy the file again or make the dataset "
            f"again"
        ) from error


class PageStore(_Pages):
    """A pixel dataset: pages by index."""

    kind = "pixels"


class StringStore(_Store):
    """A strings dataset: the text of pages that are drawn when they are read, by index."""

    kind = "strings"

    def __init__(self, prefix: str, split: str = TRAIN) -> None:
        super().__init__(prefix, split)
        self.reader = IndexedReader(content_prefix(prefix, split, "strings"))

    def __len__(self) -> int:
        return len(self.reader)

    def piece(self, index: int) -> str:
        """The text of page ``index``. Raises UserError naming a damaged piece."""
        try:
            return to_text(self.reader[index].data)
        except UserError as error:
            raise UserError(
                f"{self.reader.path_prefix}.bin: piece {index} is damaged: {error}; copy the file again or make the "
                f"dataset again"
            ) from error

    def document_end(self, index: int) -> int:
        """Index after the last piece of the document that piece ``index`` belongs to. Takes O(log documents)."""
        bounds = self.reader.document_bounds
        return int(bounds[np.searchsorted(bounds, index, side="right")])


class PairStore(_Pages):
    """A pair dataset: a page and the tokens of the same text, by index."""

    kind = "pairs"

    def __init__(self, prefix: str, split: str = TRAIN) -> None:
        super().__init__(prefix, split)
        self.tokens = IndexedReader(content_prefix(prefix, split, "tokens"))

    def pair(self, index: int) -> tuple[Page, np.ndarray]:
        """Page and tokens (read-only view, uint16 or int32) of pair ``index``."""
        return self.page(index), self.tokens[index]
