"""Joining datasets of one kind and with the same settings: bytes are copied, no page is decoded or written again."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.dataset_codecs import first_difference
from megatron_pixel.data.files import FileEntry, OutputFile, write_file
from megatron_pixel.data.indexed import bin_path, idx_path, join_indexes, read_index
from megatron_pixel.data.manifest import (
    CONTENTS,
    CodecEntry,
    Manifest,
    SplitEntry,
    content_prefix,
    manifest_path,
    refuse_existing,
    remove_dataset,
)
from megatron_pixel.data.split import SPLITS

_CHUNK = 1 << 23
_COUNTS = ("documents", "sequences", "tokens", "patches", "token_targets", "patch_targets")


class Merge:
    """A dataset in the making: the datasets of ``prefixes`` one after the other.

    Raises:
        UserError: a part is not whole, or of another kind or other settings than the first; the output exists already.
    """

    def __init__(self, prefixes: Sequence[str], output: str, overwrite: bool = False, command: str = "") -> None:
        self._prefixes = prefixes
        self._output = output
        self._overwrite = overwrite
        self._command = command
        _check_names(prefixes, output)
        if not overwrite:
            refuse_existing(output)
        self._parts = [Manifest.read(prefix) for prefix in prefixes]
        for prefix, part in zip(prefixes[1:], self._parts[1:], strict=True):
            _check_alike(prefixes[0], self._parts[0], prefix, part)

    @property
    def total_bytes(self) -> int:
        """Bytes to copy."""
        return sum(file.bytes for part in self._parts for name, file in part.all_files().items() if _is_data(name))

    def run(self, watch: Callable[[int], object] = lambda _: None) -> Manifest:
        """Copy and write; ``watch`` hears of every few bytes copied. Leaves nothing behind where it fails.

        Raises:
            UserError: the files of a part are damaged; the output cannot be written.
        """
        first = self._parts[0]
        result = Manifest(
            kind=first.kind,
            splits={split: self._counts(split) for split in SPLITS},
            rendering=first.rendering,
            tokenizer=first.tokenizer,
            pair=first.pair,
            heldout_fraction=first.heldout_fraction,
            source=_joined_sources([part.source for part in self._parts]),
            command=self._command,
        )
        with ExitStack() as stack:
            outputs = {
                (split, content): self._copy_all(split, content, stack, watch)
                for split in SPLITS
                for content in CONTENTS[first.kind]
            }
            refuse_existing(self._output, self._overwrite)
            try:
                for (split, content), output in outputs.items():
                    target = content_prefix(self._output, split, content)
                    prefixes = [content_prefix(prefix, split, content) for prefix in self._prefixes]
                    index = join_indexes(prefixes, target, read_index(prefixes[0]).dtype.type)
                    result.add_files(self._output, split, {bin_path(target): output.commit(), idx_path(target): index})
                result.codecs = self._copy_codecs()
                result.write(self._output)
            except BaseException:
                remove_dataset(self._output)  # nothing else was at this prefix
                raise
            stack.pop_all()
        return result

    def _counts(self, split: str) -> SplitEntry:
        entries = [part.splits[split] for part in self._parts]
        return SplitEntry(**{name: sum(getattr(entry, name) for entry in entries) for name in _COUNTS})

    def _copy_all(self, split: str, content: str, stack: ExitStack, watch: Callable[[int], object]) -> OutputFile:
        """The ``.bin`` of all parts in a file that has no name yet."""
        output = OutputFile(bin_path(content_prefix(self._output, split, content)))
        stack.callback(output.abort)
        for prefix, part in zip(self._prefixes, self._parts, strict=True):
            path = bin_path(content_prefix(prefix, split, content))
            _copy(path, part.splits[split].files[f"{split}.{content}.bin"], output, watch)
        return output

    def _copy_codecs(self) -> list[CodecEntry]:
        """The codecs of the parts one after the other; a file that several parts have is kept once."""
        entries: list[CodecEntry] = []
        names: dict[str, str] = {}
        for prefix, part in zip(self._prefixes, self._parts, strict=True):
            for codec in part.codecs:
                ((name, file),) = codec.files.items()
                if file.sha256 not in names:
                    number = f"{len(names) + 1}." if names else ""
                    names[file.sha256] = f"codec.{number}{codec.name}"
                    data = _read(f"{prefix}.{name}", file)
                    write_file(f"{self._output}.{names[file.sha256]}", data)
                files = {names[file.sha256]: file}
                if entries and entries[-1].files == files:
                    together = Counter(entries[-1].sequences) + Counter(codec.sequences)
                    entries[-1].sequences = {split: together[split] for split in SPLITS}
                else:
                    entries.append(CodecEntry(codec.name, codec.version, files, dict(codec.sequences)))
        return entries


def _is_data(name: str) -> bool:
    return name.endswith(".bin")


def _check_names(prefixes: Sequence[str], output: str) -> None:
    seen: dict[str, str] = {}
    for prefix in prefixes:
        path = os.path.realpath(manifest_path(prefix))
        if path in seen:
            raise UserError(f"{prefix} is named twice: every page of it would come twice; name it once")
        seen[path] = prefix
    if os.path.realpath(manifest_path(output)) in seen:
        raise UserError(f"{output} is a part and the output; choose another output prefix")


def _check_alike(first_prefix: str, first: Manifest, prefix: str, part: Manifest) -> None:
    """Refuse a part whose rows are not of the same make as those of the first."""
    for what in ("kind", "heldout_fraction", "pair", "tokenizer", "rendering"):
        here, there = getattr(first, what), getattr(part, what)
        # The same model under another name is the same tokenizer.
        if what == "tokenizer" and here and there and here["sha256"] == there["sha256"]:
            continue
        if here == there:
            continue
        name, here, there = first_difference(what, here, there)
        raise UserError(
            f"{prefix} cannot be joined to {first_prefix}: its {name} is {there}, the other's is {here}; make it again "
            f"with the same settings, or list both datasets under data.*"
        )


def _joined_sources(sources: list[dict[str, Any]]) -> dict[str, Any]:
    """What the parts were made from: lists one after the other, numbers added up."""
    result: dict[str, Any] = {}
    for key in sorted({key for source in sources for key in source}):
        values = [source[key] for source in sources if key in source]
        if all(isinstance(value, list) for value in values):
            result[key] = [item for value in values for item in value]
        elif all(isinstance(value, dict) for value in values):
            result[key] = _joined_sources(values)
        elif all(isinstance(value, int | float) for value in values):
            result[key] = sum(values)
        else:
            result[key] = values
    return result


def _chunks(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _copy(path: str, expected: FileEntry, output: OutputFile, watch: Callable[[int], object]) -> None:
    """Append a file to ``output``, making sure that it is what its manifest says: damage must not spread.

    Every byte passes through here anyway, because the manifest of the result needs the hash of the whole.
    """
    digest = hashlib.sha256()
    with ThreadPoolExecutor(1) as thread:
        for chunk in _chunks(path):
            check = thread.submit(digest.update, chunk)
            output.write(chunk)
            check.result()
            watch(len(chunk))
    if digest.hexdigest() != expected.sha256:
        raise UserError(_damaged(path))


def _read(path: str, expected: FileEntry) -> bytes:
    data = b"".join(_chunks(path))
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise UserError(_damaged(path))
    return data


def _damaged(path: str) -> str:
    return (
        f"{path} is damaged: its content differs from what was written (sha256); data_tools/verify.py says where. "
        f"Nothing was written"
    )
