"""Prepares micro-batches in the background while the device computes."""

import queue
import threading
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from types import TracebackType
from typing import Any, Generic, TypeVar

from megatron_pixel.data.lending import MemoryPool
from megatron_pixel.data.loader_workers import Task, build_in_workers
from megatron_pixel.data.mixture import MixtureReader
from megatron_pixel.data.rows import MicroBatch

_POLL_SECONDS = 0.1

Ready = TypeVar("Ready")
"""What a micro-batch is made into before it is handed out: by default it stays one."""
_Item = tuple[int, Any] | BaseException | None
"""A step and its next micro-batch, the error that ended reading, or None after the last one."""


def _unchanged(batch: MicroBatch) -> Any:
    return batch


class PrefetchLoader(Generic[Ready]):
    """Iterates over ``(step, micro-batches of that step)``, read ahead by one thread or by processes.

    Use it as a context manager, or call :meth:`close`: either ends the thread, also while steps are left. An error of
    the reader is raised here, at the step whose row could not be read, after all earlier steps were handed out. The
    micro-batches and their order are the same for every number of processes.

    Args:
        reader: where the micro-batches come from.
        steps: the steps to read, in order.
        dp_rank: data-parallel rank of this process.
        dp_size: data-parallel ranks.
        depth: micro-batches held ready at the most, beyond those handed out.
        workers: processes that build the micro-batches; 0 builds them in the thread. Up to four more for each of
            them are in the making.
        prepare: called in the thread with each micro-batch; what it returns is handed out.
    """

    def __init__(
        self,
        reader: MixtureReader,
        steps: Iterable[int],
        dp_rank: int,
        dp_size: int,
        depth: int,
        workers: int = 0,
        prepare: Callable[[MicroBatch], Ready] = _unchanged,
    ) -> None:
        self._micro_batches = reader.num_micro_batches(dp_size)
        self._queue: queue.Queue[_Item] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._ended = False
        self._thread = threading.Thread(
            target=_read_ahead,
            args=(reader, iter(steps), dp_rank, dp_size, workers, prepare, self._queue, self._stop),
            name="prefetch",
            daemon=True,
        )
        # The thread holds no reference to the loader: one that is dropped without close() ends its thread too.
        weakref.finalize(self, self._stop.set)
        self._thread.start()

    def __iter__(self) -> Iterator[tuple[int, list[Ready]]]:
        return self

    def __next__(self) -> tuple[int, list[Ready]]:
        """The next step and its micro-batches, in the order of the mixture's schedule.

        Raises:
            UserError, RowError: as :meth:`MixtureReader.micro_batch` does.
        """
        batches: list[Ready] = []
        step = -1
        while len(batches) < self._micro_batches:
            item = None if self._ended else self._take()
            if item is None:
                self._ended = True
                raise StopIteration
            if isinstance(item, BaseException):
                self._ended = True
                raise item
            step, batch = item
            batches.append(batch)
        return step, batches

    def _take(self) -> _Item:
        while not self._stop.is_set():
            try:
                return self._queue.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                if not self._thread.is_alive() and self._queue.empty():
                    raise RuntimeError("the thread that reads ahead ended without a word") from None
        return None

    def close(self) -> None:
        """Ends the thread and waits for it; what was read ahead is dropped."""
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> "PrefetchLoader[Ready]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _read_ahead(
    reader: MixtureReader,
    steps: Iterator[int],
    dp_rank: int,
    dp_size: int,
    workers: int,
    prepare: Callable[[MicroBatch], Any],
    ready: "queue.Queue[_Item]",
    stop: threading.Event,
) -> None:
    tasks = ((step, index) for step in steps for index in range(reader.num_micro_batches(dp_size)))
    try:
        if workers:
            built = build_in_workers(reader, tasks, dp_rank, dp_size, workers, stop.is_set)
        else:
            built = _build_here(reader, tasks, dp_rank, dp_size)
        with closing(built):
            for step, batch in built:
                if not _put(ready, (step, prepare(batch)), stop):
                    return
        _put(ready, None, stop)
    except BaseException as error:
        _put(ready, error, stop)


def _build_here(
    reader: MixtureReader, tasks: Iterable[Task], dp_rank: int, dp_size: int
) -> Generator[tuple[int, MicroBatch]]:
    memory = MemoryPool(reader.batch_bytes)
    for step, index in tasks:
        yield step, reader.micro_batch(step, index, dp_rank, dp_size, memory.take())


def _put(ready: "queue.Queue[_Item]", item: _Item, stop: threading.Event) -> bool:
    """Waits for room; False if the consumer has gone."""
    while not stop.is_set():
        try:
            ready.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False
