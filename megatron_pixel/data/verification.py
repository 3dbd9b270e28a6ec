"""Looking for damage in a dataset: every hash, every index entry, every page."""

from collections.abc import Callable

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.dataset_codecs import DatasetCodecs
from megatron_pixel.data.files import hash_file
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.manifest import CONTENTS, Manifest, SplitEntry, content_prefix
from megatron_pixel.data.strings import to_text

_CHUNK = 1 << 20
_MOST_PROBLEMS = 20


def verify(prefix: str, full: bool = True, progress: Callable[[str], None] | None = None) -> list[str]:
    """Look for damage in the dataset at ``prefix`` and return what was found, a sentence each; nothing means sound.

    Always: what :meth:`Manifest.read` checks (raised as UserError) and every entry of the indexes. ``full`` also
    hashes every file, decodes every page and counts its patches, decodes every piece of text, and looks for token ids
    outside the vocabulary.
    ``progress`` is called with the name of each file before the work on it.
    """
    manifest = Manifest.read(prefix)
    problems: list[str] = []
    if full:
        for name, entry in manifest.all_files().items():
            if progress:
                progress(name)
            if hash_file(f"{prefix}.{name}") != entry.sha256:
                problems.append(f"{prefix}.{name}: the content differs from what was written (sha256)")
    for split, counts in manifest.splits.items():
        for content in CONTENTS[manifest.kind]:
            if progress:
                progress(f"{split}.{content}")
            reader = IndexedReader(content_prefix(prefix, split, content))
            index_problems = _verify_index(reader)
            problems += index_problems
            if full and content == "pages" and not index_problems:
                found = _verify_pages(DatasetCodecs(prefix, manifest, split), reader, counts)
                problems += [problem for problem in found if problem not in problems]  # one codec serves both splits
            if full and content == "tokens" and manifest.tokenizer:
                problems += _verify_tokens(reader, int(manifest.tokenizer["vocab_size"]))
            if full and content == "strings" and not index_problems:
                problems += _verify_strings(reader)
    return problems


def _verify_index(reader: IndexedReader) -> list[str]:
    path = reader.path_prefix + ".idx"
    expected = 0
    for start in range(0, len(reader), _CHUNK):
        sizes = reader.sizes[start : start + _CHUNK].astype(np.int64) * reader.dtype.itemsize
        ends = expected + np.cumsum(sizes)
        wrong = np.flatnonzero((reader.pointers[start : start + _CHUNK] != ends - sizes) | (sizes < 0))
        if len(wrong):
            return [f"{path}: sequence {start + int(wrong[0])} is not where the lengths before it put it"]
        expected = int(ends[-1])
    for start in range(0, len(reader.document_bounds), _CHUNK):
        bounds = reader.document_bounds[start : start + _CHUNK + 1]
        if (start == 0 and bounds[0] != 0) or (np.diff(bounds) < 0).any():
            return [f"{path}: the document bounds do not rise from 0"]
    return []


def _verify_pages(codecs: DatasetCodecs, reader: IndexedReader, counts: SplitEntry) -> list[str]:
    problems = []
    patches = 0
    damaged = 0
    for codec, first, stop in codecs.stretches():
        if isinstance(codec, UserError):
            problems.append(str(codec))
            continue
        for index in range(first, stop):
            try:
                patches += codec.decode(reader[index].data).num_patches
            except UserError as error:
                damaged += 1
                if damaged <= _MOST_PROBLEMS:
                    problems.append(f"{reader.path_prefix}.bin: page {index} is damaged: {error}")
    if damaged > _MOST_PROBLEMS:
        problems.append(f"{reader.path_prefix}.bin: {damaged - _MOST_PROBLEMS} more damaged pages")
    if not problems and patches != counts.patches:
        problems.append(f"{reader.path_prefix}.bin holds {patches:,} patches, its manifest says {counts.patches:,}")
    return problems


def _verify_strings(reader: IndexedReader) -> list[str]:
    problems = []
    for index in range(len(reader)):
        try:
            to_text(reader[index].data)
        except UserError as error:
            problems.append(f"{reader.path_prefix}.bin: piece {index} is damaged: {error}")
            if len(problems) == _MOST_PROBLEMS:
                break
    return problems


def _verify_tokens(reader: IndexedReader, vocab_size: int) -> list[str]:
    for start in range(0, reader.num_elements, _CHUNK):
        tokens = reader.elements[start : start + _CHUNK]
        wrong = np.flatnonzero((tokens < 0) | (tokens >= vocab_size))
        if len(wrong):
            position = start + int(wrong[0])
            token = int(reader.elements[position])
            return [f"{reader.path_prefix}.bin: token {position} is {token}, the vocabulary has {vocab_size:,} entries"]
    return []
