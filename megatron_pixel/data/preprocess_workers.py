"""Processes of one machine that share a job. No document passes between them: each reads and writes by itself.

Each process has a pipe of its own, through which it tells how it ended, and by which it notices that its parent did.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.preprocess_convert import Job, Worker
from megatron_pixel.data.preprocess_work import Lock, WorkFolder

_SECONDS_BETWEEN_LOOKS = 0.3


def run_processes(job: Job, workers: int, watch: Callable[[], None]) -> None:
    """Do ``job`` with so many processes; ``watch`` is called a few times a second.

    Raises:
        UserError: what the first process that failed says, or that one died. The others are ended at once.
    """
    processes = _start(job, workers)
    try:
        running = {process.connection: process for process in processes}
        while running:
            for connection in wait(list(running), _SECONDS_BETWEEN_LOOKS):
                assert isinstance(connection, Connection)
                running.pop(connection).finish()
            watch()
    finally:
        for process in processes:
            process.kill()  # a part that it was at is whole or not there


def _start(job: Job, workers: int) -> "list[_Process]":
    """Start processes that never see SIGINT or SIGTERM: they inherit the mask, and this process ends them itself."""
    resource_tracker.ensure_running()  # starting that process would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        return [_Process(job) for _ in range(workers)]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Process:
    """One process and the pipe from it."""

    def __init__(self, job: Job) -> None:
        # Not forked: threads of numba and of the readers do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()  # so that the pipe breaks when the process dies

    def finish(self) -> None:
        """Take what it said at its end."""
        try:
            error = self.connection.recv()
        except (EOFError, OSError):
            raise UserError("a worker process died (killed, or out of memory?); try fewer --workers") from None
        self._process.join()
        if error is not None:
            raise error

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, job: Job) -> None:
    """The life of a process."""
    threading.Thread(target=_end_with_parent, args=(connection,), daemon=True).start()
    error: Exception | None = None
    try:
        Lock(WorkFolder(job.prefix), leading=False)  # held until the process ends
        Worker(job).run()
    except UserError as caught:
        error = caught
    except Exception:
        error = RuntimeError(f"in a worker process:\n{traceback.format_exc()}")
    with suppress(OSError):
        connection.send(error)


def _end_with_parent(connection: Connection) -> None:
    """The parent sends nothing; the pipe ends when it does."""
    with suppress(EOFError, OSError):
        connection.recv()
    os._exit(1)
