#!/usr/bin/env python
"""Everything that needs a GPU, in one call of nine minutes: its tests, the training benchmark, the levers of a step.

    python benchmarks/gpu.py --collect wheels --python 3.12        # where there is a package index
    python3 benchmarks/gpu.py --wheels wheels --out results        # on the GPU machine, no network, torch is there
    python benchmarks/gpu.py                                       # where everything is installed
    python benchmarks/gpu.py --device cpu --minutes 3              # the way without the GPU, on a tiny model

From the wheels it installs what the machine's Python lacks, into a folder of its own. It looks whether torch finds the
GPU, then runs `pytest -m gpu`, `benchmarks/training.py --variants all` and `benchmarks/levers_gpu.py`, each within its
share of the time and each kept if another fails or is ended. The benchmark is in bf16: in fp32 its steps take about
seven times as long, so `--only benchmark --precision fp32` is a call for itself. The folder `--out` (default: $OUT,
else runs/gpu) gets `training_gpu.json`, `levers_gpu.json`, `summary.json`, written after each job, and what the
programs said. Take the first two to `benchmarks/results` and run `python benchmarks/report.py`. Exit status 1:
something failed; the rest is there.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu_wheels import WheelsError, collect, install

TESTS_SHARE = 0.36
"""Of the time, at the most; what is before them is in it."""
LEVERS_SHARE = 0.22
"""Of the time, at the least; the benchmark has what tests and levers leave."""
JOBS = ("tests", "benchmark", "levers")
LOOKING = 150.0
"""Seconds for the first import of torch, which reads gigabytes from a cold disk."""
CLOSING = 20.0
"""Seconds kept for a program to end after its own limit."""
GRACE = 10.0
"""Seconds, the last ones of a limit, that a program has to sum up once it is interrupted."""
ATTEMPTS = 4
"""Calls of the levers at the most."""
LOOK = """\
import importlib, sys
from megatron_pixel.parallel.quiet import silence_libraries
silence_libraries()
import torch
print("Python", sys.version.split()[0], "with torch", torch.__version__, "for CUDA", torch.version.cuda)
if sys.argv[1] == "cuda":
    print(torch.cuda.get_device_name(), torch.cuda.get_device_capability(), "bytes free:", torch.cuda.mem_get_info()[0])
    ones = torch.ones(64, 64, device="cuda")
    print("a product of ones:", float((ones @ ones).mean()))
for name in ("numpy", "triton", "deepspeed", "megatron.core", "transformers"):
    try:
        module = importlib.import_module(name)
        print(name, module.__version__, module.__file__)
    except Exception as error:
        print(name, "cannot be imported:", type(error).__name__, error)
"""
"""Says what the machine has; the first import of each package from a cold disk is here, and in nobody's measurement."""


