"""Points of a search side by side, each in a folder of its own; what is finished stays, the next call does the rest.

A worker is a process that takes one point after the other, so libraries are imported once. Several machines, or the
tasks of a SLURM array, share a search by taking every n-th point (``--share``); on one machine a lock keeps two
searches from the same point.
"""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.finetuning.grid import Point

if TYPE_CHECKING:
    from megatron_pixel.parallel.mesh import Mesh

RESULT = "result.json"
FAILURE = "failure.txt"


@dataclass
class Report:
    """How a call of :func:`search` went."""

    finished: int = 0
    before: int = 0
    """Finished by an earlier call."""
    elsewhere: int = 0
    """Under way in another search."""
    failed: dict[str, str] = field(default_factory=dict)
    """Message by point."""
    stopped: bool = False


def share_of(points: Sequence[Point], share: str) -> list[Point]:
    """Every n-th point: ``2/8`` is the third of eight shares, counted from 0.

    Raises:
        UserError: not of that form.
    """
    number, slash, count = share.partition("/")
    if not slash or not number.isdecimal() or not count.isdecimal() or int(number) >= int(count):
        raise UserError(f"--share {share}: expected NUMBER/COUNT with numbers from 0, such as 0/4")
    return list(points)[int(number) :: int(count)]


def array_share(environ: os._Environ[str] | dict[str, str]) -> str:
    """The share of a task of a SLURM array; everything outside one.

    Raises:
        UserError: the numbers of the array are not evenly spaced, so a task cannot know which of them it is.
    """
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")
    if any(name not in environ for name in names):
        return "0/1"
    task, count = (int(environ[name]) for name in names)
    first, last, step = (
        int(environ.get(f"SLURM_ARRAY_TASK_{name}", default))
        for name, default in (("MIN", "0"), ("MAX", str(count - 1)), ("STEP", "1"))
    )
    if first + (count - 1) * step != last or (task - first) % step:
        raise UserError(
            f"the numbers of the SLURM array ({count} from {first} to {last}) have gaps: submit it with --array "
            f"0-{count - 1}, or give each job its --share NUMBER/COUNT"
        )
    return f"{(task - first) // step}/{count}"


def tell(line: str) -> None:
    """Print it at once: into a file or pipe, lines would else wait until thousands of characters are there."""
    print(line, flush=True)


def search(points: Sequence[Point], output: Path, workers: int, show: Callable[[str], None] = tell) -> Report:
    """Run all points that have no result yet.

    Args:
        points: each gets the folder ``output / point.name``.
        output: of the search.
        workers: processes side by side; on a machine with GPUs each one sees one of them, in turn.
        show: takes lines for the user.

    Returns:
        What was done. SIGINT and SIGTERM stop the workers after their steps under way; their points begin anew next
        time.
    """
    output.mkdir(parents=True, exist_ok=True)
    report = Report()
    todo = []
    for point in points:
        if (output / point.name / RESULT).is_file():
            report.before += 1
        else:
            todo.append(point)
    show(
        f"{len(points):,} points: {report.before:,} done before, {len(todo):,} to do, "
        f"{min(workers, len(todo))} at a time"
    )
    if todo:
        _run(todo, output, min(workers, len(todo)), report, show)
    return report


def _run(todo: list[Point], output: Path, workers: int, report: Report, show: Callable[[str], None]) -> None:
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(todo))
    total, done, started = len(todo), 0, time.monotonic()
    # Children of this process would get a Ctrl-C of the terminal too, and answer it themselves.
    connections: dict[Connection, Any] = {}
    for number in range(workers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, number, workers, os.cpu_count() or 1), daemon=True)
        process.start()
        theirs.close()
        connections[ours] = process
        _give(ours, waiting, output)
    with _on_signals(lambda: _stop(report, connections, waiting, show)):
        while connections:
            for ready in wait(list(connections)):
                connection = ready
                assert isinstance(connection, Connection)
                try:
                    name, kind, text = connection.recv()
                except (EOFError, ConnectionError):
                    process = connections.pop(connection)
                    process.join()
                    if process.exitcode and not report.stopped:
                        report.failed[f"worker {process.pid}"] = f"ended with status {process.exitcode}"
                    continue
                if kind == "stopped":
                    continue  # the worker is leaving
                done += 1
                if kind == "done":
                    report.finished += 1
                    left = (time.monotonic() - started) / done * (total - done)
                    show(f"[{done}/{total}] {name}: {text}; about {left / 60:.0f} min left")
                elif kind == "busy":
                    report.elsewhere += 1
                elif kind == "failed":
                    report.failed[name] = text
                    show(f"[{done}/{total}] {name}: failed: {text}")
                _give(connection, waiting, output)


