#!/usr/bin/env python
"""Does any text break the renderer? Hostile texts in child processes with limits on memory and time.

    python benchmarks/fuzz.py --strings 100000
    python benchmarks/fuzz.py --seed 7 --only 4711          # one text again, in this process

Texts of all planes, unassigned characters, surrogates, controls, nested bidi controls, piles of marks, chains of joined
emoji, megabytes without a space and mixtures, in all modes, presets and several sizes. Of each text the pages must tile
it, be what their part alone gives, end in a black patch and be drawn again from their marks; a pair has both black
patches; a document is kept whole on its way into a dataset; time is bounded by that of plain text, memory by the limit
of the process. A text that breaks something, crashes the process or hangs is named by its seed and number.
"""

import argparse
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import fuzz_checks, fuzz_texts, result_file

BATCH = 10_000
"""Texts of a child process."""
ADDRESS_SPACE = 12 << 30
GROWTH = 2 << 30
"""Bytes that a child process may grow by: atlases and caches of ten renderers, and the pages of a megabyte."""
CPU_SECONDS = 120.0
"""CPU time after which a text counts as one that never ends."""
SILENCE = 3600.0
"""Seconds without a sign of life after which a child process is taken for stuck, however busy the machine is."""


def run_batch(
    seed: int, first: int, count: int, program: str = __file__, silence: float = SILENCE
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Check texts in child processes, which run ``program --child``; returns what broke and the largest figures.

    A child that crashes or is silent for so many seconds is replaced by another, which goes on after the text that did
    it.
    """
    broken: list[dict[str, Any]] = []
    totals: dict[str, Any] = {"characters": 0, "times_plain": 0.0, "seconds_a_character": 0.0, "growth": 0, "kinds": {}}
    stop = first + count
    while first < stop:
        number, status, lines = _child(program, seed, first, stop - first, silence)
        for line in lines:
            if "broken" in line:
                broken.append(line)
            else:
                _add(totals, line)
        if status == 0:
            break
        broken.append({"broken": status, **name(seed, number)})
        first = number + 1
    return broken, totals


def _child(
    program: str, seed: int, first: int, count: int, silence: float
) -> tuple[int, int | str, list[dict[str, Any]]]:
    """The last text begun, 0 or what ended the process, and the lines that it wrote."""
    command = [sys.executable, program, "--child", "--seed", str(seed), "--first", str(first), "--strings", str(count)]
    lines: list[dict[str, Any]] = []
    number = first
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        pending = b""
        while True:
            if not selector.select(silence):
                process.kill()
                return number, f"no sign of life for {silence:.0f} s", lines
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                break
            *whole, pending = (pending + piece).split(b"\n")
            for line in whole:
                if line.isdigit():
                    number = int(line)
                else:
                    lines.append(json.loads(line))
        errors = process.stderr.read().decode("utf-8", "replace").strip()
        code = process.wait()
    reason = f" after {CPU_SECONDS:.0f} s of CPU time" if code == -signal.SIGPROF else f": {errors[-500:]}"
    return number, 0 if code == 0 else f"the process ended with {code}{reason}", lines


def _add(totals: dict[str, Any], line: dict[str, Any]) -> None:
    totals["characters"] += line["characters"]
    for key in ("times_plain", "seconds_a_character", "growth"):
        totals[key] = max(totals[key], line[key])
    for kind, number in line["kinds"].items():
        totals["kinds"][kind] = totals["kinds"].get(kind, 0) + number


def work(seed: int, first: int, count: int) -> None:
    """A child process: check texts, write the number of each before it and what broke after it."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    worst = fuzz_checks.Worst()
    for settings in range(len(fuzz_checks.SETTINGS)):
        fuzz_checks.renderer(settings).render("ready")
    before = _peak()
    for number in range(first, first + count):
        print(number, flush=True)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # the process dies when it runs out
        if message := problem(seed, number, worst):
            print(json.dumps({"broken": message, **name(seed, number)}), flush=True)
    growth = _peak() - before
    if growth > GROWTH:
        print(json.dumps({"broken": f"memory grew by {growth >> 20} MiB", "seed": seed, "number": first, "text": ""}))
    figures = {"times_plain": worst.times_plain, "seconds_a_character": worst.seconds_a_character}
    print(json.dumps({"characters": worst.characters, "kinds": worst.by_kind, "growth": growth, **figures}), flush=True)


def problem(seed: int, number: int, worst: fuzz_checks.Worst) -> str | None:
    """What is wrong with a text's pages, or None."""
    try:
        fuzz_checks.check(seed, number, worst)
    except fuzz_checks.BrokenPageError as error:
        return str(error)
    except Exception:
        return traceback.format_exc(limit=-4)
    return None


def name(seed: int, number: int) -> dict[str, Any]:
    """How to find a text again."""
    text, kind = fuzz_texts.text_of(seed, number)
    return {"seed": seed, "number": number, "kind": kind, "length": len(text), "text": ascii(text[:200])}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def show(broken: list[dict[str, Any]]) -> None:
    """Name the texts that broke something, and how to see it again."""
    for one in broken:
        print(f"BROKEN  python benchmarks/fuzz.py --seed {one['seed']} --only {one['number']}")
        print(f"        {one.get('kind', '')}, {one.get('length', 0)} characters: {one['text']}")
        print("        " + str(one["broken"]).strip().replace("\n", "\n        "))


def main() -> int:
    """Check texts; 0 if nothing broke."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strings", type=int, default=2000, help="how many texts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed is other texts (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first text (default: %(default)s)")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="one text, in this process, with its traceback")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    if arguments.child:
        work(arguments.seed, arguments.first, arguments.strings)
        return 0
    if arguments.only is not None:
        print(name(arguments.seed, arguments.only))
        fuzz_checks.check(arguments.seed, arguments.only, fuzz_checks.Worst())
        return 0
    started, times = time.monotonic(), os.times()
    broken: list[dict[str, Any]] = []
    totals: dict[str, Any] = {"characters": 0, "times_plain": 0.0, "seconds_a_character": 0.0, "growth": 0, "kinds": {}}
    for first in range(arguments.first, arguments.first + arguments.strings, BATCH):
        found, figures = run_batch(arguments.seed, first, min(BATCH, arguments.first + arguments.strings - first))
        broken += found
        _add(totals, figures)
        show(found)
        done = first + BATCH - arguments.first
        print(f"{min(done, arguments.strings):,} texts, {totals['characters'] / 1e6:,.0f} million characters, ", end="")
        print(f"{len(broken)} broken, {time.monotonic() - started:,.0f} s", flush=True)
    print(f"slowest: {totals['times_plain']:.1f} times plain text, ", end="")
    print(f"{totals['seconds_a_character'] * 1e6:.1f} us a character; ", end="")
    print(f"a process grew by {totals['growth'] >> 20} MiB at the most")
    cpu = os.times()
    result = {
        "strings": arguments.strings,
        "seed": arguments.seed,
        "characters": totals["characters"],
        "broken": len(broken),
        "slowest_in_times_of_plain_text": totals["times_plain"],
        "slowest_microseconds_a_character": totals["seconds_a_character"] * 1e6,
        "largest_growth_mib": totals["growth"] / 2**20,
        "cpu_seconds": cpu.children_user + cpu.children_system - times.children_user - times.children_system,
        "strings_by_kind": dict(sorted(totals["kinds"].items())),
        "found": broken,
    }
    result_file.write(arguments.json, result)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
