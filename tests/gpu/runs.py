"""Short runs on made-up rows, on whatever device this process sees. As a program: all cases, on the device it is given.

python tests/gpu/runs.py FOLDER
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import RunConfig

ROOT = Path(__file__).resolve().parents[2]
KINDS = {"text": "1:0:0", "pixel": "0:1:0", "pair": "0:0:1", "mix": "4:4:2"}
PRECISIONS = ("fp32", "bf16")
STEPS = 3
SHORT = (f"--training.steps={STEPS}", "--evaluation.rows=0", "--evaluation.every=0", "--checkpoint.every=0")


def config_of(folder: Path, words: Sequence[str]) -> RunConfig:
    """DualGPT's debug recipe with other settings."""
    recipe = ROOT / "megatron_pixel" / "config" / "recipes" / "dualgpt-debug.yaml"
    return load_config(recipe, [f"--run.dir={folder}", *words])


def train(folder: Path, words: Sequence[str]) -> list[dict[str, Any]]:
    """Train in this process; the lines of the steps in metrics.jsonl."""
    from megatron_pixel.parallel.mesh import mesh
    from megatron_pixel.training.run import Run

    config = config_of(folder, words)
    with mesh(config.parallel) as here, Run(config, here) as run:
        run.train()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [line for line in lines if "lr" in line]


def words_of(kind: str, precision: str) -> list[str]:
    """Settings of a case."""
    return [*SHORT, f"--data.mixture={KINDS[kind]}", f"--training.precision={precision}"]


def main(folder: Path) -> None:
    """All cases, each in a folder of its own."""
    for kind in KINDS:
        for precision in PRECISIONS:
            train(folder / f"{kind}-{precision}", words_of(kind, precision))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
