"""Processes that build micro-batches, and the memory that they share with the process that uses them.

A worker writes a micro-batch into memory that both processes map, and sends no more than the origins of its rows. The
memory has no name in any file system: it is gone when the last process that maps it is, however that ends. Each worker
has a pipe of its own, so the death of one can neither leave a lock behind nor be overlooked.
"""

import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.lending import lend
from megatron_pixel.data.mixture import MixtureReader, RowError
from megatron_pixel.data.rows import Kind, MicroBatch, Origin

Task = tuple[int, int]
"""Step, and micro-batch of the step."""

_AHEAD = 2
"""Micro-batches in hand of each worker: it begins the next one while this process takes note of the one before."""
_FIRST_SLOTS = 8
_WINDOW = 4
"""Micro-batches for each worker that may be in hand or wait for an earlier one: some take longer than others."""
_POLL_SECONDS = 0.1
_PARENT_SECONDS = 2.0
"""How often an idle worker looks whether its parent lives, beside the pipe that ends with it."""
_END_SECONDS = 2.0

_Built = tuple[Kind, list[Origin]]
"""What a worker answers; the arrays lie in shared memory."""


def build_in_workers(
    reader: MixtureReader, tasks: Iterable[Task], dp_rank: int, dp_size: int, workers: int, stopped: Callable[[], bool]
) -> Generator[tuple[int, MicroBatch]]:
    """The step and the micro-batch of each task, in the order of the tasks, built by ``workers`` processes.

    The arrays of a batch lie in shared memory, which is used again for a later batch when nothing refers to them any
    more. Ends early when ``stopped`` says so. The processes end with the generator, or with this process.

    Raises:
        UserError, RowError: as :meth:`MixtureReader.micro_batch` does, or because a worker died; each in place of the
            micro-batch that could not be built, after those before it.
    """
    with ExitStack() as stack:
        pool = [stack.enter_context(_Worker(reader)) for _ in range(workers)]
        # Fills the caches of compiled code while the processes start: they would each compile the same otherwise.
        reader.warm_up()
        for worker in pool:
            worker.open(dp_rank, dp_size)
        upcoming = enumerate(tasks)
        steps: deque[tuple[int, int]] = deque()
        done: dict[int, MicroBatch | UserError | RowError] = {}
        exhausted = False
        while not stopped():
            while not exhausted and len(steps) < _WINDOW * workers and (chosen := _least_busy(pool)) is not None:
                number, task = next(upcoming, (-1, (0, 0)))
                exhausted = number < 0
                if not exhausted:
                    chosen.give(number, task)
                    steps.append((number, task[0]))
            while steps and steps[0][0] in done:
                number, step = steps.popleft()
                built = done.pop(number)
                if isinstance(built, Exception):
                    raise built
                yield step, built
            if not steps:
                if exhausted:
                    return
                continue
            by_connection = {worker.connection: worker for worker in pool if worker.in_hand}
            for ready in wait(list(by_connection), _POLL_SECONDS):
                done |= by_connection[ready].take()  # type: ignore[index]


def _least_busy(pool: "list[_Worker]") -> "_Worker | None":
    """The live worker with the fewest tasks in hand, if it has room for one; once one has died, none."""
    if any(worker.dead for worker in pool):
        return None
    worker = min(pool, key=lambda worker: len(worker.in_hand))
    return worker if len(worker.in_hand) < _AHEAD else None


class _Slot(NamedTuple):
    """Shared memory for one micro-batch: a part of one of the files that a worker maps."""

    file: int
    """Number of the file."""
    start: int
    """First byte in it."""
    memory: np.ndarray
    """uint8, these bytes."""


