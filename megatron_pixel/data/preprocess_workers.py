"""A map over processes that keeps the order, holds a bounded number of items and notices when a process dies."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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
    # Not forked: threads of numba and of the readers do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(make,))
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(_submit(pool, item))
            while len(pending) >= workers * _AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died before its work was done (killed, or out of memory?); no dataset was written. "
            "Try fewer --workers"
        ) from None
    finally:
        _shut_down(pool)


def _submit(pool: ProcessPoolExecutor, item: T) -> "Future[Any]":
    """Submit with SIGINT blocked: processes started here inherit that, so Ctrl-C reaches this process alone."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return pool.submit(_work, item)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shut_down(pool: ProcessPoolExecutor) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


_worker: Callable[[Any], Any] | None = None


def _start_worker(make: Callable[[], Callable[[Any], Any]]) -> None:
    global _worker
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = make()


def _end_with_parent() -> None:
    """A parent that was killed cannot end its workers; each watches for that."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(item: Any) -> Any:
    assert _worker is not None
    return _worker(item)
