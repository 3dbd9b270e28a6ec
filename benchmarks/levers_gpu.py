#!/usr/bin/env python
"""What changes of the training step would give on a GPU, each part for itself.

    python benchmarks/levers_gpu.py
    python benchmarks/levers_gpu.py --parts graph fp8 --rows 4
    python benchmarks/levers_gpu.py --device cpu --size tiny --minutes 1     # the way, where there is no GPU
    python benchmarks/levers_gpu.py --json benchmarks/results/levers_gpu.json

Parts of a step at the paper's width, vocabulary 32,000, rows of 1,024 positions: *before* is what stands in this
project, or what is usual; *after* is what was tried. Both take turns, ten calls at a time; a ratio is the median of
before by after, above 1 where the change gains time. A part for which the machine lacks hardware or a package is left
out with a line that says so. The figures are written after each part, so none is lost where a later one ends the
program; with `--go-on` the next call takes the parts that the file lacks.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.schema import ModelConfig, ParallelConfig
from megatron_pixel.parallel.quiet import silence_libraries

PARTS = ("optimizer", "attention", "head", "patches", "compiled", "graph", "fp8", "transformer_engine")
"""In this order: what could end the program comes last."""
TINY = ModelConfig(layers=1, hidden=64, heads=4, kv_heads=2, ffn=96, vocab_size=128, seq_length=32, patch_size=4)
NEVER_ENDED = "it was begun, and the program did not come to its end"


def main(words: Sequence[str]) -> int:
    """Measure and show; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cuda", help="default: %(default)s")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--size", choices=["paper", "tiny"], default="paper", help="of the model (default: paper)")
    add("--rows", type=int, default=16, help="of a micro-batch (default: %(default)s)")
    add("--parameters", type=int, default=100_000_000, help="of the optimizer's step (default: %(default)s)")
    add("--repeats", type=int, default=5, help="the median of so many pairs (default: %(default)s)")
    add("--minutes", type=float, default=3.0, help="after which no part is begun (default: %(default)s)")
    add("--go-on", action="store_true", help="take only the parts that the file of --json lacks")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args(words)
    if arguments.go_on and arguments.json is None:
        raise UserError("--go-on takes the parts that a file lacks: name it with --json")
    end = time.monotonic() + 60 * arguments.minutes
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    silence_libraries()
    import torch

    from megatron_pixel.parallel.mesh import mesh

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; --device cpu --size tiny tries the way")
    record = Record(arguments.json, arguments.go_on)
    with mesh(ParallelConfig()) as here:
        name = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "CPU"
        model = TINY if arguments.size == "tiny" else ModelConfig()
        record.describe(name, arguments.rows, model.seq_length)
        for part in record.lacking(arguments.parts):
            if time.monotonic() > end:
                record.leave_out(part, "no time was left for it")
            elif not measure(part, record, model, here.device, arguments):
                return 1
    if arguments.json is not None:
        print(f"wrote {arguments.json}")
    return 0


def measure(part: str, record: "Record", model: ModelConfig, device: Any, arguments: argparse.Namespace) -> bool:
    """One part; returns whether the device can still be used."""
    import torch

    from benchmarks import levers_gpu_parts as parts

    record.leave_out(part, NEVER_ENDED, silent=True)
    setup = parts.Setup(model, arguments.rows, torch.bfloat16, device, arguments.parameters)
    reason = None
    try:
        for change in parts.ALL[part](setup):
            record.add(part, change, turns(change, device, arguments.repeats))
    except parts.LeftOutError as error:
        reason = str(error)
    except Exception as error:  # a part that fails does not keep the others from being measured
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    record.done(part, reason)
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
    except RuntimeError as error:
        print(f"{part} has left the device unusable: {str(error).splitlines()[0]}", flush=True)
        return False
    return True


def turns(change: Any, device: Any, repeats: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Times of both sides, in turns after a first one that warms up; each time is the mean of some calls in a row."""
    from benchmarks.training_ceiling import synchronize

    calls = 10 if device.type == "cuda" else 1

    def once(work: Callable[[], object]) -> float:
        synchronize(device)
        start = clock()
        for _ in range(calls):
            work()
        synchronize(device)
        return (clock() - start) / calls

    pairs = [(once(change.before), once(change.after)) for _ in range(repeats + 1)][1:]
    before, after = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
    ratio = statistics.median(old / new for old, new in pairs)
    return {"before_ms": before, "after_ms": after, "ratio": ratio, **change.figures}


class Record:
    """The figures, written after each part.

    Args:
        path: of the file; None keeps them for the terminal alone.
        go_on: whether to keep what the file holds.
    """

    def __init__(self, path: Path | None, go_on: bool) -> None:
        self._path = path
        self._figures: dict[str, Any] = {"parts": {}, "left_out": {}}
        if go_on and path is not None and path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            self._figures |= {key: value for key, value in found.items() if key != "run"}

    def describe(self, device: str, rows: int, positions: int) -> None:
        """What is measured on."""
        self._figures = {"device": device, "rows": rows, "positions": positions} | {
            key: self._figures[key] for key in ("parts", "left_out")
        }

    def lacking(self, parts: Sequence[str]) -> list[str]:
        """Those of some parts that are neither measured nor left out."""
        known = self._figures["parts"].keys() | self._figures["left_out"].keys()
        return [part for part in parts if part not in known]

    def add(self, part: str, change: Any, row: dict[str, Any]) -> None:
        """A change that is measured."""
        self._figures["parts"].setdefault(part, {})[change.name] = row
        more = "".join(f", {key.replace('_', ' ')} {value:.3g}" for key, value in change.figures.items())
        print(
            f"{change.name}: {row['before_ms']:.3f} ms before, {row['after_ms']:.3f} ms after, ratio "
            f"{row['ratio']:.2f}{more}",
            flush=True,
        )

    def leave_out(self, part: str, reason: str, silent: bool = False) -> None:
        """A part that is not measured, or not yet."""
        self._figures["left_out"][part] = reason
        if not silent:
            print(f"left out: {part}: {reason}", flush=True)
        self._write()

    def done(self, part: str, reason: str | None) -> None:
        """A part is at its end; what it has measured before a reason to leave it out stays."""
        del self._figures["left_out"][part]
        if reason is not None:
            self.leave_out(part, reason)
        self._write()

    def _write(self) -> None:
        with redirect_stdout(StringIO()):  # where the file lies needs to be said once
            result_file.write(self._path, self._figures, ("torch", "megatron-core"))


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
