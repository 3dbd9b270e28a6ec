"""One job at a time on a run's folder: a lock that a crash cannot leave behind.

Rank 0 holds a kernel lock on ``run.lock``, which ends with its process, however that dies. On a network file system
that does not pass such locks on to other machines, the heartbeat tells: while it lives the holder renews the time of
the file, and one of another machine counts as dead when it has been silent for :data:`SILENCE`.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_pixel.config.errors import UserError

NAME = "run.lock"
BEAT = 10.0
"""Seconds between signs of life."""
SILENCE = 45.0
"""Seconds without one after which a holder on another machine is taken for dead."""
PATIENCE = 60.0
"""Seconds to wait for the former life of the same SLURM job, which may still be dying after a requeue."""

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


class RunLock:
    """The lock of a run's folder, from construction to :meth:`release`.

    Args:
        folder: of the run; it exists.
        tell: shows a line where there is something to wait for.
        beat, silence, patience: see :data:`BEAT`, :data:`SILENCE`, :data:`PATIENCE`.

    Raises:
        UserError: another run holds it; the message names its machine, process and job.
    """

    def __init__(
        self,
        folder: Path,
        tell: Callable[[str], None] = print,
        beat: float = BEAT,
        silence: float = SILENCE,
        patience: float = PATIENCE,
    ) -> None:
        self._folder, self._tell = folder, tell
        self._silence, self._patience = silence, patience
        self._token = uuid.uuid4().hex
        self._kernel_knows = True
        self._file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take()
        except BaseException:
            os.close(self._file)
            raise
        self._released = threading.Event()
        self._heart = threading.Thread(target=self._beats, args=(beat,), name="run lock", daemon=True)
        self._heart.start()

    def check(self) -> None:
        """Raise a UserError if another run has taken the folder over, having heard nothing from this one."""
        holder = _read(self._folder)
        if holder.get("token") != self._token:
            raise UserError(
                f"{self._folder} has been taken over by {_who(holder)}, as this run gave no sign of life for "
                f"{self._silence:g} s; it ends here and writes nothing more"
            )

    def release(self) -> None:
        """Give the folder free."""
        self._released.set()
        self._heart.join()
        if _read(self._folder).get("token") == self._token:
            os.ftruncate(self._file, 0)
        os.close(self._file)

    def _take(self) -> None:
        end, told = time.monotonic() + self._patience, False
        while True:
            locked = self._lock()
            holder = _read(self._folder)
            if locked and self._is_dead(holder):
                break
            if locked and self._kernel_knows:
                fcntl.flock(self._file, fcntl.LOCK_UN)
            same_job = holder.get("job") is not None and holder["job"] == os.environ.get("SLURM_JOB_ID")
            if not same_job or time.monotonic() > end:
                raise UserError(
                    f"run.dir: {self._folder} is in use by {_who(holder)}; end that run, or give this one a folder of "
                    "its own with --run.dir"
                )
            if not told:
                self._tell(f"waiting up to {self._patience:g} s for the former process of this job: {_who(holder)}")
                told = True
            time.sleep(0.2)
        record = {
            "token": self._token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        text = (json.dumps(record) + "\n").encode()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text, 0)
        os.fsync(self._file)

    def _lock(self) -> bool:
        """Whether no other process of this machine (or of any, where the file system passes locks on) has the lock."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                return False
            if error.errno not in _UNSUPPORTED:
                raise
            self._kernel_knows = False
        return True

    def _is_dead(self, holder: dict[str, Any]) -> bool:
        """Whether the one who is named in the file is gone, given that the kernel lets us have the lock."""
        if not holder or (self._kernel_knows and holder.get("machine") == _machine()):
            return True
        begun, last = time.monotonic(), _beat_of(self._folder)
        wait = self._silence - beat_age(self._folder)
        if wait > 0:
            self._tell(f"{self._folder} was held by {_who(holder)}: waiting {wait:.0f} s for a sign of life")
        while time.monotonic() - begun < wait:
            time.sleep(min(0.2, self._silence / 10))
            if _beat_of(self._folder) != last:
                return False
        return True

    def _beats(self, pause: float) -> None:
        while not self._released.wait(pause):
            with suppress(OSError):
                os.utime(self._file)


def holder(folder: Path, silence: float = SILENCE) -> str | None:
    """Who uses a run's folder, in words; None if nobody gives signs of life. Takes no lock: for a look from outside."""
    record = _read(folder)
    return _who(record) if record and beat_age(folder) < silence else None


def beat_age(folder: Path) -> float:
    """Seconds since the last sign of life, by the clock of the file system, which all machines share."""
    probe = folder / f".{NAME}-{uuid.uuid4().hex}"
    try:
        probe.touch()
        now = probe.stat().st_mtime
    except OSError:
        now = time.time()
    finally:
        probe.unlink(missing_ok=True)
    return now - _beat_of(folder)


def _beat_of(folder: Path) -> float:
    # Network file systems look for news when a file is opened.
    with (folder / NAME).open("rb") as file:
        return os.fstat(file.fileno()).st_mtime


def _read(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _who(record: dict[str, Any]) -> str:
    if not record:
        return "another process"
    job = f", SLURM job {record['job']}" if record.get("job") else ""
    return f"process {record.get('pid')} on {record.get('host')}{job}, since {record.get('since')}"


def _machine() -> str:
    """What tells this machine, and this start of it, from all others that may share its name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()
