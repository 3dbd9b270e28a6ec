"""From text files to a dataset: read, convert in parallel, write in the order of the input.

The bytes written depend on the documents and the settings, not on the number of processes.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import PairConfig
from megatron_pixel.data.codec import codec_class, train_codec
from megatron_pixel.data.documents import Document, DocumentReader
from megatron_pixel.data.manifest import Manifest, SplitEntry
from megatron_pixel.data.preprocess_chunks import LEAST_PAIR_PATCHES, LEAST_PAIR_TOKENS
from megatron_pixel.data.preprocess_documents import Chunk, Converted, Converter, Recipe
from megatron_pixel.data.preprocess_progress import Progress
from megatron_pixel.data.preprocess_workers import ordered_map
from megatron_pixel.data.preprocess_writer import DatasetWriter
from megatron_pixel.rendering.page import Page

_BATCH_CHARACTERS = 1 << 16
_BATCH_DOCUMENTS = 256
_FEW_BATCHES = 48
"""About three million characters, the work of a few seconds."""
_CODEC = "columns"


@dataclass(frozen=True)
class Report:
    """What a run did."""

    manifest: Manifest
    skipped: Counter[str]
    text_bytes: int
    """Bytes of all documents in UTF-8."""
    page_bytes: int
    """Bytes of all encoded pages."""
    seconds: float

    @property
    def total(self) -> SplitEntry:
        """Both splits together."""
        entries = self.manifest.splits.values()
        names = ("documents", "sequences", "tokens", "patches")
        return SplitEntry(**{name: sum(getattr(entry, name) for entry in entries) for name in names})


def preprocess(
    reader: DocumentReader,
    recipe: Recipe,
    prefix: str,
    workers: int = 1,
    overwrite: bool = False,
    command: str = "",
    quiet: bool = True,
) -> Report:
    """Convert the documents of ``reader`` as ``recipe`` says (its codec is made here) and write the dataset ``prefix``.

    Raises:
        UserError: for everything that a user can put right; then no file of this run is left.
    """
    if recipe.pair is not None:
        _check_caps(recipe.pair)
    # Built here first: missing fonts and broken tokenizers are told before any work.
    converter = recipe.make()
    vocab_size = converter.tokenizer.vocab_size if converter.tokenizer else 1
    with (
        DatasetWriter(prefix, recipe.kind, vocab_size, overwrite) as writer,
        Progress(reader, quiet) as progress,
    ):
        documents = iter(reader)
        sample: list[tuple[Document, Iterable[Chunk]]] = []
        if recipe.kind in ("pixels", "pairs"):
            sample, pages = _sample(converter, documents)
            converter.codec = train_codec(pages)
            recipe = replace(recipe, codec=converter.codec)
        known = ([converter.convert(document.text, chunks)] for document, chunks in sample)
        done = num_pages = 0
        with closing(_convert(converter, recipe, documents, workers)) as others:
            for batch in chain(known, others):
                for document in batch:
                    writer.add(document)
                    num_pages += len(document.patches)
                done += len(batch)
                progress.update(done, num_pages)
        if done == 0:
            raise UserError(f"no documents in {', '.join(reader.paths)}{_skips(reader.skipped)}; nothing was written")
        manifest = writer.finish(
            converter.codec,
            converter.codec.take_used() if converter.codec else np.empty(0, np.int64),
            converter.renderer,
            rendering=converter.renderer.fingerprint() if converter.renderer else None,
            tokenizer=converter.tokenizer.fingerprint() if converter.tokenizer else None,
            pair=asdict(recipe.pair) if recipe.pair else None,
            heldout_fraction=recipe.heldout_fraction,
            source={
                "files": reader.paths,
                "bytes": reader.bytes_done,
                "documents": reader.documents,
                "skipped": dict(sorted(reader.skipped.items())),
            },
            command=command,
        )
        return Report(manifest, reader.skipped, reader.text_bytes, writer.page_bytes, progress.seconds)


def _check_caps(pair: PairConfig) -> None:
    for name, value, least in (
        ("patches", pair.patches, LEAST_PAIR_PATCHES),
        ("tokens", pair.tokens, LEAST_PAIR_TOKENS),
    ):
        if value < least:
            raise UserError(f"--pair.{name} {value} is too small to hold a word; {least} is the least")


def _sample(
    converter: Converter, documents: Iterator[Document]
) -> tuple[list[tuple[Document, Iterable[Chunk]]], list[Page]]:
    """The first documents, each with its chunks, and as many of their pages as the codec likes to learn from."""
    wanted = codec_class(_CODEC).sample_pages
    sample: list[tuple[Document, Iterable[Chunk]]] = []
    pages: list[Page] = []
    for document in documents:
        chunks = converter.chunks(document.text)
        taken = list(islice(chunks, wanted - len(pages)))
        pages += [page for page, _ in taken]
        sample.append((document, chain(taken, chunks)))
        if len(pages) >= wanted:
            break
    return sample, pages


def _convert(
    converter: Converter, recipe: Recipe, documents: Iterator[Document], workers: int
) -> Generator[list[Converted]]:
    """Documents in batches, converted in this process if there are few: others would start longer than they help."""
    batches = _batches(documents)
    first = list(islice(batches, _FEW_BATCHES)) if workers > 1 else []
    if workers == 1 or len(first) < _FEW_BATCHES:
        yield from map(converter, chain(first, batches))
    else:
        with closing(ordered_map(recipe.make, chain(first, batches), workers)) as results:
            yield from results


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Portions of about equal length; where they begin and end does not show in the output."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _skips(skipped: Counter[str]) -> str:
    return "".join(f", {count:,} x {reason}" for reason, count in sorted(skipped.items()))
