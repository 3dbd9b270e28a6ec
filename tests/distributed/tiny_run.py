"""Tiny runs on made-up rows for the tests of this folder: what happens in each rank."""

import json
from collections.abc import Sequence
from pathlib import Path

from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training.run import Run
from tests.distributed.cases import RECIPES, SMALL, Line
from tests.distributed.harness import sign_of_life

RECIPE = f"{RECIPES}/dualgpt-debug.yaml"


def tiny(folder: Path | str, *words: str) -> RunConfig:
    """The DualGPT debug recipe, smaller still, in ``folder``."""
    return load_config(RECIPE, [*SMALL, f"--run.dir={folder}", *words])


def train(config: RunConfig, here: Mesh) -> list[Line]:
    """Run to the end; the lines of metrics.jsonl, on rank 0 those that this call added."""
    sign_of_life()
    before = len(lines(config.run.dir))
    with Run(config, here) as run:
        run.train()
    return lines(config.run.dir)[before:]


def lines(folder: Path | str) -> list[Line]:
    """The lines of metrics.jsonl."""
    path = Path(folder, "metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curves(folder: str, variants: dict[str, Sequence[str]]) -> dict[str, list[Line]]:
    """What each variant of the tiny run writes, in this rank; one process group for all of them."""
    silence_libraries()
    with mesh(tiny(folder).parallel) as here:
        return {name: train(tiny(f"{folder}/{name}", *words), here) for name, words in variants.items()}
