"""The record of a run: ``metrics.jsonl``, one line a step, and the same curves for TensorBoard. Rank 0 keeps it."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from megatron_pixel.training.gradients import Histograms

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
    "rows_digest",
    "checkpoint_stall_seconds",
    "evaluation_seconds",
    "data_seconds",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "pipeline_seconds",
    "time",
    "loss_by_source",
    "grad_norm_by_stage",
)
"""Keys of a step's line. ``tokens`` and ``patches`` count targets of the global batch; a loss without any is null."""
EVALUATION_KEYS = ("step", *(f"eval_{key}" for key in LOSS_KEYS), "eval_loss_by_source", "time")
"""Keys of an evaluation's line."""
SPEEDS = ("tokens_per_second", "patches_per_second", "tflops_per_device", "mfu", "memory_gb")

Record = dict[str, Any]
"""A line: numbers, null, and objects of numbers (``loss_by_source``, ``grad_norm_by_stage``)."""

METRICS_FILE = "metrics.jsonl"
SUPERSEDED_FILE = "metrics.superseded.jsonl"


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: a value that is no finite number is written as null, also inside an object."""
    if isinstance(value, dict):
        return {key: finite_or_none(entry) for key, entry in value.items()}
    return value if value is not None and math.isfinite(value) else None


def curves(line: Record) -> Iterator[tuple[str, float]]:
    """The (name, value) of each curve that a line continues: ``train/loss``, ``gradients/norm``, ``time/seconds``."""
    part = "eval" if any(key.startswith("eval_") for key in line) else "train"
    for key, value in line.items():
        key = key.removeprefix("eval_")
        if key in ("step", "time", "rows_digest") or value is None:
            continue
        if isinstance(value, dict):
            folder = f"{part}_sources" if key == "loss_by_source" else "gradients"
            yield from ((f"{folder}/{name}", entry) for name, entry in value.items() if entry is not None)
        elif key in SPEEDS:
            yield f"speed/{key}", value
        elif key.endswith("seconds"):
            yield f"time/{key}", value
        else:
            yield f"{part}/{key}", value


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
        self._write({key: record[key] for key in STEP_KEYS})

    def evaluation(self, record: Record) -> None:
        """Write an evaluation's own line."""
        self._write({key: record[key] for key in EVALUATION_KEYS})

    def histograms(self, found: "Histograms", step: int) -> None:
        """Show histograms of all ranks together in TensorBoard."""
        edges = found.edges.numpy()
        for place, kind in enumerate(found.KINDS):
            for stage, name in enumerate(found.names):
                counts = found.counts[place, stage].numpy()
                filled = np.flatnonzero(counts)
                if not len(filled):
                    continue
                low, high = int(filled[0]), int(filled[-1])
                # Values above the last edge are shown with it, so every bin has a right end.
                ends = np.append(edges, edges[-1] * 10)[low : high + 1]
                total, squares = found.moments[place, stage].tolist()
                self._board.add_histogram_raw(
                    f"{kind}/{name}",
                    min=float(edges[max(low - 1, 0)]),
                    max=float(ends[-1]),
                    num=float(counts.sum()),
                    sum=total,
                    sum_squares=squares,
                    bucket_limits=ends.tolist(),
                    bucket_counts=counts[low : high + 1].tolist(),
                    global_step=step,
                )

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Show a picture, uint8 [height, width, 3], in TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")
        self._board.flush()

    def close(self) -> None:
        """Flush both records."""
        self._file.close()
        self._board.close()

    def _write(self, record: Record) -> None:
        line = {key: finite_or_none(value) for key, value in record.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in curves(line):
            self._board.add_scalar(name, value, int(record["step"]))
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
