"""The last act of preprocessing: parts become one dataset.

The files grow in ``P.work/out`` and get their names at the end, the manifest last. A journal says how far that is, so
that it goes on after a kill, and so that parts can be removed once they are safely copied: the disk holds the dataset
about once, not twice.
"""

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec import PageCodec
from megatron_pixel.data.files import FileEntry, OutputFile, sync_folder
from megatron_pixel.data.indexed import bin_path, idx_path, join_indexes
from megatron_pixel.data.manifest import (
    CONTENTS,
    CodecEntry,
    Manifest,
    content_prefix,
    existing_files,
    manifest_path,
)
from megatron_pixel.data.preprocess_claims import Tally
from megatron_pixel.data.preprocess_convert import PART, read_record
from megatron_pixel.data.preprocess_work import WorkFolder
from megatron_pixel.data.preprocess_writer import PartRecord, content_dtypes
from megatron_pixel.data.split import SPLITS
from megatron_pixel.rendering.renderer import Renderer

COMMIT = "commit.json"
"""There as soon as the dataset is whole but for the names of its files."""
_JOURNAL = "assembly.json"
_OUT = "out"
_CHUNK = 1 << 22
_BYTES_BETWEEN_ENTRIES = 1 << 28
_PATIENCE = 60.0
"""Seconds that a network file system is given to show what another node wrote."""

Watch = Callable[[Tally], None]
"""Hears how much of the present file is copied."""


def add_up(work: WorkFolder, parts: int) -> tuple[PartRecord, np.ndarray]:
    """What all parts hold together, and the sorted union of what their pages need of the codec."""
    total = PartRecord()
    used = np.empty(0, np.int64)
    for number in range(parts):
        _await_record(work, number)
        record = read_record(work, number)
        total.add(record)
        used = np.union1d(used, np.array(record.used, np.int64))
    return total, used


def _await_record(work: WorkFolder, number: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    name = f"{PART}-{number:06d}.json"
    while not work.has(name):
        if time.monotonic() > deadline:
            raise UserError(f"{work.file(name)} is missing; the same command makes this part again")
        os.listdir(work.path)  # makes NFS look again
        time.sleep(0.2)


def assemble(
    work: WorkFolder,
    manifest: Manifest,
    parts: int,
    vocab_size: int,
    codec: tuple[PageCodec, np.ndarray, Renderer | None] | None,
    known: dict[str, Any],
    watch: Watch,
) -> None:
    """Join the parts, save the codec (with what is used of it, and a renderer), write the manifest, and commit.

    ``manifest`` comes with the counts of its splits; ``known`` is kept for a run that only has to commit.
    """
    out = _out_prefix(work)
    os.makedirs(os.path.dirname(out), exist_ok=True)
    journal: dict[str, Any] = work.read(_JOURNAL) or {}
    for split in SPLITS:
        for content in CONTENTS[manifest.kind]:
            entry = _join(work, journal, f"{split}.{content}", parts, watch)
            target = content_prefix(out, split, content)
            prefixes = [f"{work.part_prefix(number)}.{split}.{content}" for number in range(parts)]
            index = join_indexes(prefixes, target, content_dtypes(vocab_size)[content])
            manifest.add_files(out, split, {bin_path(target): entry, idx_path(target): index})
    if codec is not None:
        tables, used, renderer = codec
        sequences = {split: counts.sequences for split, counts in manifest.splits.items()}
        manifest.codecs = [CodecEntry.of(out, tables, tables.save(out, used, renderer), sequences)]
    manifest.write(out)
    work.write(COMMIT, {"files": sorted(manifest.all_files()), **known})
    commit(work)


def _out_prefix(work: WorkFolder) -> str:
    return os.path.join(work.path, _OUT, os.path.basename(work.prefix))


def _join(work: WorkFolder, journal: dict[str, Any], name: str, parts: int, watch: Watch) -> FileEntry:
    """Copy the ``.bin`` of all parts into one."""
    journal.setdefault(name, {"parts": 0, "bytes": 0, "entry": None})
    state = journal[name]
    if state["entry"]:
        return FileEntry(**state["entry"])
    path = f"{_out_prefix(work)}.{name}.bin"
    with suppress(FileNotFoundError):
        os.replace(path, path + ".part")  # whole already, but not entered
    output = OutputFile(path, keep=state["bytes"])
    try:
        for number in range(state["parts"], parts):
            expected = read_record(work, number).splits[name.partition(".")[0]].files[f"{name}.bin"]
            _copy(work, number, f"{work.part_prefix(number)}.{name}.bin", expected, output, watch)
            if output.bytes - journal[name]["bytes"] >= _BYTES_BETWEEN_ENTRIES:
                output.sync()
                _enter(work, journal, name, number + 1, output.bytes)
        entry = output.commit()
    except BaseException:
        output.leave()
        raise
    _enter(work, journal, name, parts, entry.bytes, entry)
    return entry


def _enter(
    work: WorkFolder, journal: dict[str, Any], name: str, parts: int, size: int, entry: FileEntry | None = None
) -> None:
    """Note that the first ``parts`` are copied (all of them: ``entry``), and remove what is not needed any more."""
    before = journal[name]["parts"]
    journal[name] = {"parts": parts, "bytes": size, "entry": asdict(entry) if entry else None}
    work.write(_JOURNAL, journal)
    for number in range(before, parts):
        with suppress(FileNotFoundError):
            os.unlink(f"{work.part_prefix(number)}.{name}.bin")


def _copy(work: WorkFolder, number: int, path: str, expected: FileEntry, output: OutputFile, watch: Watch) -> None:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file, ThreadPoolExecutor(1) as thread:
            while chunk := file.read(_CHUNK):
                check = thread.submit(digest.update, chunk)
                output.write(chunk)
                check.result()
                watch(Tally(output.bytes))
    except FileNotFoundError:
        _make_again(work, number, path, "is missing")
    if digest.hexdigest() != expected.sha256:
        _make_again(work, number, path, "is not what was written")


def _make_again(work: WorkFolder, number: int, path: str, problem: str) -> None:
    os.unlink(work.file(f"{PART}-{number:06d}.json"))
    raise UserError(f"{path} {problem}; the same command makes this part again")


def commit(work: WorkFolder) -> None:
    """Give the files of a dataset that is whole their names, the manifest last, and remove the work.

    May be called again after a kill. A dataset that was at the prefix is replaced.
    """
    out = _out_prefix(work)
    names = work.read(COMMIT)["files"]
    if os.path.exists(manifest_path(out)):
        with suppress(FileNotFoundError):
            os.unlink(manifest_path(work.prefix))
        keep = {f"{work.prefix}.{name}" for name in names}
        for path in existing_files(work.prefix):
            if os.path.join(os.path.dirname(work.prefix), os.path.basename(path)) not in keep:
                os.unlink(path)
        for name in names:
            with suppress(FileNotFoundError):  # it has its name already
                os.replace(f"{out}.{name}", f"{work.prefix}.{name}")
        sync_folder(os.path.dirname(work.prefix) or ".")
        os.replace(manifest_path(out), manifest_path(work.prefix))
        sync_folder(os.path.dirname(work.prefix) or ".")
    work.remove(last=[COMMIT])
