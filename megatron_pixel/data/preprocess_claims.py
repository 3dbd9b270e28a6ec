"""How the processes of a run share its tasks, over any number of nodes: through a folder that all of them see.

A task is taken by making a file that must not exist yet, which one process alone can do. The folder is of one run, so
what a run that was killed had taken is free again in the next.
"""

import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megatron_pixel.data.files import cannot_write

PREFIX = "run-"
_STOP = "stop"
_COUNT = struct.Struct("<4q")
_SECONDS_BETWEEN_NOTES = 0.3


class Tally(NamedTuple):
    """Work done."""

    input_bytes: int = 0
    documents: int = 0
    pages: int = 0
    text_bytes: int = 0

    def plus(self, other: "Tally") -> "Tally":
        """The sum of both."""
        return Tally(*(a + b for a, b in zip(self, other, strict=True)))


class Claims:
    """The tasks of one run, seen by one of its processes."""

    def __init__(self, folder: str) -> None:
        """``folder`` is made unless it is there."""
        self.folder = folder
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            cannot_write(folder, 0, error)
        self._count_path = os.path.join(folder, f"count-{socket.gethostname()}-{os.getpid()}")
        self._noted = 0.0

    def take(self, kind: str, tasks: Sequence[int]) -> Iterator[int]:
        """Those of ``tasks`` that no other process has taken, one by one; ends early once a process has failed."""
        taken: set[str] = set()
        for task in tasks:
            name = f"{kind}-{task}"
            if name in taken:
                continue
            if self.stopped:
                return
            try:
                os.close(os.open(os.path.join(self.folder, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            except FileExistsError:
                taken.update(os.listdir(self.folder))  # one look at all saves many tries
                continue
            except OSError as error:
                cannot_write(os.path.join(self.folder, name), 0, error)
            yield task

    def stop(self) -> None:
        """Let the other processes end: this one has failed. They may not hear of it on a full disk."""
        try:
            os.close(os.open(os.path.join(self.folder, _STOP), os.O_CREAT | os.O_WRONLY, 0o666))
        except OSError:
            return

    @property
    def stopped(self) -> bool:
        """Whether a process has failed."""
        return os.path.exists(os.path.join(self.folder, _STOP))

    def note(self, tally: Tally, now: bool = False) -> bool:
        """Publish what this process has done in all, a few times a second at most; returns whether it did."""
        seconds = time.monotonic()
        if not now and seconds - self._noted < _SECONDS_BETWEEN_NOTES:
            return False
        self._noted = seconds
        try:
            with open(self._count_path, "wb", buffering=0) as file:
                file.write(_COUNT.pack(*tally))
        except OSError:
            return False  # a matter of looks
        return True

    def total(self) -> Tally:
        """What all processes have done."""
        result = Tally()
        for name in os.listdir(self.folder):
            if name.startswith("count-"):
                with open(os.path.join(self.folder, name), "rb") as file:
                    data = file.read()
                if len(data) == _COUNT.size:  # else it is being written
                    result = result.plus(Tally(*_COUNT.unpack(data)))
        return result
