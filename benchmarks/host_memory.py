#!/usr/bin/env python
"""What does it give a step on the CPU to keep the memory that the step before has freed?

    python benchmarks/host_memory.py
    python benchmarks/host_memory.py --precision bf16 --rounds 9 --json host_memory.json

Text steps of `training.py`, ours and Hugging Face's, each in two processes of its own: one keeps what it frees, as a
run of ours does on a CPU, one gives it back to the system, as glibc does by itself and a program of Hugging Face's
therefore, too. The four take turns after a few steps in which their memory settles. *Page faults* count how often the
system had to find and clear a page during a step, *memory* is the most that the process had resident.

Takes about seven minutes on 2 cores, and 18 GB of memory.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file, training
from megatron_pixel.config.errors import exit_on_user_error

SIDES = {"ours, kept": ("ours", True), "ours, given back": ("ours", False),
         "Hugging Face, kept": ("hf", True), "Hugging Face, given back": ("hf", False)}  # fmt: skip
"""Whose step, and whether the process keeps what it frees."""
SETTLING = 5
"""Steps before those that count."""
LIMIT = 300.0
"""Seconds that a step may take, with the start of its process."""


def main(words: Sequence[str]) -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"], help="default: both")
    add("--size", choices=["paper", "tiny"], default="paper", help="of the model (default: paper)")
    add("--rounds", type=int, default=5, help="times that all take turns (default: %(default)s)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args(words)
    # A process that waits for its turn must not spin.
    os.environ["OMP_WAIT_POLICY"] = "passive"
    figures: dict[str, Any] = {"rounds": arguments.rounds}
    for precision in arguments.precision:
        figures[precision] = measure(arguments, precision)
    result_file.write(arguments.json, figures, ("torch", "deepspeed", "megatron-core", "transformers"))


def measure(arguments: argparse.Namespace, precision: str) -> dict[str, Any]:
    """All sides at one precision."""
    context = multiprocessing.get_context("spawn")
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    with ExitStack() as stack:
        pipes: dict[str, Connection] = {}
        for name, (who, keeps) in SIDES.items():
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=child, args=(theirs, arguments.size, precision, who, keeps), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join, LIMIT)
            stack.callback(pipes[name].close)
        for number in range(-SETTLING, arguments.rounds):
            for name in list(SIDES) if number % 2 else list(SIDES)[::-1]:
                found = one_step(pipes[name], name)
                print(f"{precision}, {f'round {number + 1}' if number >= 0 else 'settling'}, {name}: "
                      f"{found['seconds']:.2f} s, {found['faults']:,.0f} page faults", flush=True)  # fmt: skip
                if number >= 0:
                    steps[name].append(found)
    ours = [step["seconds"] for step in steps["ours, kept"]]
    figures: dict[str, Any] = {}
    for name, taken in steps.items():
        ratios = [step["seconds"] / mine for step, mine in zip(taken, ours, strict=True)]
        figures[name] = {
            "step_seconds": statistics.median(step["seconds"] for step in taken),
            "page_faults": statistics.median(step["faults"] for step in taken),
            "memory_gb": taken[-1]["memory"] / 1e9,
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
        print(f"{precision}, {name}: {figures[name]['step_seconds']:.2f} s a step, {figures[name]['ratio']:.2f} times "
              f"ours, {figures[name]['memory_gb']:.2f} GB", flush=True)  # fmt: skip
    return figures


def one_step(pipe: Connection, name: str) -> dict[str, float]:
    """Let a process take a step."""
    pipe.send("step")
    if not pipe.poll(LIMIT):
        raise TimeoutError(f"{name}: no step in {LIMIT:.0f} s")
    found: dict[str, float] = pipe.recv()
    return found


def child(pipe: Connection, size: str, precision: str, who: str, keeps: bool) -> None:
    """The process of one side: takes a step whenever it is told to, until nobody is there to tell."""
    import resource

    from megatron_pixel.parallel.environment import set_environment
    from megatron_pixel.parallel.launch import read_launch
    from megatron_pixel.parallel.quiet import silence_libraries

    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    silence_libraries()
    set_environment(read_launch(os.environ))
    from benchmarks.training_peers import PEERS, Peer
    from benchmarks.training_run import MeasuredRun, readers
    from megatron_pixel.config.schema import ParallelConfig
    from megatron_pixel.parallel import mesh

    if not keeps:
        mesh.keep_freed_memory = lambda: False
    shape = argparse.Namespace(size=size, layers=None, rows=1, set=[])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        here = stack.enter_context(mesh.mesh(ParallelConfig()))
        config = training.config_of(shape, precision, False, [], str(folder / "run"))
        runner: MeasuredRun | Peer
        with redirect_stdout(StringIO()):  # DeepSpeed tells the memory of each of its groups
            if who == "ours":
                runner = MeasuredRun(config, here, accumulation=2)
                stack.enter_context(runner)
            else:
                runner = Peer(PEERS[who](config.model), config, readers(config, accumulation=2), here)
        while True:
            try:
                pipe.recv()
            except EOFError:
                return
            runner.prepare("text")
            before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            runner.take("text")
            seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
            faults = after.ru_minflt - before
            pipe.send({"seconds": seconds, "faults": faults, "memory": 1024 * after.ru_maxrss})


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
