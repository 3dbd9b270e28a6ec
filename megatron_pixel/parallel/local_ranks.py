"""Ranks on this machine: started together, watched, and ended together in bounded time."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

HOST = "127.0.0.1"
_POLL = 0.02
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class RankEnd:
    """How the first rank that did not finish ended."""

    rank: int
    pid: int
    status: int
    """Its exit status; of one that a signal killed, minus the number of the signal."""

    def cause(self) -> str:
        """``was killed by SIGKILL`` or ``ended with status 1``."""
        if self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"


class LocalRanks:
    """The processes of one start, each in a session of its own. Use it as a context manager: leaving it ends them.

    They meet at a store that this process holds, so that no port can be taken in between. If this process dies they
    get SIGTERM, finish their step and save. Standard output of rank 0 is that of this process; everything else that
    ranks say is shown on standard error behind the number of the rank, and kept in a file.

    Args:
        command: what each rank runs.
        count: number of ranks.
        log: file that keeps what they say.
    """

    def __init__(self, command: Sequence[str], count: int, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", _threads(count))}
        self._store: Any = None
        if count > 1:
            from torch.distributed import TCPStore

            self._store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
            environment |= {
                "WORLD_SIZE": str(count),
                "MASTER_ADDR": HOST,
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 opens no store of its own
            }
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8")
        self._silent_but: int | None = None
        self._writing = threading.Lock()
        self.processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else {}
            self._start(rank, command, environment | place)

    def __enter__(self) -> "LocalRanks":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._kill()
        for reader in self._readers:
            reader.join(5)
        with self._writing:
            self._log.close()
        self._store = None

    def signal(self, number: int) -> None:
        """Send a signal to every rank that lives."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def wait(self, grace: float) -> RankEnd | None:
        """Until all have ended. The first rank that ends gives the others ``grace`` seconds, then they are killed.

        Returns:
            How the first one ended that did not finish; None where all did.
        """
        while not any(self._ended()):
            time.sleep(_POLL)
        # A signal from outside comes before what it makes of the others.
        first = sorted(
            ((p.returncode or 0) >= 0, rank) for rank, p in enumerate(self.processes) if p.poll() is not None
        )
        if self.processes[first[0][1]].returncode:
            self._silent_but = first[0][1]
        end = time.monotonic() + grace
        while not all(self._ended()) and time.monotonic() < end:
            time.sleep(_POLL)
        late = [rank for rank, process in enumerate(self.processes) if process.poll() is None]
        self._kill()
        order = [rank for _, rank in first] + [r for r in range(len(self.processes)) if r not in late]
        for rank in [*order, *late]:
            if status := self.processes[rank].returncode:
                return RankEnd(rank, self.processes[rank].pid, status)
        return None

    def _ended(self) -> list[bool]:
        return [process.poll() is not None for process in self.processes]

    def _start(self, rank: int, command: Sequence[str], environment: dict[str, str]) -> None:
        libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

        def follow() -> None:
            if libc is not None:
                libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=follow,
        )
        self.processes.append(process)
        for stream in filter(None, (process.stdout, process.stderr)):
            reader = threading.Thread(target=self._read, args=(rank, stream), daemon=True)
            reader.start()
            self._readers.append(reader)

    def _read(self, rank: int, stream: IO[str]) -> None:
        """Pass on what a rank says; once one has failed, what the others say about that goes to the file alone."""
        for line in stream:
            text = line if len(self.processes) == 1 else f"[rank {rank}] {line}"
            with self._writing:
                if not self._log.closed:
                    self._log.write(text)
                    self._log.flush()
                if self._silent_but in (None, rank):
                    sys.stderr.write(text)
                    sys.stderr.flush()

    def _kill(self) -> None:
        for process in self.processes:
            # The whole session: worker processes of a rank end with it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self.processes:
            process.wait()


def _threads(count: int) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return str(max(1, cores // count))
