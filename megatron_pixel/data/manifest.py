"""The manifest: what a dataset is, how it was made, and the proof that it is whole. Written last, read first."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec import PageCodec, load_codec
from megatron_pixel.data.files import FileEntry, hash_file, write_file
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.split import SPLITS
from megatron_pixel.data.strings import to_text

FORMAT_VERSION = 1
Kind = Literal["text", "pixels", "pairs", "strings"]
CONTENTS: dict[str, tuple[str, ...]] = {
    "text": ("tokens",),
    "pixels": ("pages",),
    "pairs": ("pages", "tokens"),
    "strings": ("strings",),
}
"""Which indexed datasets a split of each kind consists of: ``P.<split>.<content>.{bin,idx}``."""
_CHUNK = 1 << 20
_MOST_PROBLEMS = 20


def manifest_path(prefix: str) -> str:
    """Path of the manifest of the dataset at ``prefix``."""
    return prefix + ".manifest.json"


def content_prefix(prefix: str, split: str, content: str) -> str:
    """Path prefix of one indexed dataset, such as ``P.train.pages``."""
    return f"{prefix}.{split}.{content}"


@dataclass
class SplitEntry:
    """One split: its counts and files."""

    documents: int = 0
    sequences: int = 0
    """Pages, pieces of text for a page each, or sequences of tokens."""
    tokens: int = 0
    patches: int = 0
    """Black end patches included."""
    token_targets: int = 0
    """Tokens that are predicted from the one before."""
    patch_targets: int = 0
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Name after ``P.`` (``train.tokens.bin``) -> size and hash, so that a dataset may be moved and renamed."""


@dataclass
class CodecEntry:
    """How the pages are stored."""

    name: str
    version: int
    files: dict[str, FileEntry] = field(default_factory=dict)
    """Tables of the codec: name after ``P.`` -> size and hash."""

    @classmethod
    def of(cls, prefix: str, codec: PageCodec, entries: dict[str, FileEntry]) -> Self:
        """Describe ``codec``, whose :meth:`PageCodec.save` returned ``entries``."""
        return cls(codec.name, codec.version, relative_entries(prefix, entries))


@dataclass
class Manifest:
    """Everything known of a dataset. Two runs over the same input write the same bytes: no dates, no machine."""

    kind: Kind
    splits: dict[str, SplitEntry] = field(default_factory=dict)
    """``train`` and ``heldout``; both are always there, either may be empty."""
    rendering: dict[str, Any] | None = None
    """Fingerprint of the renderer: settings, fonts with hashes, versions."""
    tokenizer: dict[str, Any] | None = None
    """sha256, vocab_size, bos_id, eos_id and file name of the tokenizer."""
    codec: CodecEntry | None = None
    pair: dict[str, Any] | None = None
    """Caps of a pair: patches and tokens."""
    heldout_fraction: float = 0.0
    source: dict[str, Any] = field(default_factory=dict)
    """files, bytes, documents read, skipped (reason -> count)."""
    command: str = ""
    created_by: str = f"megatron_pixel {megatron_pixel.__version__}"
    format_version: int = FORMAT_VERSION

    def add_files(self, prefix: str, split: str, entries: dict[str, FileEntry]) -> None:
        """Enter what :meth:`IndexedWriter.finalize` returned for one indexed dataset of ``split``."""
        self.splits[split].files.update(relative_entries(prefix, entries))

    def write(self, prefix: str) -> None:
        """Write ``P.manifest.json``: the last act of making a dataset, which is not there before it."""
        text = json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        write_file(manifest_path(prefix), (text + "\n").encode())

    @classmethod
    def read(cls, prefix: str) -> Self:
        """Read the manifest and hold it against the files: existence, byte sizes, counts of the indexes.

        Takes the same time whatever the size of the dataset. Raises UserError naming what disagrees.
        """
        manifest = cls._parse(prefix)
        manifest._check_files(prefix)
        return manifest

    @classmethod
    def _parse(cls, prefix: str) -> Self:
        path = manifest_path(prefix)
        try:
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
        except FileNotFoundError:
            raise UserError(
                f"no dataset at {prefix}: {path} does not exist; give the output prefix of a finished preprocess run"
            ) from None
        except OSError as error:
            raise UserError(f"cannot open {path}: {error.strerror}") from error
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}") from error
        version = content.get("format_version") if isinstance(content, dict) else None
        if not isinstance(version, int):
            raise UserError(f"{path} is no manifest of a dataset: it has no format_version")
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path}: dataset format {version} was written by a newer program ({content.get('created_by')}); this "
                f"one reads formats up to {FORMAT_VERSION}, so update it or make the dataset again"
            )
        try:
            splits = {name: SplitEntry(**_with_files(entry)) for name, entry in content.pop("splits").items()}
            codec = content.pop("codec")
            codec = CodecEntry(**_with_files(codec)) if codec else None
            manifest = cls(**content, splits=splits, codec=codec)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if manifest.kind not in CONTENTS or set(splits) != set(SPLITS):
            raise UserError(f"{path} is damaged: kind {manifest.kind!r} with splits {sorted(splits)}")
        return manifest

    def _check_files(self, prefix: str) -> None:
        for name, entry in self.all_files().items():
            path = f"{prefix}.{name}"
            try:
                size = os.stat(path).st_size
            except OSError as error:
                raise UserError(
                    f"{path} belongs to the dataset but cannot be opened: {error.strerror}; copy it too, or make the "
                    f"dataset again"
                ) from error
            if size != entry.bytes:
                raise UserError(
                    f"{path} has {size:,} bytes, its manifest says {entry.bytes:,}; copy it or make the dataset again"
                )
        for split, counts in self.splits.items():
            for content in CONTENTS[self.kind]:
                reader = IndexedReader(content_prefix(prefix, split, content))
                found = {"sequences": len(reader), "documents": reader.num_documents}
                if content == "tokens":
                    found["tokens"] = reader.num_elements
                for name, number in found.items():
                    if number != getattr(counts, name):
                        raise UserError(
                            f"{reader.path_prefix}.idx holds {number:,} {name}, its manifest says "
                            f"{getattr(counts, name):,}: they come from different runs; make the dataset again"
                        )

    def all_files(self) -> dict[str, FileEntry]:
        """Every file beside the manifest: name after ``P.`` -> size and hash."""
        result = {name: entry for split in self.splits.values() for name, entry in split.files.items()}
        return result | (self.codec.files if self.codec else {})


