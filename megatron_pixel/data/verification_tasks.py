"""What a verification does piece by piece: hashing files, decoding ranges of pages, in one process or several."""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.dataset_codecs import DatasetCodecs
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.manifest import Manifest, content_prefix
from megatron_pixel.data.strings import to_text

MOST_PROBLEMS = 20
"""Damaged pages of a file that are listed."""
_HASH_CHUNK = 1 << 23
_SECONDS_BETWEEN_LOOKS = 0.2

Count = Callable[[int, int], None]
"""Called with bytes and pages that were checked since the last call."""


@dataclass(frozen=True)
class Finding:
    """Something wrong."""

    name: str
    """The file after ``P.``."""
    message: str
    """A sentence that names the file, and the page where one is known."""
    page: int | None = None
    """The page or piece that it is about."""


@dataclass(frozen=True)
class Task:
    """A piece of the work that one process does by itself."""

    kind: Literal["hash", "pages", "strings", "tokens"]
    name: str
    """The file after ``P.`` (of sequences: the .bin)."""
    split: str = ""
    content: str = ""
    first: int = 0
    stop: int = 0
    """Sequences [first, stop)."""


@dataclass
class Outcome:
    """What a task found."""

    task: Task
    findings: list[Finding]
    damaged: int = 0
    """Pages that cannot be decoded; not those whose codec cannot be opened."""
    decoded: int = 0
    patches: int = 0
    """Of the decoded pages."""


def task_bytes(manifest: Manifest, task: Task) -> int:
    """How much a task reads, about."""
    entry = manifest.all_files()[task.name]
    if task.kind == "hash":
        return entry.bytes
    return entry.bytes * (task.stop - task.first) // max(manifest.splits[task.split].sequences, 1)


class Worker:
    """Does tasks in one process; what it opened stays open."""

    def __init__(self, prefix: str, manifest: Manifest, count: Count) -> None:
        self._prefix = prefix
        self._manifest = manifest
        self._count = count
        self._readers: dict[str, IndexedReader] = {}
        self._codecs: dict[str, DatasetCodecs] = {}

    def do(self, task: Task) -> Outcome:
        """One task."""
        if task.kind == "hash":
            return self._hash(task)
        path = content_prefix(self._prefix, task.split, task.content)
        if task.name not in self._readers:
            self._readers[task.name] = IndexedReader(path)
        reader = self._readers[task.name]
        outcome = {"pages": self._pages, "strings": self._strings, "tokens": self._tokens}[task.kind](task, reader)
        counted = 0 if task.kind == "tokens" else task.stop - task.first
        self._count(task_bytes(self._manifest, task), counted)
        return outcome

    def _hash(self, task: Task) -> Outcome:
        path = f"{self._prefix}.{task.name}"
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while data := file.read(_HASH_CHUNK):
                digest.update(data)
                self._count(len(data), 0)
        if digest.hexdigest() == self._manifest.all_files()[task.name].sha256:
            return Outcome(task, [])
        message = f"{path}: the content differs from what was written (sha256)"
        return Outcome(task, [Finding(task.name, message)])

    def _pages(self, task: Task, reader: IndexedReader) -> Outcome:
        if task.split not in self._codecs:
            self._codecs[task.split] = DatasetCodecs(self._prefix, self._manifest, task.split)
        outcome = Outcome(task, [])
        for codec, first, stop in self._codecs[task.split].stretches(task.first, task.stop):
            if isinstance(codec, UserError):
                message = str(codec)
                files = (name for entry in self._manifest.codecs for name in entry.files)
                name = next((name for name in files if f"{self._prefix}.{name}" in message), task.name)
                outcome.findings.append(Finding(name, message))
                continue
            for index in range(first, stop):
                try:
                    outcome.patches += codec.decode(reader[index].data).num_patches
                    outcome.decoded += 1
                except UserError as error:
                    self._damaged(outcome, index, f"{reader.path_prefix}.bin: page {index} is damaged: {error}")
        return outcome

    def _strings(self, task: Task, reader: IndexedReader) -> Outcome:
        outcome = Outcome(task, [])
        for index in range(task.first, task.stop):
            try:
                to_text(reader[index].data)
            except UserError as error:
                self._damaged(outcome, index, f"{reader.path_prefix}.bin: piece {index} is damaged: {error}")
        return outcome

    def _tokens(self, task: Task, reader: IndexedReader) -> Outcome:
        assert self._manifest.tokenizer is not None
        vocabulary = int(self._manifest.tokenizer["vocab_size"])
        width = reader.dtype.itemsize
        start = int(reader.pointers[task.first]) // width
        stop = int(reader.pointers[task.stop - 1]) // width + int(reader.sizes[task.stop - 1])
        outcome = Outcome(task, [])
        tokens = reader.elements[start:stop]
        wrong = np.flatnonzero((tokens < 0) | (tokens >= vocabulary))
        if len(wrong):
            position = start + int(wrong[0])
            found = f"token {position} is {int(reader.elements[position])}, the vocabulary has {vocabulary:,} entries"
            outcome.findings.append(Finding(task.name, f"{reader.path_prefix}.bin: {found}"))
        return outcome

    @staticmethod
    def _damaged(outcome: Outcome, page: int, message: str) -> None:
        outcome.damaged += 1
        if outcome.damaged <= MOST_PROBLEMS:
            outcome.findings.append(Finding(outcome.task.name, message, page))


def run_here(prefix: str, manifest: Manifest, tasks: Iterable[Task], count: Count) -> Iterator[Outcome]:
    """Do the tasks in this process."""
    worker = Worker(prefix, manifest, count)
    for task in tasks:
        yield worker.do(task)


_worker: Worker | None = None


def _start_worker(prefix: str, manifest: Manifest, counters: Any) -> None:
    def count(read: int, pages: int) -> None:
        with counters.get_lock():
            counters[0] += read
            counters[1] += pages

    global _worker
    _worker = Worker(prefix, manifest, count)


def _do(task: Task) -> Outcome:
    assert _worker is not None
    return _worker.do(task)


def run_in_processes(
    prefix: str, manifest: Manifest, tasks: Sequence[Task], workers: int, count: Count
) -> Iterator[Outcome]:
    """Hand tasks to processes, a few ahead of them; outcomes come as they are done, ``count`` is called meanwhile.

    Raises UserError where a process dies.
    """
    context = multiprocessing.get_context("spawn")
    counters = context.Array("q", 2)
    workers = max(min(workers, len(tasks)), 1)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (prefix, manifest, counters))
    waiting = iter(tasks)
    running: set[Future[Outcome]] = set()
    seen = [0, 0]
    try:
        while True:
            while len(running) < 3 * workers and (task := next(waiting, None)) is not None:
                running.add(pool.submit(_do, task))
            if not running:
                return
            done, running = wait(running, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            now = counters[:]
            count(now[0] - seen[0], now[1] - seen[1])
            seen = now
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process that checked pages died, most likely for want of memory; run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
