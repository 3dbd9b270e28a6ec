"""The manifest: what a dataset is, how it was made, and the proof that it is whole. Written last, read first."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec_base import PageCodec
from megatron_pixel.data.files import FileEntry, write_file
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.split import SPLITS

FORMAT_VERSION = 2
"""1: one codec for all pages; 2: a list of codecs, each with the pages that it covers."""
Kind = Literal["text", "pixels", "pairs", "strings"]
CONTENTS: dict[str, tuple[str, ...]] = {
    "text": ("tokens",),
    "pixels": ("pages",),
    "pairs": ("pages", "tokens"),
    "strings": ("strings",),
}
"""Which indexed datasets a split of each kind consists of: ``P.<split>.<content>.{bin,idx}``."""

_DIGEST = "digest"


def manifest_path(prefix: str) -> str:
    """Path of the manifest of the dataset at ``prefix``."""
    return prefix + ".manifest.json"


def manifest_digest(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's other keys, as JSON with sorted keys and no spaces: what stands in it as ``digest``."""
    rest = {key: value for key, value in content.items() if key != _DIGEST}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
    """How a stretch of the pages is stored."""

    name: str
    version: int
    files: dict[str, FileEntry] = field(default_factory=dict)
    """The file of the codec: name after ``P.`` -> size and hash."""
    sequences: dict[str, int] = field(default_factory=dict)
    """Pages of each split that are stored so; they follow those of the codec before it in the list."""

    @classmethod
    def of(cls, prefix: str, codec: PageCodec, entries: dict[str, FileEntry], sequences: dict[str, int]) -> Self:
        """Describe ``codec``, whose :meth:`PageCodec.save` returned ``entries``."""
        return cls(codec.name, codec.version, relative_entries(prefix, entries), sequences)


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
    codecs: list[CodecEntry] = field(default_factory=list)
    """Of the pages, in the order of the pages; several in a dataset that was joined from parts."""
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
        content = asdict(self)
        content[_DIGEST] = manifest_digest(content)
        text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        write_file(manifest_path(prefix), (text + "\n").encode())

    @classmethod
    def read(cls, prefix: str, check_files: bool = True) -> Self:
        """Read the manifest and hold it against the files: existence, byte sizes, counts of the indexes.

        Takes the same time whatever the size of the dataset. Raises UserError naming what disagrees. Without
        ``check_files`` the manifest alone is read.
        """
        manifest = cls._parse(prefix)
        if check_files:
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
            if version == 1:
                content["codecs"] = _as_list(content.pop("codec"), splits)
            codecs = [CodecEntry(**_with_files(codec)) for codec in content.pop("codecs")]
            content.pop(_DIGEST, None)  # what somebody edited by hand may be used; verification tells
            manifest = cls(**content, splits=splits, codecs=codecs)
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error}") from error
        if manifest.kind not in CONTENTS or set(splits) != set(SPLITS):
            raise UserError(f"{path} is damaged: kind {manifest.kind!r} with splits {sorted(splits)}")
        if any(len(codec.files) != 1 for codec in codecs):
            raise UserError(f"{path} is damaged: a codec has one file")
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

            covered = sum(codec.sequences.get(split, 0) for codec in self.codecs)
            if "pages" in CONTENTS[self.kind] and covered != counts.sequences:
                raise UserError(
                    f"{manifest_path(prefix)} is damaged: codecs for {covered:,} of {counts.sequences:,} pages of "
                    f"{split}"
                )

    def all_files(self) -> dict[str, FileEntry]:
        """Every file beside the manifest: name after ``P.`` -> size and hash."""
        result = {name: entry for split in self.splits.values() for name, entry in split.files.items()}
        for codec in self.codecs:
            result |= codec.files
        return result


def _as_list(codec: dict[str, Any] | None, splits: dict[str, SplitEntry]) -> list[dict[str, Any]]:
    """The codecs of a manifest of version 1, which has one for all pages or none."""
    if not codec:
        return []
    return [codec | {"sequences": {split: counts.sequences for split, counts in splits.items()}}]


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
