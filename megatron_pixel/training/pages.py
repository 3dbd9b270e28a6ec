"""Held-out pages with what the model predicted for them, as a run keeps them: arrays, drawn when somebody looks.

``<run>/pages/step-00000120.npz`` holds the pages of one evaluation. Starts without torch: reports read it too.
"""

import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_pixel.config.errors import UserError

PAGES_FOLDER = "pages"
_NAME = re.compile(r"step-(\d{8,})\.npz")


@dataclass(frozen=True)
class PredictedPage:
    """A held-out page and what the model saw coming, patch by patch; ``n`` patches."""

    origin: tuple[str, int]
    patches: np.ndarray
    """uint8 [n, P, P, C]."""
    predictions: np.ndarray
    """uint8 [n, P, P, C]: entry i is the prediction of patch i from those before it; zero where there is no target."""
    errors: np.ndarray
    """float32 [n]: the loss of each patch, NaN where there is no target."""
    attention: np.ndarray | None = None
    """float16 [n, n]: what patch i (row) looks at, mean over the heads of one layer; rows sum to 1."""
    layer: int | None = None
    """The layer of ``attention``, counted from 1."""


def save_pages(folder: Path, step: int, pages: Sequence[PredictedPage]) -> Path:
    """Write the pages of an evaluation, whole or not at all, below the run's folder."""
    path = folder / PAGES_FOLDER / f"step-{step:08d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    origins = []
    for number, page in enumerate(pages):
        origins.append({"source": page.origin[0], "row": page.origin[1], "layer": page.layer})
        arrays[f"{number}.patches"] = page.patches
        arrays[f"{number}.predictions"] = page.predictions
        arrays[f"{number}.errors"] = page.errors
        if page.attention is not None:
            arrays[f"{number}.attention"] = page.attention
    buffer = io.BytesIO()
    np.savez_compressed(buffer, origins=np.frombuffer(json.dumps(origins).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return path


def list_pages(folder: Path) -> list[tuple[int, Path]]:
    """The (step, file) of every evaluation that has pages, in order."""
    root = folder / PAGES_FOLDER
    if not root.is_dir():
        return []
    found = ((_NAME.fullmatch(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def load_pages(path: Path) -> list[PredictedPage]:
    """The pages of one evaluation.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [
                PredictedPage(
                    (origin["source"], origin["row"]),
                    arrays[f"{number}.patches"],
                    arrays[f"{number}.predictions"],
                    arrays[f"{number}.errors"],
                    arrays.get(f"{number}.attention"),
                    origin["layer"],
                )
                for number, origin in enumerate(json.loads(arrays["origins"].tobytes()))
            ]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} holds no pages that can be read: {error}; delete it") from error