class _Worker:
    """A process that builds micro-batches, seen from the process that uses them. A context manager."""

    def __init__(self, reader: MixtureReader) -> None:
        self._reader = reader
        self._free: deque[_Slot] = deque()
        self._slots = self._files = 0
        self._size = reader.batch_bytes
        self.in_hand: dict[int, _Slot] = {}
        """Slot of each task that it has been given and not answered."""
        self.dead = False
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = _start(theirs.fileno())
        self._socket = ours
        self.connection = Connection(ours.fileno())

    def open(self, dp_rank: int, dp_size: int) -> None:
        """Tell the worker what to read."""
        with suppress(OSError):  # a worker that has died already is noticed where its answer is missed
            self.connection.send((self._reader, dp_rank, dp_size))

    def give(self, number: int, task: Task) -> None:
        """Hand a task over."""
        file = None if self._free else self._add_slots()
        slot = self._free.pop()  # the last one freed is the likeliest to be in a cache
        self.in_hand[number] = slot
        with suppress(OSError):
            self.connection.send((number, task, slot.file, slot.start))
            if file is not None:
                socket.send_fds(self._socket, [b"f"], [file])
        if file is not None:
            os.close(file)

    def _add_slots(self) -> int:
        """Twice the shared memory. Returns the descriptor of the new file, which the worker needs.

        A step may hold a thousand micro-batches, and a map keeps a descriptor open: so many share one file. What is not
        used of it takes no memory.
        """
        count = max(_FIRST_SLOTS, self._slots)
        file = _anonymous_file(count * self._size)
        memory = np.frombuffer(mmap.mmap(file, count * self._size), np.uint8)
        for start in range(0, count * self._size, self._size):
            self._free.append(_Slot(self._files, start, memory[start : start + self._size]))
        self._slots += count
        self._files += 1
        return file

    def take(self) -> "dict[int, MicroBatch | UserError | RowError]":
        """The answer that is ready; where the process has died, an error for all of its tasks."""
        number: int
        built: _Built | UserError | RowError
        try:
            number, built = self.connection.recv()
        except (EOFError, OSError):
            self.dead = True
            error = UserError(
                f"a worker process that builds micro-batches died ({self._how()}); nothing is wrong with the data as "
                f"far as is known: start again, with fewer --data.workers if memory ran out"
            )
            lost: dict[int, MicroBatch | UserError | RowError] = dict.fromkeys(self.in_hand, error)
            self.in_hand.clear()
            return lost
        slot = self.in_hand.pop(number)
        if isinstance(built, Exception):
            self._free.append(slot)
            return {number: built}
        kind, rows = built
        memory = lend(slot.memory, lambda: self._free.append(slot))
        return {number: self._reader.micro_batch_of(kind, rows, memory)}

    def _how(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END_SECONDS)
            return signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return "its pipe broke"

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *error: object) -> None:
        # It holds nothing that needs care: no files are written, and the shared memory is ours too.
        self._process.kill()
        self._process.wait()
        self._socket.detach()  # the connection owns the descriptor
        self.connection.close()


def _anonymous_file(size: int) -> int:
    """Descriptor of a file in memory that has no name; where the system has none, of a deleted temporary one."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("micro-batch")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file


def _start(descriptor: int) -> subprocess.Popen:
    """A new interpreter that runs :func:`serve` on a socket. Neither SIGINT nor SIGTERM reaches it: it inherits the
    mask, and ends with this process. It imports this package only, not the program that trains."""
    code = f"from {__name__} import serve; serve({descriptor})"
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[descriptor],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": path},
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def serve(descriptor: int) -> None:
    """The life of a worker: it ends when the socket does, which is also when the parent dies."""
    parent = os.getppid()
    connection = Connection(descriptor)
    carrier = socket.socket(fileno=os.dup(descriptor))
    with suppress(EOFError, OSError):
        build = opened(connection.recv_bytes())
        buffers: dict[int, np.ndarray] = {}
        while _wait_for_task(connection, parent):
            number, task, file, start = connection.recv()
            if file not in buffers:
                _, [descriptor], _, _ = socket.recv_fds(carrier, 1, 1)
                buffers[file] = np.frombuffer(mmap.mmap(descriptor, 0), np.uint8)
                os.close(descriptor)
            connection.send((number, build(task, buffers[file][start:])))


def _wait_for_task(connection: Connection, parent: int) -> bool:
    """True when there is a task; False when the parent has gone, even if another process holds its pipe open."""
    while not connection.poll(_PARENT_SECONDS):
        if os.getppid() != parent:
            return False
    return True


def opened(pickled: bytes) -> "Callable[[Task, np.ndarray], _Built | UserError | RowError]":
    """What builds micro-batches: it writes one into a buffer, and answers with its rows or with what went wrong."""
    try:
        reader, dp_rank, dp_size = pickle.loads(pickled)
    except Exception as error:
        problem = _as_sent(error, "the data could not be opened")
        return lambda task, buffer: problem

    def build(task: Task, buffer: np.ndarray) -> _Built | UserError | RowError:
        try:
            batch = reader.micro_batch(*task, dp_rank, dp_size, buffer)
        except Exception as error:
            return _as_sent(error, str(error))
        return batch.kind, batch.rows

    return build


def _as_sent(error: Exception, message: str) -> UserError | RowError:
    """An error that can be pickled, with the place where it was raised unless the user can mend it."""
    if isinstance(error, UserError):
        return UserError(str(error))
    return RowError(f"{message}\nin a worker process:\n{traceback.format_exc()}")