def _with_files(section: dict[str, Any]) -> dict[str, Any]:
    return {**section, "files": {name: FileEntry(**entry) for name, entry in section["files"].items()}}


def relative_entries(prefix: str, entries: dict[str, FileEntry]) -> dict[str, FileEntry]:
    """Turn path -> entry into name after ``P.`` -> entry."""
    return {path.removeprefix(prefix + "."): entry for path, entry in entries.items()}


def existing_files(prefix: str) -> list[str]:
    """Files that a dataset at ``prefix`` has or would have, the manifest first."""
    folder, name = os.path.split(prefix)
    folder = folder or "."
    endings = tuple(f"{c}.{e}" for contents in CONTENTS.values() for c in contents for e in ("bin", "idx"))
    known = {f"{name}.{split}.{ending}" for split in SPLITS for ending in endings}
    found = []
    for entry in sorted(os.listdir(folder)) if os.path.isdir(folder) else []:
        if entry in known or entry.startswith(f"{name}.codec."):
            found.append(os.path.join(folder, entry))
    if os.path.lexists(manifest_path(prefix)):
        found.insert(0, manifest_path(prefix))
    return found


def remove_dataset(prefix: str) -> None:
    """Remove a dataset, or what an unfinished run left of it; the manifest goes first, so no part of it can open."""
    for path in existing_files(prefix):
        os.unlink(path)


def refuse_existing(prefix: str, overwrite: bool = False) -> None:
    """Raise UserError where ``prefix`` is taken, or clear it if ``overwrite`` was asked for."""
    if not os.path.basename(prefix):
        raise UserError(f"the output prefix {prefix!r} names a folder; add the beginning of a file name to it")
    existing = existing_files(prefix)
    if not existing:
        return
    if overwrite:
        remove_dataset(prefix)
        return
    what = "a dataset" if existing[0] == manifest_path(prefix) else "part of an unfinished dataset"
    raise UserError(f"{existing[0]} exists: {what} is at this prefix; choose another one, or ask to overwrite it")


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
                problems += _verify_pages(prefix, manifest, reader, counts)
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


def _verify_pages(prefix: str, manifest: Manifest, reader: IndexedReader, counts: SplitEntry) -> list[str]:
    assert manifest.codec is not None
    try:
        codec = load_codec(prefix, manifest.codec.name, manifest.codec.version)
    except UserError as error:
        return [str(error)]
    problems = []
    patches = 0
    damaged = 0
    for index in range(len(reader)):
        try:
            patches += codec.decode(reader[index].data).num_patches
        except UserError as error:
            damaged += 1
            if damaged <= _MOST_PROBLEMS:
                problems.append(f"{reader.path_prefix}.bin: page {index} is damaged: {error}")
    if damaged > _MOST_PROBLEMS:
        problems.append(f"{reader.path_prefix}.bin: {damaged - _MOST_PROBLEMS} more damaged pages")
    if not damaged and patches != counts.patches:
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
