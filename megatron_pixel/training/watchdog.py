"""Ends a run that hangs, and says where: the stacks of all ranks, and the collective that some of them never reached.

A thread of each rank looks at when its training thread last gave a sign of life. Past the limit every rank writes what
it is doing to a folder that all share; after a moment in which the others do so too, the first of them makes a summary,
and all end. A rank that writes nothing stands out by that: its machine is gone, or its process is stopped; on the
machine of the first such a process is woken up to write its stacks, too.
"""

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist

from megatron_pixel.training import exit_codes

T = TypeVar("T")
SUMMARY = "summary.txt"
_WRAPPERS = ("c10d_logger", os.path.join("deepspeed", "comm"), os.path.join("deepspeed", "utils"))
"""Files that only pass a call on."""
_WAITS = ("wait", "wait_all", "synchronize")
"""Functions of torch and DeepSpeed that wait for what was asked for before."""
_COLLECTIVES = os.path.join("torch", "distributed", "distributed_c10d.py")


class Watchdog:
    """Watches one rank from construction to :meth:`close`.

    Args:
        folder: that all ranks see; each hang gets a folder in it.
        limit: seconds without a sign of life.
        rank: of this process.
        places: host and process of every rank.
        end: ends the process; never returns, but in tests.
    """

    def __init__(
        self,
        folder: Path,
        limit: float,
        rank: int,
        places: Sequence[tuple[str, int]],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._folder, self._limit, self._rank, self._places, self._end = folder, limit, rank, places, end
        self._gather = max(2.0, min(30.0, limit / 5))
        self._watched = threading.get_ident()
        self._last, self._phase, self._step = time.monotonic(), "starting", 0
        self._paused = 0
        self._closed = threading.Event()
        self._frozen = _frozen_file(folder, rank) if limit else None
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        if limit:
            self._thread.start()

    def beat(self, phase: str, step: int | None = None) -> None:
        """A sign of life, with what comes next: it is what a report says the rank was doing."""
        self._phase, self._last = phase, time.monotonic()
        if step is not None:
            self._step = step

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what may take as long as it does, and has limits of its own: writing a checkpoint."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self.beat(self._phase)

    def close(self) -> None:
        """End the watch."""
        self._closed.set()
        if self._frozen is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()
            self._frozen.close()
            if not Path(self._frozen.name).stat().st_size:
                Path(self._frozen.name).unlink()

    def _watch(self) -> None:
        pause = min(1.0, self._limit / 10)
        while not self._closed.wait(pause):
            # Native code that never gives the interpreter back would keep this thread, too, from running: then the
            # interpreter's own timer, which needs no Python, writes the stacks and ends the process.
            assert self._frozen is not None
            faulthandler.dump_traceback_later(self._limit + 4 * self._gather, exit=True, file=self._frozen)
            silent = time.monotonic() - self._last
            if silent > self._limit and not self._paused:
                self._report(silent)
                self._end(exit_codes.HANG)
                return

    def _report(self, silent: float) -> None:
        frame = sys._current_frames().get(self._watched)
        facts = {
            "rank": self._rank,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "step": self._step,
            "phase": self._phase,
            "seconds": round(silent, 1),
            "collective": stuck_collective(frame),
            "device": _device_collectives(),
        }
        folder = self._folder / f"hang-step-{self._step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"rank-{self._rank:05d}.txt").write_text(_stacks(self._watched), encoding="utf-8")
        part = folder / f"rank-{self._rank:05d}.part"
        part.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        part.replace(folder / f"rank-{self._rank:05d}.json")
        world_size = len(self._places)
        found = self._await(lambda: _told(folder), lambda found: len(found) == world_size)
        if found[0]["rank"] != self._rank:
            # The one that tells must not lose its connection before it has.
            self._await((folder / SUMMARY).exists, bool, 2 * self._gather)
            return
        stopped = wake(self._places, {facts["rank"] for facts in found})
        if stopped:
            found = self._await(lambda: _told(folder), lambda found: stopped <= {facts["rank"] for facts in found})
        text = summary(found, world_size, folder, stopped)
        (folder / SUMMARY).write_text(text, encoding="utf-8")
        print(text, file=sys.stderr, end="", flush=True)

    def _await(self, look: Callable[[], T], enough: Callable[[T], bool], seconds: float | None = None) -> T:
        """What there is to see as soon as it is enough, or when the time is up."""
        end = time.monotonic() + (self._gather if seconds is None else seconds)
        while not enough(seen := look()) and time.monotonic() < end:
            time.sleep(0.1)
        return seen


def _told(folder: Path) -> list[dict[str, Any]]:
    """The reports that are there, in the order of ranks."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("rank-*.json"))]


def wake(places: Sequence[tuple[str, int]], answered: Collection[int]) -> set[int]:
    """Let the processes on this machine go on that are stopped (SIGSTOP, Ctrl-Z, a debugger that left).

    Args:
        places: host and process of every rank.
        answered: ranks that need no waking.

    Returns:
        The ranks that were stopped.
    """
    stopped = set()
    for rank, (host, pid) in enumerate(places):
        if rank not in answered and host == socket.gethostname():
            with suppress(psutil.Error, OSError):
                if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
                    os.kill(pid, signal.SIGCONT)
                    stopped.add(rank)
    return stopped


def summary(
    found: Sequence[Mapping[str, Any]], world_size: int, folder: Path, stopped: Collection[int] = frozenset()
) -> str:
    """What the reports of the ranks that answered add up to: who waits where, and for whom.

    Args:
        found: the reports.
        world_size: number of ranks.
        folder: where the stacks are.
        stopped: ranks whose processes were stopped, and answered when they were woken up.
    """
    first = found[0]
    lines = [f"watchdog: no progress for {first['seconds']:.0f} s at step {first['step']}; stacks are in {folder}"]
    answered = {facts["rank"]: facts for facts in found}
    silent = [rank for rank in range(world_size) if rank not in answered]
    waiting: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for facts in found:
        if facts["collective"]:
            call = (facts["collective"]["name"], tuple(facts["collective"]["ranks"]))
            waiting.setdefault(call, []).append(facts["rank"])
    for (name, ranks), inside in waiting.items():
        if not ranks:
            lines.append(f"  {name}: {_listed(inside)} waiting")
            continue
        missing = [rank for rank in ranks if rank not in inside]
        away = f"; not there: {_listed(missing)}" if missing else "; all of them are there"
        lines.append(f"  {name} of {_listed(ranks)}: {_listed(inside)} waiting{away}")
    for facts in found:
        call = facts["collective"]
        place = f"in {call['name']}, called at {call['caller']}" if call else "in no collective operation"
        state = "its process was stopped in: " if facts["rank"] in stopped else ""
        who = f"rank {facts['rank']} on {facts['host']} (process {facts['pid']})"
        lines.append(f"  {who}: {state}{facts['phase']}, {place}")
        lines += [f"    on the device: {entry}" for entry in facts["device"]]
    if silent:
        lines.append(f"  {_listed(silent)}: no answer; the process is stopped or dead, or its machine is gone")
    return "\n".join(lines) + "\n"


def stuck_collective(frame: FrameType | None) -> dict[str, Any] | None:
    """The operation of ``torch.distributed`` that a stack is in: its name, its ranks, its caller; None outside."""
    call, caller, handle = None, None, None
    while frame is not None:
        if handle is None and frame.f_code.co_name in _WAITS:
            handle = frame
        if frame.f_code.co_filename.endswith(_COLLECTIVES):
            call, caller = frame, None
        elif caller is None and call is not None and not any(name in frame.f_code.co_filename for name in _WRAPPERS):
            caller = frame
        frame = frame.f_back
    if call is None and handle is not None:
        place = f"{handle.f_code.co_filename}:{handle.f_lineno}"
        return {"name": "an asynchronous operation", "ranks": [], "caller": place}
    if call is None:
        return None
    group = call.f_locals.get("group")
    peers = [call.f_locals[name] for name in ("dst", "src") if isinstance(call.f_locals.get(name), int)]
    try:
        ranks = dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)
    except (RuntimeError, ValueError, KeyError):
        ranks = []
    place = "" if caller is None else f"{caller.f_code.co_filename}:{caller.f_lineno}"
    name = call.f_code.co_name
    if name in ("send", "recv", "isend", "irecv") and peers:
        name, ranks = (
            f"{name} ({'to' if 'send' in name else 'from'} rank {peers[0]})",
            sorted({dist.get_rank(), *peers}),
        )
    return {"name": name, "ranks": list(ranks), "caller": place}


def _device_collectives() -> list[str]:
    """Collective operations under way on the CUDA device, which the host may have left behind long ago."""
    dump = getattr(torch._C._distributed_c10d, "_dump_nccl_trace_json", None)
    if dump is None or not torch.cuda.is_available():
        return []
    try:
        entries = json.loads(dump(includeCollectives=True, onlyActive=True)).get("entries", [])
    except (RuntimeError, ValueError, TypeError):
        return []
    return [f"{entry.get('profiling_name')} ({entry.get('state')})" for entry in entries[:4]]


def _stacks(watched: int) -> str:
    """The stacks of all threads, the one that trains first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = sorted(sys._current_frames().items(), key=lambda item: item[0] != watched)
    parts = [
        f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in frames
        if ident != threading.get_ident()
    ]
    return "\n".join(parts)


def _frozen_file(folder: Path, rank: int) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / f"frozen-rank-{rank:05d}.txt").open("w", encoding="utf-8")


def _listed(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