def _give(connection: Connection, waiting: list[Point], output: Path) -> None:
    with suppress(BrokenPipeError):  # a worker that a signal has ended; its connection tells so next
        connection.send((waiting.pop(), output) if waiting else None)


def _stop(
    report: Report, connections: dict[Connection, Any], waiting: list[Point], show: Callable[[str], None]
) -> None:
    report.stopped = True
    waiting.clear()
    show("stopping: the points under way begin anew with the next call, what is finished stays")
    for process in connections.values():
        if process.is_alive():
            os.kill(process.pid, signal.SIGTERM)


@contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: act()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _worker(connection: Connection, number: int, workers: int, cores: int) -> None:
    """Take points until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent passes it on as SIGTERM
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    devices = visible_devices()
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)]
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        os.environ.pop(name, None)  # a point is a run of one process
    from megatron_pixel.parallel.quiet import silence_libraries

    silence_libraries()
    from megatron_pixel.config.schema import ParallelConfig
    from megatron_pixel.parallel.mesh import mesh

    # One for all points: closing a mesh leaves threads of gloo behind, hundreds after some tens of points.
    with mesh(ParallelConfig()) as here:
        while (task := connection.recv()) is not None:
            point, output = task
            kind, text = _run_point(point, output / point.name, here)
            connection.send((point.name, kind, text))
            if kind == "stopped":
                break
    connection.close()


def visible_devices() -> list[str]:
    """Numbers of the GPUs that this process may use, asked of the driver's program: torch is not imported yet."""
    told = os.environ.get("CUDA_VISIBLE_DEVICES")
    if told is not None:
        return [device for device in told.split(",") if device]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, text=True).stdout
    return [str(number) for number, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


def _run_point(point: Point, folder: Path, mesh: "Mesh") -> tuple[str, str]:
    """``done``, ``busy``, ``stopped`` or ``failed``, and what to say."""
    from megatron_pixel.finetuning.run import FinetuningRun
    from megatron_pixel.training.guards import StopSignals

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock, (folder / "log").open("a", encoding="utf-8") as log:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "busy", ""
        signals = StopSignals()
        try:
            with FinetuningRun(point.config(folder), mesh, lambda line: print(line, file=log, flush=True)) as run:
                result = run.train(signals)
        except UserError as error:
            (folder / FAILURE).write_text(f"{error}\n", encoding="utf-8")
            return "failed", str(error)
        finally:
            signals.restore()
        if result is None:
            return "stopped", ""
        (folder / FAILURE).unlink(missing_ok=True)
        return "done", f"{result['metric']} {result['score']:.4f}, {result['seconds']:.0f} s"


def results_below(folder: Path) -> list[dict[str, Any]]:
    """The results of all finished runs below a folder, each with its ``folder``, in the order of their names.

    Raises:
        UserError: a result that cannot be read.
    """
    found = []
    for path in sorted(folder.rglob(RESULT)):
        try:
            found.append({**json.loads(path.read_text(encoding="utf-8")), "folder": str(path.parent)})
        except ValueError as error:
            raise UserError(f"{path}: not JSON: {error}") from None
    return found


def summary(results: Sequence[dict[str, Any]]) -> str:
    """The best point of each system, task, modality and kind of weights, by the mean score over seeds."""
    groups: dict[tuple[str, ...], dict[str, list[float]]] = {}
    for result in results:
        key = tuple(str(result[name]) for name in ("task", "system", "modality", "weights", "metric"))
        settings = ", ".join(f"{name} {value}" for name, value in result["settings"].items())
        groups.setdefault(key, {}).setdefault(settings, []).append(result["score"])
    lines = []
    for key, points in sorted(groups.items()):
        settings, scores = max(points.items(), key=lambda item: sum(item[1]) / len(item[1]))
        mean = sum(scores) / len(scores)
        task, system, modality, weights, metric = key
        lines.append(
            f"{task} {system} {modality} {weights}: {metric} {mean:.4f} over {len(scores)} seed(s), best of "
            f"{len(points)} setting(s): {settings}"
        )
    return "\n".join(lines)
