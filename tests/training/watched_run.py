"""A tiny run with everything switched on that watches it, and the gradients that autograd finds for its first step.

One start of a process for all tests that look at what it leaves behind.
"""

import os
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megatron_pixel.config.schema import RunConfig
from megatron_pixel.data.mixture import open_training
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import mesh
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training.run import Run
from tests.distributed.tiny_run import lines, tiny

LAYERS = 7
WORDS = (
    f"--model.layers={LAYERS}",
    "--training.steps=4",
    "--training.micro_batch_rows=1",
    "--training.global_batch_rows=10",
    "--profile.steps=3:4",
    "--logging.histograms=2",
    "--logging.attention=3",
    "--logging.pages=2",
    "--evaluation.every=2",
    "--logging.wandb=pixels",
)
FAKE_WANDB = """
import json, os, types

class Image:
    def __init__(self, image): self.shape = list(image.shape)

class Run:
    def log(self, values, step):
        shown = {name: value.shape if isinstance(value, Image) else value for name, value in values.items()}
        with open(os.environ["FAKE_WANDB_LOG"], "a") as file: file.write(json.dumps([step, shown]) + "\\n")
        if os.environ.get("FAKE_WANDB_FAILS") == "log": raise ConnectionError("no network")
    def finish(self): open(os.environ["FAKE_WANDB_LOG"], "a").write('"finished"\\n')

def init(**options):
    if os.environ.get("FAKE_WANDB_FAILS") == options.get("mode", "online"): raise ConnectionError("no network")
    with open(os.environ["FAKE_WANDB_LOG"], "a") as file: file.write(json.dumps(options) + "\\n")
    return Run()

util = types.SimpleNamespace(generate_id=lambda: "abc123")
"""


def install_fake_wandb(folder: Path) -> None:
    """A module that looks like wandb, and its log in ``folder/wandb.log``."""
    (folder / "modules").mkdir(parents=True, exist_ok=True)
    (folder / "modules" / "wandb.py").write_text(FAKE_WANDB)
    sys.path.insert(0, str(folder / "modules"))
    os.environ["FAKE_WANDB_LOG"] = str(folder / "wandb.log")


def watched(folder: str) -> dict[str, Any]:
    """Train; what the run wrote beside what autograd says."""
    silence_libraries()
    install_fake_wandb(Path(folder))
    config = tiny(Path(folder) / "run", *WORDS)
    with mesh(config.parallel) as here:
        truth = gradient_norms(config)
        with Run(config, here) as run:
            run.train()
            hooks = len(run._engine.optimizer.optimizer._optimizer_step_pre_hooks)
    return {"truth": truth, "lines": lines(config.run.dir), "hooks": hooks}


def gradient_norms(config: RunConfig) -> dict[str, float]:
    """Norms by stage of the first step's gradient, by autograd over all of its rows."""
    objectives = pretraining_objectives(config.model, config.loss)
    model = nn.Sequential(*build_stages(config.model, objectives, config.training.seed))
    reader = open_training(config.data, config.model, config.pair, config.training, 1)
    sums: dict[str, Any] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for index in range(reader.num_micro_batches(1)):
        batch = to_tensors(reader.micro_batch(0, index, 0, 1), objectives)
        for name, term in losses(model(batch.inputs), batch.labels, objectives).items():
            sums[name] += term.sum
            counts[name] += term.count
    torch.stack([sums[objective.name] / counts[objective.name] for objective in objectives]).sum().backward()
    squares: dict[str, float] = defaultdict(float)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            squares[name] = float(parameter.grad.double().square().sum())

    def norm(*beginnings: str) -> float:
        return sum(square for name, square in squares.items() if name.startswith(beginnings)) ** 0.5

    found = {"embedding_tokens": norm("0.tokens."), "embedding_patches": norm("0.patches.")}
    for first in range(1, LAYERS + 1, 2):  # seven layers make four groups of two at the most
        last = min(first + 1, LAYERS)
        name = f"layers_{first}-{last}" if last > first else f"layers_{first}"
        found[name] = norm(*(f"{layer}." for layer in range(first, last + 1)))
    found["norm"] = norm(f"{LAYERS + 1}.")
    found |= {f"head_{name}": norm(f"{LAYERS + 2}.heads.{name}.") for name in ("token", "patch")}
    return found
