"""The record of a run: ``metrics.jsonl``, one line a step, and the same curves for TensorBoard. Rank 0 keeps it."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass

LOSS_KEYS = ("loss", "loss_token_text", "loss_token_pair", "loss_patch_pixel", "loss_patch_pair")
STEP_KEYS = (
    "step",
    *LOSS_KEYS,
    "lr",
    "grad_norm",
    "tokens",
    "patches",
    "seconds",
    "tokens_per_second",
    "patches_per_second",
    "tflops_per_device",
    "mfu",
    "memory_gb",
    "skipped_steps",
    "checkpoint_stall_seconds",
)
"""Keys of a step's line. ``tokens`` and ``patches`` count targets of the global batch; a loss without any is null."""
EVALUATION_KEYS = ("step", *(f"eval_{key}" for key in LOSS_KEYS))
"""Keys of an evaluation's line."""

Record = dict[str, float | int | None]

METRICS_FILE = "metrics.jsonl"
SUPERSEDED_FILE = "metrics.superseded.jsonl"


def finite_or_none(value: float | None) -> float | None:
    """JSON has no NaN: a value that is no finite number is written as null."""
    return value if value is not None and math.isfinite(value) else None


class MetricsLog:
    """Writes the lines of one run and its TensorBoard events.

    Args:
        folder: the run's folder.
        restored_step: step that the run starts from, 0 for a fresh one. Lines past it, left by a run that was cut off
            after its last checkpoint, are moved to ``metrics.superseded.jsonl`` and TensorBoard drops their points.
        every: steps between lines.
    """

    def __init__(self, folder: Path, restored_step: int, every: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        drop_after(folder, restored_step)
        self._every = max(1, every)
        self._file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        self._board: SummaryWriter = SummaryWriter(str(folder / "tensorboard"), purge_step=restored_step + 1)

    def step(self, record: Record, last: bool = False) -> None:
        """Write one step's line; steps between ``every`` are left out, the last one never."""
        step = int(record["step"] or 0)
        if step % self._every and not last:
            return
        self._write({key: record[key] for key in STEP_KEYS}, folder="train")

    def evaluation(self, record: Record) -> None:
        """Write an evaluation's own line."""
        self._write({key: record[key] for key in EVALUATION_KEYS}, folder="eval")

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Show a picture, uint8 [height, width, 3], in TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        """Flush both records."""
        self._file.close()
        self._board.close()

    def _write(self, record: Record, folder: str) -> None:
        line = {key: finite_or_none(value) for key, value in record.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        step = int(record["step"] or 0)
        for key, value in line.items():
            if value is not None and key != "step":
                self._board.add_scalar(f"{folder}/{key.removeprefix('eval_')}", value, step)
        self._board.flush()


def drop_after(folder: Path, step: int) -> int:
    """Move the lines of ``metrics.jsonl`` past ``step``, and a torn last line, aside; returns how many.

    The kept part is written beside the file and put in its place at once, so an interruption leaves one or the other.
    """
    path = folder / METRICS_FILE
    if not path.exists():
        return 0
    kept: list[str] = []
    dropped: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            late = json.loads(line)["step"] > step
        except (ValueError, KeyError, TypeError):
            late = True
        (dropped if late else kept).append(line + "\n")
    if dropped:
        with (folder / SUPERSEDED_FILE).open("a", encoding="utf-8") as aside:
            aside.writelines(dropped)
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as rewritten:
            rewritten.writelines(kept)
            rewritten.flush()
            os.fsync(rewritten.fileno())
        temporary.replace(path)
    return len(dropped)
