"""The result files of the benchmarks: the figures of one run, and what was run, when and on what.

A benchmark keeps its figures in a dictionary and hands it to :func:`write`, which puts the key ``run`` before them::

    {"run": {"benchmark": "storage", "command": "python benchmarks/storage.py", "date": "2026-11-22", "commit": ...,
             "machine": {"cpu": ..., "cores": 8, "memory_gib": 31.2, "system": "Linux x86_64"},
             "versions": {"python": "3.11.9", "numpy": ...}},
     "english": {"bytes_per_page": ...}, ...}

Committed ones lie in ``benchmarks/results/`` and are called like their program; ``report.py`` makes tables of them. A
result names no host, no user and no folder of the machine.
"""

import argparse
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIBRARIES = ("numpy", "numba", "llvmlite", "uharfbuzz", "freetype-py", "Pillow", "zstandard")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """The option ``--json PATH``, which names the file for :func:`write`."""
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures to this file")


def write(path: Path | None, figures: Mapping[str, Any], libraries: Sequence[str] = ()) -> None:
    """Write ``figures`` behind the key ``run`` (:func:`run_header`) to ``path``, whole or not at all.

    Without a path (no ``--json``) nothing is written. Figures that are floats keep five digits: more is noise.
    """
    if path is None:
        return
    result = {"run": run_header(libraries), **_rounded(figures)}
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    print(f"wrote {path}")


def run_header(libraries: Sequence[str] = ()) -> dict[str, Any]:
    """What runs: program, command line, date (UTC), commit, machine, versions of ``libraries`` and the usual ones."""
    program = Path(sys.argv[0]).resolve()
    return {
        "benchmark": program.stem,
        "command": command(sys.argv),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "versions": versions(libraries),
    }


def command(words: Sequence[str]) -> str:
    """The command line as it is typed in the root of the repository; of other paths only the last part."""

    def shown(word: str) -> str:
        option, equals, value = word.rpartition("=")
        if not os.path.isabs(value):
            return word
        path = Path(value).resolve()
        inside = path.is_relative_to(ROOT)
        return option + equals + (str(path.relative_to(ROOT)) if inside else path.name)

    return shlex.join(["python", shown(str(Path(words[0]).resolve())), *map(shown, words[1:])])


def commit() -> str | None:
    """The commit of the sources, with ``+`` where they were changed since; None outside of a checkout."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions(libraries: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python and of the installed ones among the usual libraries and ``libraries``."""
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *libraries):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()  # a numpy scalar
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.5g}") if abs(value) < 1e5 else round(value)
    return value
