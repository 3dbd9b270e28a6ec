"""The same curves and pictures for Weights & Biases, behind one setting. Nothing of a run depends on it.

The package is no requirement of this project. Where its service cannot be reached the run is kept on disk, in
``<run>/wandb``, and ``wandb sync`` sends it later; ``WANDB_MODE=offline`` asks for that from the start.
"""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from megatron_pixel.config.errors import UserError

ID_FILE = "wandb_id"


def check_wandb(project: str | None) -> None:
    """Refuse ``logging.wandb`` where the package is missing; for all ranks, before anything is built.

    Raises:
        UserError: says how to install it, or to do without.
    """
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"logging.wandb is {project}, but the package wandb is not installed here: pip install wandb, or leave the "
            "setting out (null); metrics.jsonl and TensorBoard are written in any case"
        )


class WandbLog:
    """One run at Weights & Biases; a run that resumes goes on under the same id.

    An error of the service never ends the training: the first one is told, and nothing is sent after it.

    Args:
        project: where the run is listed.
        folder: of the run.
        config: all settings, nested.
        note: shows a line.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any], note: Callable[[str], None]) -> None:
        check_wandb(project)
        import wandb

        self._wandb: Any = wandb
        self._note = note
        path = folder / ID_FILE
        known = path.read_text(encoding="utf-8").strip() if path.is_file() else None
        options = {"project": project, "name": folder.name, "dir": str(folder), "config": dict(config)}
        options |= {"id": known or wandb.util.generate_id(), "resume": "allow"}
        self._run = self._open(options)
        if self._run is not None:
            path.write_text(f"{options['id']}\n", encoding="utf-8")

    def scalars(self, step: int, curves: Iterable[tuple[str, float]]) -> None:
        """Add a point to each curve."""
        self._attempt(lambda run: run.log(dict(curves), step=step))

    def picture(self, name: str, image: np.ndarray, step: int) -> None:
        """Show a picture, uint8 [height, width, 3]."""
        self._attempt(lambda run: run.log({name: self._wandb.Image(image)}, step=step))

    def close(self) -> None:
        """Send what is left."""
        self._attempt(lambda run: run.finish())
        self._run = None

    def _open(self, options: Mapping[str, Any]) -> Any:
        try:
            return self._wandb.init(**options)
        except Exception as error:
            self._note(f"logging.wandb: {_told(error)}; kept in {options['dir']}/wandb for `wandb sync`")
        try:
            return self._wandb.init(**options, mode="offline")
        except Exception as error:
            self._note(f"logging.wandb: {_told(error)}; switched off")
            return None

    def _attempt(self, work: Callable[[Any], Any]) -> None:
        if self._run is None:
            return
        try:
            work(self._run)
        except Exception as error:
            self._note(f"logging.wandb: {_told(error)}; nothing more is sent")
            self._run = None


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
