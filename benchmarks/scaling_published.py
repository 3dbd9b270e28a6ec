#!/usr/bin/env python
"""How far is the roofline off? Its predictions beside training throughput that others have published.

    python benchmarks/scaling_published.py
    python benchmarks/scaling_published.py --rows
    python benchmarks/scaling_published.py --fit

Rows, sources and what each of them sends are in benchmarks/published_runs.yaml. The constants of the roofline are
fitted on the models named in `FITTED` and judged on all others, which they have not seen; `--fit` fits them again and
prints what it finds, which megatron_pixel/planning/constants.py then holds.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import exp, log
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from megatron_pixel.config.schema import ModelConfig, PairConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.communication import Traffic, traffic
from megatron_pixel.planning.constants import Constants
from megatron_pixel.planning.devices import Device, find_device
from megatron_pixel.planning.setting import Setting, Zero
from megatron_pixel.planning.speed import speed

RUNS = ROOT / "benchmarks" / "published_runs.yaml"
FITTED = ("mpt-125m", "mpt-760m", "mpt-3b", "mpt-13b", "mpt-70b", "llama-7b")
"""Models whose rows the constants are fitted on."""
ZERO_1 = Zero(1, False, True, *(10**9,) * 6)


@dataclass(frozen=True)
class Run:
    """A published row."""

    table: Mapping[str, Any]
    """Without its rows."""
    model: str
    shape: Mapping[str, Any]
    length: int
    gpus: int
    tensor: int
    rows: int
    """Of a micro-batch."""
    micro_batches: int
    recompute: str
    tokens_per_second: float

    @property
    def fitted(self) -> bool:
        """Whether the constants have seen it."""
        return self.model in FITTED

    @property
    def seconds(self) -> float:
        """Of a step, as published."""
        data = self.gpus // self.tensor
        return data * self.rows * self.micro_batches * self.length / self.tokens_per_second

    @cached_property
    def device(self) -> Device:
        """That it ran on."""
        return find_device(self.table["device"])

    @cached_property
    def setting(self) -> Setting:
        """The same model in this project, sharded likewise."""
        model = ModelConfig(**self.shape, seq_length=self.length)
        layers = range(1, model.layers + 1) if self.recompute == "all" else ()
        return Setting(
            model=model,
            pair=PairConfig(),
            tensor=self.tensor,
            pipeline=1,
            data=self.gpus // self.tensor,
            boundaries=[0, model.layers + 3],
            node=self.table["node"],
            zero=replace(ZERO_1, stage=3),
            touch_all=False,
            bf16=True,
            communication=self.table["gradient_bytes"],
            kinds=(Kind.TEXT,) * self.micro_batches,
            rows=self.rows,
            recompute=frozenset(layers),
            sequence_parallel=self.tensor > 1,
            losses_by_source=0,
            end_patch=False,
        )

    @cached_property
    def parts(self) -> list[Traffic]:
        """What a rank sends in a step."""
        setting, table, batches = self.setting, self.table, self.micro_batches
        layers = setting.model.layers
        values = sum(p.share(self.tensor) for p in setting.parameters if p.used_by(tokens=True, patches=False))
        found = [part for part in traffic(replace(setting, zero=ZERO_1), 0) if part.kind in ("tensor", "loss")]
        if "tensor_gathers" in table and self.tensor > 1:
            hidden = 2 * setting.positions * setting.model.hidden
            for operation, count in (("all_gather", "tensor_gathers"), ("reduce_scatter", "tensor_scatters")):
                times = batches * layers * table[count]
                found.append(Traffic("tensor", operation, "tensor", times * hidden, times))
            found = [part for part in found if part.kind != "tensor" or part in found[-2:]]
        if setting.data > 1:
            times = batches * table["gathers"]
            found.append(Traffic("weights", "all_gather", "data", 2 * times * values, times * (layers + 1)))
            times = batches if table["reduce_every"] else 1
            size = table["gradient_bytes"] * times * values
            found.append(Traffic("gradients", "reduce_scatter", "data", size, times * (layers + 1)))
        return found

    def predicted(self, constants: Constants) -> float:
        """Seconds of a step."""
        return speed(self.setting, self.device, constants, [self.parts]).seconds


def read(path: Path = RUNS) -> list[Run]:
    """All rows."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = []
    for entry in content["tables"]:
        table = {key: value for key, value in entry.items() if key != "rows"}
        for model, *row in entry["rows"]:
            found.append(Run(table, model, content["models"][model], *row))
    return found


@dataclass(frozen=True)
class Error:
    """Predictions of some rows, over what was published."""

    ratios: Sequence[float]

    def __str__(self) -> str:
        low, high = min(self.ratios), max(self.ratios)
        ratios = f"{statistics.median(self.ratios):5.2f}  {low:5.2f} .. {high:4.2f}"
        return f"{len(self.ratios):4} rows  {ratios}  {self.median:6.1%}  {self.worst:6.1%}"

    @property
    def errors(self) -> list[float]:
        """By how much predictions are off, as shares of what was published."""
        return sorted(abs(ratio - 1) for ratio in self.ratios)

    @property
    def median(self) -> float:
        """Of the errors."""
        return statistics.median(self.errors)

    @property
    def worst(self) -> float:
        """Of the errors."""
        return self.errors[-1]

    def describe(self) -> dict[str, float]:
        """For JSON."""
        return {
            "rows": len(self.ratios),
            "median_of_predicted_to_published": statistics.median(self.ratios),
            "least_predicted_to_published": min(self.ratios),
            "most_predicted_to_published": max(self.ratios),
            "median_error": self.median,
            "nine_of_ten_error": self.errors[int(0.9 * len(self.errors))],
            "worst_error": self.worst,
        }


