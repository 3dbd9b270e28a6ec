"""Writes converted documents as a dataset: two splits, counts, and the manifest as the last act."""

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

import numpy as np

from megatron_pixel.data.codec_base import PageCodec
from megatron_pixel.data.indexed import IndexedWriter, token_dtype
from megatron_pixel.data.manifest import (
    CONTENTS,
    CodecEntry,
    Kind,
    Manifest,
    SplitEntry,
    content_prefix,
    refuse_existing,
    remove_dataset,
)
from megatron_pixel.data.preprocess_documents import Converted
from megatron_pixel.data.split import HELDOUT, SPLITS, TRAIN
from megatron_pixel.rendering.renderer import Renderer


class DatasetWriter:
    """As a context manager it leaves nothing behind unless :meth:`finish` was reached.

    Raises:
        UserError: the output exists (at construction, unless ``overwrite``), or cannot be written.
    """

    def __init__(self, prefix: str, kind: Kind, vocab_size: int, overwrite: bool) -> None:
        self._prefix = prefix
        self._kind = kind
        self._overwrite = overwrite
        if not overwrite:
            refuse_existing(prefix)
        self.counts = {split: SplitEntry() for split in SPLITS}
        self.page_bytes = 0
        dtypes: dict[str, type[np.generic]] = {
            "pages": np.uint8,
            "strings": np.uint8,
            "tokens": token_dtype(vocab_size),
        }
        with ExitStack() as stack:
            self._writers = {
                (split, content): stack.enter_context(
                    IndexedWriter(content_prefix(prefix, split, content), dtypes[content])
                )
                for split in SPLITS
                for content in CONTENTS[kind]
            }
            self._stack = stack.pop_all()

    def add(self, document: Converted) -> None:
        """Append a document to its split."""
        split = HELDOUT if document.heldout else TRAIN
        counts = self.counts[split]
        for page in document.pages:
            self._writers[split, "pages"].add(page)
            self.page_bytes += len(page)
        for piece in document.strings:
            self._writers[split, "strings"].add(piece)
        for tokens in document.tokens:
            self._writers[split, "tokens"].add(tokens)
            counts.tokens += len(tokens)
        counts.documents += 1
        counts.sequences += len(document.patches) or len(document.tokens)
        counts.patches += sum(document.patches)
        # Position i predicts i + 1 inside a page and inside a chunk of tokens. Rows of a text dataset are cut from the
        # stream at any length, so their targets cannot be counted here.
        counts.patch_targets += sum(patches - 1 for patches in document.patches)
        if self._kind == "pairs":
            counts.token_targets += sum(len(tokens) - 1 for tokens in document.tokens)
        for content in CONTENTS[self._kind]:
            self._writers[split, content].end_document()

    def finish(
        self, codec: PageCodec | None, used: np.ndarray, renderer: Renderer | None, **description: Any
    ) -> Manifest:
        """Give all files their names, the manifest's last.

        ``used`` and ``renderer`` as for :meth:`PageCodec.save`; ``description`` holds further fields of the manifest.
        """
        if self._overwrite:
            refuse_existing(self._prefix, overwrite=True)
        manifest = Manifest(kind=self._kind, splits=self.counts, **description)
        try:
            for (split, _), writer in self._writers.items():
                manifest.add_files(self._prefix, split, writer.finalize())
            if codec is not None:
                sequences = {split: counts.sequences for split, counts in self.counts.items()}
                files = codec.save(self._prefix, used, renderer)
                manifest.codecs = [CodecEntry.of(self._prefix, codec, files, sequences)]
            manifest.write(self._prefix)
        except BaseException:
            remove_dataset(self._prefix)  # nothing else was at this prefix
            raise
        return manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
