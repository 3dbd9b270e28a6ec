"""A map over processes that keeps the order, holds a bounded number of items, notices a dead process and always ends.

Each process has a pipe of its own and a thread here that waits for it. The pools of the standard library share queues
between processes, and a process that dies at the wrong moment leaves those locked.
"""

import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from megatron_pixel.config.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_AHEAD = 4
"""Items in flight for each process: enough that none waits for a slow neighbour, few enough to keep memory flat."""


def ordered_map(make: Callable[[], Callable[[T], R]], items: Iterable[T], workers: int) -> Generator[R]:
    """Results of ``make()(item)`` in the order of ``items``.

    ``make`` runs once in each process (it builds fonts, tables, a tokenizer). Closing the generator, or an exception
    out of ``items``, ends the processes at once.

    Raises:
        UserError: a process died, for instance for want of memory. Exceptions of the work itself pass through.
    """
    processes = _start(make, workers)
    idle: SimpleQueue[_Process] = SimpleQueue()
    for process in processes:
        idle.put(process)

    def work(item: T) -> R:
        process = idle.get()
        try:
            return process.call(item)
        finally:
            idle.put(process)

    threads = ThreadPoolExecutor(workers)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(threads.submit(work, item))
            while len(pending) >= workers * _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()  # they hold no files; a thread that waits for one returns now
        threads.shutdown(wait=True)


def _start(make: Callable[[], Callable[[Any], Any]], workers: int) -> "list[_Process]":
    """Start processes that never see SIGINT or SIGTERM: they inherit the mask, and this process ends them itself."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        return [_Process(make) for _ in range(workers)]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process:
    """One process and the pipe to it."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        # Not forked: threads of numba and of the readers do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe breaks when the process dies

    def call(self, item: Any) -> Any:
        try:
            self._connection.send(item)
            error, result = self._connection.recv()
        except (EOFError, OSError):
            raise UserError(
                "a worker process died before its work was done (killed, or out of memory?); no dataset was written. "
                "Try fewer --workers"
            ) from None
        if error is not None:
            raise error
        return result

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, make: Callable[[], Callable[[Any], Any]]) -> None:
    """The life of a process: it ends when the pipe does, which is also when the parent dies."""
    worker: Callable[[Any], Any] | None = None
    with suppress(EOFError, OSError):
        while True:
            item = connection.recv()
            error: Exception | None = None
            result = None
            try:
                worker = worker or make()
                result = worker(item)
            except UserError as caught:
                error = UserError(*caught.args)
            except Exception:
                error = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
            connection.send((error, result))