def errors(runs: Sequence[Run], constants: Constants | None = None) -> dict[str, Error]:
    """By table, then of the rows that the constants were fitted on, and of all others."""
    ratios = [run.predicted(constants or Constants()) / run.seconds for run in runs]
    groups: dict[str, list[float]] = {}
    for run, ratio in zip(runs, ratios, strict=True):
        groups.setdefault(run.table["title"], []).append(ratio)
    for run, ratio in zip(runs, ratios, strict=True):
        groups.setdefault(SEEN if run.fitted else UNSEEN, []).append(ratio)
    return {name: Error(found) for name, found in groups.items()}


SEEN, UNSEEN = "rows that the constants were fitted on", "all other rows"
FREE = ("attention", "traffic", "node", "network", "hidden")
"""Constants that are fitted, besides a device's efficiency, one for Ampere and one for Hopper."""
WEIGHT = {"llama-7b": 4.0}
"""Of a row in the fit: few rows tell of tensor parallelism, and of compiled layers."""


def fit(runs: Sequence[Run]) -> dict[str, float]:
    """Constants that make the mean of |log(predicted / published)| least over the rows of ``FITTED``.

    Coordinate by coordinate, in steps that become smaller: the same rows give the same constants.
    """
    seen = [run for run in runs if run.fitted]

    def cost(values: Mapping[str, float]) -> float:
        shared: dict[str, Any] = {name: values[name] for name in FREE}
        total = weights = 0.0
        for run in seen:
            constants = Constants(efficiency=values[_generation(run.device)], **shared)
            weight = WEIGHT.get(run.model, 1.0)
            total += weight * abs(log(run.predicted(constants) / run.seconds))
            weights += weight
        return total / weights

    values = {
        "Ampere": 0.7,
        "Hopper": 0.6,
        "attention": 0.5,
        "traffic": 8.0,
        "node": 0.7,
        "network": 0.5,
        "hidden": 0.7,
    }
    best, step = cost(values), 0.2
    while step > 0.005:
        moved = False
        for name in values:
            for factor in (1 + step, 1 / (1 + step)):
                value = values[name] * factor
                tried = {**values, name: value if name == "traffic" else min(value, 1.0)}
                found = cost(tried)
                if found < best - 1e-6:
                    best, values, moved = found, tried, True
        if not moved:
            step /= 2
            print(f"  step {step:.3f}  mean error {exp(best) - 1:.2%}", flush=True)
    return values


def _generation(device: Device) -> str:
    return "Ampere" if device.title.startswith("A100") else "Hopper"


def table(found: Mapping[str, Error]) -> str:
    """A line for each group of rows."""
    width = max(map(len, found))
    head = (
        f"{'predicted / published seconds of a step':{width}}            median  least .. most  error: median   worst"
    )
    return "\n".join([head, *(f"{name:{width}}  {error}" for name, error in found.items())])


def row_table(runs: Sequence[Run]) -> str:
    """A line for each row."""
    lines = ["model        positions  GPUs  tensor  micro-batch  recomputed     published  predicted  ratio"]
    for run in runs:
        predicted = run.predicted(Constants())
        lines.append(
            f"{run.model:12} {run.length:9,}  {run.gpus:4}  {run.tensor:6}  {run.rows:4} x {run.micro_batches:<4}  "
            f"{run.recompute:10}  {run.seconds:10.3f} s  {predicted:7.3f} s  {predicted / run.seconds:5.2f}"
            + ("  fitted" if run.fitted else "")
        )
    return "\n".join(lines)


def main() -> None:
    """Predict, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", action="store_true", help="show every row")
    parser.add_argument("--fit", action="store_true", help="fit the constants again, in about a minute, and show them")
    result_file.add_json_argument(parser)
    options = parser.parse_args()
    runs = read()
    if options.fit:
        for name, value in fit(runs).items():
            print(f"{name:10} {value:.3f}")
        return
    found = errors(runs)
    print(row_table(runs) + "\n\n" + table(found) if options.rows else table(found))
    figures = {
        "tables": {name: error.describe() for name, error in found.items() if name not in (SEEN, UNSEEN)},
        "fitted": found[SEEN].describe(),
        "unseen": found[UNSEEN].describe(),
        "rows": [
            {
                "source": run.table["source"],
                "model": run.model,
                "positions": run.length,
                "gpu": run.table["device"],
                "gpus": run.gpus,
                "tensor": run.tensor,
                "published_s": run.seconds,
                "predicted_s": run.predicted(Constants()),
                "fitted": run.fitted,
            }
            for run in runs
        ],
    }
    result_file.write(options.json, figures)


if __name__ == "__main__":
    main()
