"""Several ranks on one machine, for tests: start them, collect what they return, never hang.

``run_ranks`` calls a function of a test file in every rank and returns the results; ``run_program`` starts a program in
every rank. Both end all ranks when one fails or the time is up; the error then shows what every rank printed and, where
a rank was still running, the stack of each of its threads. A long list of checks gives a :func:`sign_of_life` between
them, from which the time counts anew: so a hang shows within a minute however long the list is.

Functions run in ranks that are forked from a process which has the libraries (:mod:`tests.distributed.warm`); programs
start as a user starts them. Ranks meet as under torchrun, at a store that stands before they start. A port that is only
known to be free may be taken when a rank comes to open it, if only by somebody's outgoing connection.
"""

import contextlib
import importlib.util
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tests.distributed.warm import Warm

Found = TypeVar("Found")
ROOT = Path(__file__).resolve().parents[2]
GRACE = 3.0
"""Seconds that the other ranks get to end by themselves after one has failed, and to write their stacks."""
IMPORTS = 180.0
"""Seconds for importing the libraries, which a busy machine stretches; they do not count towards the time limit."""
SIGN = "RANKS_SIGN_OF_LIFE"
"""Variable that names the file of a rank whose time of writing is its last sign of life."""
HOST = "127.0.0.1"
STORES = "RANKS_STORES"
"""Variable that holds the ports of all stores."""
WARM = Warm()
"""What forks the ranks of this session."""
FOREIGN = ("SLURM_", "OMPI_", "PMI_", "PMIX_", "MPI_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC_")


class RanksFailedError(AssertionError):
    """A rank failed or the time was up; the message holds the output of every rank."""


@dataclass(frozen=True)
class RankOutput:
    """How one rank of a program ended."""

    returncode: int
    stdout: str
    stderr: str


def run_ranks(
    target: Callable[..., Any] | str,
    world_size: int,
    args: Sequence[Any] = (),
    timeout: float = 55.0,
    stores: int = 1,
) -> list[Any]:
    """Call ``target(*args)`` in ``world_size`` processes that find each other through RANK, WORLD_SIZE and so on.

    Args:
        target: a function at the top level of its file, or ``path/from/the/root.py::function``; the file is imported in
            every rank, and with a name it need not be imported by the test.
        world_size: number of processes.
        args: anything that pickles.
        timeout: seconds without a sign of life of any rank, from when every rank has imported the file.
        stores: number of process groups that the ranks form one after the other or side by side, see :func:`use_store`.

    Returns:
        What each rank returned, in the order of ranks; it must pickle.

    Raises:
        RanksFailedError: a rank failed, or the time was up.
    """
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder, "task")
        if isinstance(target, str):
            file, name = target.split("::")
        else:
            file, name = target.__code__.co_filename, target.__qualname__
        task.write_bytes(pickle.dumps((str(ROOT / file), name, tuple(args))))
        with _Ranks(partial(WARM.start, Path(folder)), world_size, Path(folder), stores) as ranks:
            ready = [Path(folder, f"ready.{rank}") for rank in range(world_size)]
            ranks.wait(IMPORTS, lambda: all(path.exists() for path in ready))
            Path(folder, "go").touch()
            ranks.wait(timeout, ranks.all_ended, ready)
        return [pickle.loads(Path(folder, f"result.{rank}").read_bytes()) for rank in range(world_size)]


def side_by_side(*calls: Callable[[], Found]) -> list[Found]:
    """What calls return, of :func:`run_ranks` say, that go on at the same time: one rank leaves a core idle."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [running.result() for running in [pool.submit(call) for call in calls]]


def run_program(
    argv: Sequence[str | Path],
    world_size: int,
    timeout: float,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> list[RankOutput]:
    """Run a Python program in ``world_size`` processes.

    Args:
        argv: path of the program and its arguments.
        world_size: number of processes.
        timeout: seconds in all, imports included.
        env: variables to set besides the ranks'.
        cwd: working directory, by default the root of the repository.

    Raises:
        RanksFailedError: a rank ended with an exit status other than 0, or the time was up.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *map(str, argv)]

        def start(environments: Sequence[Mapping[str, str]]) -> list[Rank]:
            return [
                _start_program(command, Path(folder), rank, {**environment, **(env or {})}, cwd or ROOT)
                for rank, environment in enumerate(environments)
            ]

        with _Ranks(start, world_size, Path(folder)) as ranks:
            ranks.wait(timeout, ranks.all_ended)
            return [ranks.output(rank) for rank in range(world_size)]


