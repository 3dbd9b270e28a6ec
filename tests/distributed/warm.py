"""Ranks that are forked from a process which has imported the libraries: importing costs more than most of their work.

The process starts with the first ranks of a test session and ends with it. A rank is a process of its own in all that
matters: session, environment, output, threads, and an interpreter that ends as any other does. What the process may
not do is run: a fork copies one thread, and none of the libraries has started another by then.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = (
    "pytest",
    "megatron_pixel.training.run",
    "megatron_pixel.finetuning.run",
    "tests.distributed.layouts",
)
"""Between them, what ranks import."""
STARTING = 180.0
"""Seconds for importing the libraries on a machine that is busy."""
BEATS = 0.01
"""Seconds between two looks at the ranks."""


class ForkedRank:
    """A rank, as ``subprocess.Popen`` has its processes."""

    def __init__(self, folder: Path, rank: int, server_ended: Callable[[], bool]) -> None:
        self._started, self._ended = Path(folder, f"started.{rank}"), Path(folder, f"ended.{rank}")
        self._server_ended = server_ended
        self.returncode: int | None = None
        end = time.monotonic() + STARTING
        while not self._started.exists():
            if server_ended() or time.monotonic() > end:
                raise ChildProcessError("the process that forks ranks has ended, or does nothing")
            time.sleep(BEATS)
        self.pid = int(self._started.read_text())

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.returncode is None and self._ended.exists():
            self.returncode = int(self._ended.read_text())
        return self.returncode

    def wait(self) -> int:
        """The exit status, when it has ended."""
        while (status := self.poll()) is None:
            if self._server_ended():
                return -signal.SIGKILL
            time.sleep(BEATS)
        return status

    def send_signal(self, number: int) -> None:
        """A signal to it, if it runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


class Warm:
    """The process that forks; started when it is first needed."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self, folder: Path, environments: Sequence[Mapping[str, str]]) -> list[ForkedRank]:
        """A rank for each environment; it does the task of ``folder`` and writes its output there."""
        (folder / "environments").write_text(json.dumps([dict(environment) for environment in environments]))
        with self._lock:
            server = self._running(environments[0])
            assert server.stdin is not None
            server.stdin.write(os.fsencode(folder) + b"\n")
            server.stdin.flush()
        return [ForkedRank(folder, rank, lambda: server.poll() is not None) for rank in range(len(environments))]

    def _running(self, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        if self._server is None or self._server.poll() is not None:
            # It ends when this end of the pipe closes, and so with this process, however that ends.
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.distributed.warm"],
                cwd=ROOT,
                env=dict(environment),
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        return self._server


def serve() -> None:
    """Fork the ranks of each folder that is named on standard input; returns in every rank, and at the end of input."""
    from megatron_pixel.parallel.quiet import silence_libraries

    silence_libraries()
    for name in LIBRARIES:
        importlib.import_module(name)
    # What is there by now is nobody's garbage, and need not be looked through by every rank.
    gc.collect()
    gc.freeze()
    ranks: dict[int, Path] = {}
    while True:
        ready, _, _ = select.select([0], [], [], BEATS if ranks else None)
        if ready:
            name = _read_line()
            if not name:
                break
            folder = Path(os.fsdecode(name))
            for rank, environment in enumerate(json.loads((folder / "environments").read_text())):
                pid = os.fork()
                if pid == 0:
                    _become(folder, rank, environment)
                    return
                ranks[pid] = folder / f"ended.{rank}"
        for pid in list(ranks):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                _write(ranks.pop(pid), str(os.waitstatus_to_exitcode(status)))
    for pid in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _read_line() -> bytes:
    """Of standard input, without reading ahead: :func:`select.select` must see what follows."""
    line = b""
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return line


def _become(folder: Path, rank: int, environment: Mapping[str, str]) -> None:
    """Make this process a rank, and do its task."""
    from tests.distributed.harness import no_core_dump, run_rank

    os.setsid()
    for descriptor, path, mode in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, folder / f"stdout.{rank}", os.O_WRONLY),
        (2, folder / f"stderr.{rank}", os.O_WRONLY),
    ):
        opened = os.open(path, mode)
        os.dup2(opened, descriptor)
        os.close(opened)
    # What a test has done to its own signals is no matter of the ranks.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    no_core_dump()
    os.environ.clear()
    os.environ.update(environment)
    _write(folder / f"started.{rank}", str(os.getpid()))
    run_rank(folder)


def _write(path: Path, text: str) -> None:
    """Whole as soon as it is there."""
    part = path.with_name(f".{path.name}")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    serve()
