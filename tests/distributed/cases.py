"""What a run in some layout is, and what it gives back. Starts without torch: tests import it, ranks do the work."""

import dataclasses
from pathlib import Path

import numpy as np

from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import RunConfig

RECIPES = "megatron_pixel/config/recipes"
SMALL = """
    --model.layers=1 --model.hidden=32 --model.ffn=48 --model.vocab_size=64 --model.seq_length=16 --model.patch_size=4
    --pair.patches=8 --pair.tokens=8 --evaluation.rows=3 --logging.pages=0 --checkpoint.every=0 --evaluation.every=0
""".split()
Line = dict[str, float | None]
"""A line of metrics.jsonl."""
Layout = tuple[int, int, int]
"""Sizes of tensor, pipeline and data parallelism."""
ROWS = {"textgpt": 4, "pixelgpt": 4, "monogpt": 4, "dualgpt": 10}
"""Rows of a step: two data-parallel ranks get one micro-batch of each kind, at the least."""
WORDS = """
    --model.layers=3 --training.steps=5 --training.micro_batch_rows=1 --optimizer.weight_decay=0.1 --optimizer.lr=3e-3
    --optimizer.eps=1e-6
""".split()


@dataclasses.dataclass(frozen=True)
class Case:
    """One run."""

    system: str
    layout: Layout = (1, 1, 1)
    zero: str = "zero1"
    words: tuple[str, ...] = ()
    padding: int = 0
    """Positions of padding that every row gets at its end, besides those it has."""

    def __str__(self) -> str:
        parts = [self.system, "x".join(map(str, self.layout)), self.zero]
        parts += [word.removeprefix("--").partition(".")[2] for word in self.words]
        return " ".join(parts + ([f"padding={self.padding}"] if self.padding else []))

    def config(self, folder: Path) -> RunConfig:
        tensor, pipeline, _ = self.layout
        return load_config(
            f"{RECIPES}/{self.system}-debug.yaml",
            [
                *SMALL,
                *WORDS,
                f"--training.global_batch_rows={ROWS[self.system]}",
                f"--run.dir={folder / str(self).replace(' ', '_')}",
                f"--deepspeed_config=ds_configs/{self.zero}.json",
                f"--parallel.tensor={tensor}",
                f"--parallel.pipeline={pipeline}",
                *self.words,
            ],
        )


@dataclasses.dataclass(frozen=True)
class Share:
    """What one rank gives back of a case."""

    place: tuple[int, int, int]
    """Ranks along tensor, pipeline and data parallelism."""
    lines: list[Line]
    """metrics.jsonl."""
    weights: dict[str, np.ndarray]
    """float32, this rank's share."""
    split: dict[str, tuple[int, int]]
    """Dimension and stride of the parameters that are split over tensor-parallel ranks."""
