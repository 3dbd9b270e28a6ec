"""What a run leaves behind of itself: lines, curves, pictures, and what it says. Rank 0 writes, the others are mute."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_pixel.config.loader import to_dict
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.evaluation import Evaluation
from megatron_pixel.training.metrics import EVALUATION_KEYS, STEP_KEYS, MetricsLog, Record, curves
from megatron_pixel.training.pages import PredictedPage, save_pages
from megatron_pixel.training.progress import Progress, losses_line
from megatron_pixel.training.wandb_log import WandbLog

LOG_FILE = Path("logs", "pretrain.log")


class Recorder:
    """Everything that is written about a run while it goes on.

    Args:
        config: the checked config tree.
        restored_step: step that the run starts from, 0 for a fresh one.
        last: step that this process ends at.
        mesh: where this process stands; all ranks have a recorder, and all but the first are mute.
    """

    def __init__(self, config: RunConfig, restored_step: int, last: int, mesh: Mesh) -> None:
        self._config = config
        self._folder = Path(config.run.dir)
        self._between = {"checkpoint_stall_seconds": 0.0, "evaluation_seconds": 0.0}
        self._speaks = mesh.is_main
        if not self._speaks:
            return
        (self._folder / LOG_FILE).parent.mkdir(parents=True, exist_ok=True)
        self._metrics = MetricsLog(self._folder, restored_step, config.logging.every)
        self._log = (self._folder / LOG_FILE).open("a", encoding="utf-8")
        self._progress = Progress(config.training.steps, last, config.logging.progress_every, log=self._log)
        self._wandb: WandbLog | None = None
        if config.logging.wandb is not None:
            self._wandb = WandbLog(config.logging.wandb, self._folder, to_dict(config), self.note)

    def step(self, record: Record, last: bool) -> None:
        """A step, with what came between it and the one before; on all ranks."""
        histograms = record.pop("histograms", None)
        record |= self._between
        self._between = dict.fromkeys(self._between, 0.0)
        if not self._speaks:
            return
        self._metrics.step(record, last)
        step = int(record["step"])
        if histograms is not None:
            self._metrics.histograms(histograms, step)
        if self._wandb is not None and (step % self._config.logging.every == 0 or last):
            self._wandb.scalars(step, curves({key: record[key] for key in STEP_KEYS}))
        self._progress.step(record)

    def evaluation(self, step: int, found: Evaluation, seconds: float, now: float) -> None:
        """An evaluation that ended ``now`` (seconds since 1970) and took ``seconds``; on all ranks."""
        self._between["evaluation_seconds"] += seconds
        if not self._speaks:
            return
        record: Record = {"step": step, "time": now, "eval_loss_by_source": found.by_source}
        record |= {f"eval_{key}": value for key, value in found.losses.items()}
        self._metrics.evaluation(record)
        if self._wandb is not None:
            self._wandb.scalars(step, curves({key: record[key] for key in EVALUATION_KEYS}))
        self._pages(step, found.pages)
        self.note(f"step {step:,}: held-out {losses_line(record, 'eval_')}, {seconds:.1f} s")

    def stalled(self, seconds: float) -> None:
        """Training stood still for a checkpoint; on all ranks."""
        self._between["checkpoint_stall_seconds"] += seconds

    def note(self, text: str) -> None:
        """A line on the terminal and in the log."""
        if self._speaks:
            self._progress.note(text)

    def keep(self, text: str) -> None:
        """A line in the log alone."""
        if self._speaks:
            self._progress.finish()
            self._progress.keep(text)

    def close(self) -> None:
        """Flush and close everything; a second call does nothing."""
        if self._speaks:
            self._speaks = False
            self._progress.finish()
            self._metrics.close()
            if self._wandb is not None:
                self._wandb.close()
            self._log.close()

    def _pages(self, step: int, pages: Sequence[PredictedPage]) -> None:
        if not pages:
            return
        save_pages(self._folder, step, pages)
        for number, page in enumerate(pages):
            self._picture(f"heldout/page-{number}", page_picture(page, step, self._config), step)
            if page.attention is not None:
                self._picture(f"heldout/attention-{number}", np.asarray(attention_picture(page, step)), step)

    def _picture(self, name: str, image: np.ndarray, step: int) -> None:
        self._metrics.picture(name, image, step)
        if self._wandb is not None:
            self._wandb.picture(name, image, step)


def page_picture(page: PredictedPage, step: int, config: RunConfig) -> np.ndarray:
    """A held-out page, its prediction and its errors, uint8 [height, width, 3]."""
    from megatron_pixel.drawing import prediction_sheet  # a run without pictures does without Pillow

    sheet = prediction_sheet(
        page.patches,
        page.predictions,
        page.errors,
        title=f"step {step:,}: row {page.origin[1]:,} of {page.origin[0]}",
        patch_target=config.model.patch_target,
    )
    return np.asarray(sheet)


def attention_picture(page: PredictedPage, step: int) -> np.ndarray:
    """What the patches of a page look at, uint8 [height, width, 3]."""
    from megatron_pixel.model_pictures import attention_sheet

    assert page.attention is not None
    title = f"step {step:,}: attention of layer {page.layer}, row {page.origin[1]:,} of {page.origin[0]}"
    return np.asarray(attention_sheet(page.patches, page.attention, title=title))
