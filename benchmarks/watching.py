#!/usr/bin/env python
"""What it costs to watch a run: processor time of steps with and without everything that is recorded of them.

    python benchmarks/watching.py
    python benchmarks/watching.py --steps 200 --json watching.json

One tiny run on made-up rows takes its steps in turn as a run takes them (losses by kind and source, gradient norms by
stage, the time of the parts, metrics.jsonl and TensorBoard) and bare: the same loop with the losses by kind alone, and
nothing written. Steps alternate, so both sides meet the same machine; processor time leaves out what others use. The
model is that of the debug recipes, so the share is larger than that of any real run.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron_pixel.parallel.quiet import silence_libraries

silence_libraries()

import torch

from benchmarks.result_file import add_json_argument, write
from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.config.loader import load_config
from megatron_pixel.model.objectives import Objective
from megatron_pixel.parallel.clock import Clock
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.training.feeding import Feeder
from megatron_pixel.training.guarding import Guards
from megatron_pixel.training.loop import Trainer
from megatron_pixel.training.losses import LossTotals
from megatron_pixel.training.observation import RANK_COLUMNS, Observer, Seen
from megatron_pixel.training.recorder import Recorder
from megatron_pixel.training.run import Run

RECIPE = ROOT / "megatron_pixel" / "config" / "recipes" / "dualgpt-debug.yaml"
WARM_UP = 6


def main(words: Sequence[str]) -> None:
    """Measure, and print a small table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of each side (default: %(default)s)")
    add_json_argument(parser)
    arguments = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), arguments.steps)
    print(f"{'':28}{'ms of processor time a step':>28}")
    for side in ("bare", "watched"):
        print(f"{side:28}{figures[side]['milliseconds']:28.2f}")
    print(f"{'watching':28}{figures['cost_milliseconds']:28.2f}   {figures['cost_share']:.1%} of this tiny step")
    for part, milliseconds in figures["parts"].items():
        print(f"  {part:26}{milliseconds:28.2f}")
    write(arguments.json, figures, ("torch", "deepspeed", "tensorboard"))


def measure(folder: Path, steps: int) -> dict[str, Any]:
    """Median processor time of a step of each side, and of what is done between steps."""
    total = 2 * steps + WARM_UP
    options = [f"--run.dir={folder / 'run'}", f"--training.steps={total}", "--logging.progress_every=1000000"]
    config = load_config(RECIPE, options)
    with mesh(config.parallel) as here, contextlib.redirect_stdout(io.StringIO()), Run(config, here) as run:
        execution, guards = run._execution, Guards(config.guards, folder / "run", here)
        # Every kind with a second source, which makes losses by source work for their figures.
        sources = {kind: [*names, f"{names[0]}-more"] for kind, names in run._reader.source_names.items()}
        clocks = {"bare": NoClock(), "watched": execution.clock}
        feeder = Feeder(run._objectives, config.loss.end_patch, here.device)
        recorder = Recorder(load_config(RECIPE, [*options, f"--run.dir={folder / 'record'}"]), 0, total, here)
        times: dict[str, list[float]] = {"bare": [], "watched": [], "record": []}
        for step in range(1, total + 1):
            side = ("bare", "watched")[step % 2]
            execution.clock = clocks[side]
            observer: Any = Bare(run._objectives, here)
            if side == "watched":
                observer = Observer(execution, run._objectives, config.model, config.training.precision, here, sources)
            trainer = Trainer(
                execution, run._objectives, config.training, config.optimizer, here, feeder, observer, guards
            )
            batches = [run._reader.micro_batch(step - 1, index, 0, 1) for index in range(len(run._kinds))]
            begin = time.process_time()
            end = trainer.step(step, batches)
            stepped = time.process_time()
            if side == "watched":
                end.record["rows_digest"] = None
                recorder.step(end.record, last=False)
            if step > WARM_UP:
                times[side].append(stepped - begin)
                if side == "watched":
                    times["record"].append(time.process_time() - stepped)
            observer.close()
        recorder.close()
        guards.close()
    middle = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    within = middle["watched"] - middle["bare"]
    return {
        "steps": steps,
        "micro_batches": len(run._kinds),
        "bare": {"milliseconds": middle["bare"]},
        "watched": {"milliseconds": middle["watched"] + middle["record"]},
        "cost_milliseconds": within + middle["record"],
        "cost_share": (within + middle["record"]) / middle["bare"],
        "parts": {"within the step": within, "writing it down": middle["record"]},
    }


class NoClock(Clock):
    """Counts nothing."""

    def part(self, name: str, trace: str | None = None, on_host: bool = False) -> Any:
        return nullcontext()


class Bare:
    """The loss by kind and nothing else, behind the interface of the observer."""

    probe = 0.0

    def __init__(self, objectives: Sequence[Objective], here: Mesh) -> None:
        self._objectives, self._mesh = objectives, here

    def begin(self, step: int) -> LossTotals:
        return LossTotals(self._mesh.device)

    def collect(self, totals: LossTotals) -> Seen:
        losses = totals.collect(self._objectives, self._mesh)
        return Seen(losses, torch.zeros(1), torch.zeros(self._mesh.world_size, len(RANK_COLUMNS)), None)

    def record(self, step: int, seen: Seen, *_: Any) -> dict[str, Any]:
        return {"step": step, **seen.losses.by_kind}

    def close(self) -> None:
        pass


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