class Rank(Protocol):
    """What :class:`subprocess.Popen` and forked ranks have in common."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self) -> int: ...

    def send_signal(self, number: int, /) -> None: ...


class _Ranks:
    """The processes of one run, their output in files of ``folder``."""

    def __init__(
        self,
        start: Callable[[Sequence[Mapping[str, str]]], Sequence[Rank]],
        world_size: int,
        folder: Path,
        stores: int = 1,
    ) -> None:
        # Not above: a test that starts no ranks need not wait for it.
        from torch.distributed import TCPStore

        self.stores = [TCPStore(HOST, 0, is_master=True, wait_for_workers=False) for _ in range(stores)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        path = os.pathsep.join(filter(None, [str(ROOT), clean.get("PYTHONPATH")]))
        shared = {
            **clean,
            "PYTHONPATH": path,
            "PYTHONFAULTHANDLER": "1",  # SIGABRT makes a rank write the stacks of its threads
            "OMP_NUM_THREADS": "1",
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": HOST,
            "MASTER_PORT": str(self.stores[0].port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 opens no store of its own
            STORES: " ".join(str(store.port) for store in self.stores),
        }
        self.folder = folder
        for name in (f"{stream}.{rank}" for rank in range(world_size) for stream in ("stdout", "stderr")):
            (folder / name).touch()
        self.processes = start([{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)])

    def __enter__(self) -> "_Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.stores.clear()

    def all_ended(self) -> bool:
        return all(process.poll() is not None for process in self.processes)

    def wait(self, timeout: float, done: Callable[[], bool], signs: Sequence[Path] = ()) -> None:
        """Until ``done``; an error as soon as a rank has failed, or when the time is up.

        The time begins anew whenever one of the files ``signs`` is written.
        """
        end, seen = time.monotonic() + timeout, _newest(signs)
        while True:
            if (newest := _newest(signs)) != seen:
                end, seen = time.monotonic() + timeout, newest
            failed = [rank for rank, process in enumerate(self.processes) if process.poll() not in (None, 0)]
            if failed:
                self._until(self.all_ended, GRACE)
                self._stop(f"rank {failed[0]} of {len(self.processes)} failed")
            if done():
                return
            if time.monotonic() > end:
                self._stop(f"{timeout:g} s were up")
            time.sleep(0.02)

    def output(self, rank: int) -> RankOutput:
        texts = (Path(self.folder, f"{name}.{rank}").read_text(errors="replace") for name in ("stdout", "stderr"))
        return RankOutput(self.processes[rank].returncode, *texts)

    def _stop(self, reason: str) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGABRT)
                process.send_signal(signal.SIGCONT)  # a stopped process writes nothing before it goes on
        self._until(self.all_ended, GRACE)
        self.__exit__()
        parts = [reason]
        for rank in range(len(self.processes)):
            output = self.output(rank)
            parts.append(f"--- rank {rank}: exit status {output.returncode}\n{output.stdout}{output.stderr}".rstrip())
        raise RanksFailedError("\n".join(parts))

    def _until(self, done: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done() and time.monotonic() < end:
            time.sleep(0.02)


def sign_of_life() -> None:
    """Called in a rank: it makes progress, and the time of :func:`run_ranks` counts anew."""
    if SIGN in os.environ:
        Path(os.environ[SIGN]).touch()


def use_store(number: int) -> None:
    """Called in a rank: its next process group meets at this one of the ``stores`` of :func:`run_ranks`.

    Each group needs a store of its own: it would take what another one has left there for its own addresses.
    """
    os.environ["MASTER_PORT"] = os.environ[STORES].split()[number]


def _newest(files: Sequence[Path]) -> int:
    return max((file.stat().st_mtime_ns for file in files), default=0)


def _start_program(
    command: list[str], folder: Path, rank: int, environment: Mapping[str, str], cwd: Path
) -> subprocess.Popen[bytes]:
    with (folder / f"stdout.{rank}").open("wb") as out, (folder / f"stderr.{rank}").open("wb") as err:
        return subprocess.Popen(
            command,
            env=dict(environment),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=no_core_dump,
        )


def no_core_dump() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_rank(folder: Path) -> None:
    """What a rank does: import, tell, wait for the others, call, write the result."""
    file, name, args = pickle.loads((folder / "task").read_bytes())
    spec = importlib.util.spec_from_file_location("rank_target", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["rank_target"] = module
    spec.loader.exec_module(module)
    rank = os.environ["RANK"]
    os.environ[SIGN] = str(folder / f"ready.{rank}")
    sign_of_life()
    while not (folder / "go").exists():
        time.sleep(0.01)
    result = getattr(module, name)(*args)
    (folder / f"result.{rank}").write_bytes(pickle.dumps(result))