def main(words: Sequence[str]) -> int:
    """Collect the wheels, or run what needs the GPU; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--collect", type=Path, metavar="FOLDER", help="fill this folder with wheels, and end")
    add("--python", default="3.12", metavar="3.N", help="with --collect: Python of the GPU machine (default: 3.12)")
    add("--without", nargs="*", default=[], metavar="NAME", help="with --collect: packages that the machine has")
    add("--limit", type=float, default=64.0, metavar="MIB", help="with --collect: of all (default: %(default)g)")
    add("--wheels", type=Path, metavar="FOLDER", help="install from there what is lacking")
    add("--out", type=Path, default=Path(os.environ.get("OUT") or ROOT / "runs" / "gpu"), help="folder of the results")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: try the way, on a tiny model")
    add("--minutes", type=float, default=9.0, help="for all of it (default: %(default)s)")
    add("--only", choices=JOBS, help="one of the three")
    add("--precision", nargs="+", choices=["bf16", "fp32"], default=["bf16"], help="of the benchmark (default: bf16)")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the benchmark's runs")
    arguments = parser.parse_args(words)
    if arguments.collect is not None:
        collect(arguments.collect, arguments.python, arguments.without, arguments.limit)
        return 0
    return run(arguments, time.monotonic())


def run(arguments: argparse.Namespace, begin: float) -> int:
    """Install, look, test, measure, sum up."""
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix="gpu-"))
    try:
        return _run(arguments, begin, out, room, environment_of(os.environ, room))
    finally:
        shutil.rmtree(room, ignore_errors=True)


def environment_of(given: Mapping[str, str], room: Path) -> dict[str, str]:
    """What the programs are started with; what they compile lies in ``room``, which they share."""
    environment = dict(given, PYTHONUNBUFFERED="1")
    if not _has_bytecode("torch"):
        # Every program would compile what is installed anew where it cannot write it down.
        environment["PYTHONPYCACHEPREFIX"] = str(room / "bytecode")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        environment.setdefault(name, str(room / name.partition("_")[0].lower()))
    # Images of NVIDIA's round products in fp32 to TF32 by this variable, whatever a program says.
    environment["TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"] = "0"
    return environment


def _run(arguments: argparse.Namespace, begin: float, out: Path, room: Path, environment: dict[str, str]) -> int:
    if arguments.wheels is not None:
        site = room / "site"
        if install(arguments.wheels, site):
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = str(site) if not before else f"{site}{os.pathsep}{before}"
    summary: dict[str, Any] = {"install_seconds": round(time.monotonic() - begin, 1)}
    print(f"installed in {summary['install_seconds']:.0f} s", flush=True)
    whole = 60 * arguments.minutes
    end = begin + whole
    summary["machine"] = look(arguments, out, environment)
    _keep(out, summary)
    if summary["machine"]["status"]:
        print(f"error: torch cannot use a {arguments.device} device here, see {out / 'machine.log'}", flush=True)
        return 1
    jobs = JOBS if arguments.only is None else (arguments.only,)
    kept = {"tests": whole * (1 - TESTS_SHARE), "benchmark": whole * LEVERS_SHARE, "levers": 0.0}
    work = {"tests": run_tests, "benchmark": run_benchmark, "levers": run_levers}
    for job in jobs:
        limit = end - time.monotonic() - (kept[job] if len(jobs) > 1 else 0.0)
        if limit < 2 * GRACE:
            summary[job] = {"status": 124, "seconds": 0.0}
            print(f"{job}: no time was left", flush=True)
        else:
            summary[job] = work[job](arguments, out, environment, limit)
        _keep(out, summary)
    failed = [job for job in JOBS if summary.get(job, {}).get("status")]
    print(f"{out}: {'all well' if not failed else ' and '.join(failed) + ' failed, see the logs there'}", flush=True)
    return int(bool(failed))


def look(arguments: argparse.Namespace, out: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """What the machine has; the status is not 0 where torch cannot use the device."""
    command = [sys.executable, "-c", LOOK, arguments.device]
    return _logged(command, out / "machine.log", {**environment, **_hidden(arguments)}, LOOKING)


def run_tests(arguments: argparse.Namespace, out: Path, environment: dict[str, str], limit: float) -> dict[str, Any]:
    """The tests marked ``gpu``; without a device they are collected and skipped, which shows that they import."""
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if _is_marked(path))
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-vv", "-p", "no:cacheprovider", "--durations=10"]
    command += ["-o", f"faulthandler_timeout={limit / 2:.0f}", *files]
    # The machine may have plugins of all kinds, which these tests do not need.
    more = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | _hidden(arguments)
    result = _logged(command, out / "tests.log", environment | more, limit)
    text = (out / "tests.log").read_text(encoding="utf-8", errors="replace")
    for word in ("passed", "failed", "skipped", "error"):
        counts = re.findall(rf"(\d+) {word}", text)
        result[word] = int(counts[-1]) if counts else 0
    return result


def run_benchmark(
    arguments: argparse.Namespace, out: Path, environment: dict[str, str], limit: float
) -> dict[str, Any]:
    """``training.py`` with all variants, in turns of as many steps as there is time for."""
    minutes = max(0.1, (limit - CLOSING) / 60)
    json_file = out / "training_gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "training.py"), "--device", arguments.device]
    command += ["--variants", "all", f"--minutes={minutes:.2f}", "--json", str(json_file)]
    command += ["--precision", *arguments.precision]
    command += ["--size", "tiny"] if arguments.device == "cpu" else []
    command += ["--set", *arguments.set] if arguments.set else []
    json_file.unlink(missing_ok=True)
    result = _logged(command, out / "training.log", environment, limit + CLOSING)
    result["written"] = json_file.exists()
    if not json_file.exists() and not result["status"]:
        result["status"] = 1
    return result


def run_levers(arguments: argparse.Namespace, out: Path, environment: dict[str, str], limit: float) -> dict[str, Any]:
    """``levers_gpu.py``; where a part ends the program, once more for the parts behind it."""
    end = time.monotonic() + limit
    json_file = out / "levers_gpu.json"
    json_file.unlink(missing_ok=True)
    command = [sys.executable, str(ROOT / "benchmarks" / "levers_gpu.py"), "--device", arguments.device]
    command += ["--json", str(json_file), "--go-on"]
    command += ["--size", "tiny", "--rows", "2", "--parameters", "1000000"] if arguments.device == "cpu" else []
    result: dict[str, Any] = {}
    for attempt in range(1, ATTEMPTS + 1):
        left = end - time.monotonic()
        minutes = max(0.1, (left - CLOSING) / 60)
        found = _logged([*command, f"--minutes={minutes:.2f}"], out / "levers.log", environment, left, attempt > 1)
        result = {"status": found["status"], "seconds": result.get("seconds", 0.0) + found["seconds"], "calls": attempt}
        # 2 is an error of the call itself; a part that was not begun for lack of time is written down as left out.
        if found["status"] in (0, 2, 124) or end - time.monotonic() < CLOSING:
            break
    return result | {"written": json_file.exists()}


def _is_marked(path: Path) -> bool:
    return "pytest.mark.gpu" in path.read_text(encoding="utf-8")


def _hidden(arguments: argparse.Namespace) -> dict[str, str]:
    return {"CUDA_VISIBLE_DEVICES": ""} if arguments.device == "cpu" else {}


def _has_bytecode(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None and Path(cache_from_source(spec.origin)).exists()


def _logged(
    command: Sequence[str], log: Path, environment: Mapping[str, str], limit: float, append: bool = False
) -> dict[str, Any]:
    """Run a program; what it says is shown and kept.

    Shortly before the limit it is interrupted; at the limit, or when it has ended, all processes that it has started
    are killed. The status is 124 if it did not end by itself.
    """
    begin = time.monotonic()
    # A group of its own can be ended as a whole; in the same session, so that whoever ends ours ends it, too.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    assert process.stdout is not None
    reader = threading.Thread(target=_copy, args=(process.stdout, log, append), daemon=True)
    reader.start()
    timed_out = False
    try:
        process.wait(max(1.0, limit - GRACE))
    except subprocess.TimeoutExpired:
        timed_out = True
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        reader.join(GRACE)
    return {"status": 124 if timed_out else status, "seconds": round(time.monotonic() - begin, 1)}


def _copy(lines: IO[str], log: Path, append: bool) -> None:
    with open(log, "a" if append else "w", encoding="utf-8") as file:
        for line in lines:
            file.write(line)
            file.flush()
            print(line, end="", flush=True)


def _leave(number: int, _: object) -> None:
    sys.exit(128 + number)


def _keep(out: Path, summary: dict[str, Any]) -> None:
    part = out / "summary.json.part"
    part.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    part.replace(out / "summary.json")


if __name__ == "__main__":
    # What ends this program ends those that it has started. A shell that starts it behind itself lets it ignore
    # interrupts, and so would they.
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sys.exit(main(sys.argv[1:]))
    except WheelsError as error:
        sys.exit(f"error: {error}")
