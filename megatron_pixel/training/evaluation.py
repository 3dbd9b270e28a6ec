"""Losses on the held-out rows, and pages with what the model predicted for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.mixture import HeldoutReader
from megatron_pixel.data.rows import Kind, MicroBatch, Modality
from megatron_pixel.model.batch import Batch, to_tensors
from megatron_pixel.model.objectives import NextPatch, Objective, losses
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.losses import LossTotals


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


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    losses: dict[str, float | None]
    """Keys as in metrics.jsonl, without prefix; each the mean over all held-out targets of its kind."""
    pages: list[PredictedPage]
    """The first held-out pages, on data-parallel rank 0."""


class Evaluator:
    """Runs the model over the held-out rows of every kind, the same rows each time, on all ranks.

    Args:
        module: the model; in evaluation mode while it runs here, its weights stay as they are.
        reader: held-out rows, as many batches on every rank.
        objectives: what the model predicts.
        model: shape of the patches.
        mesh: where this process stands.
    """

    def __init__(
        self, module: Any, reader: HeldoutReader, objectives: Sequence[Objective], model: ModelConfig, mesh: Mesh
    ) -> None:
        self._module = module
        self._reader = reader
        self._objectives = objectives
        self._shape = (model.patch_size, model.patch_size, model.num_channels)
        self._mesh = mesh

    @torch.no_grad()
    def run(self, pages: int = 0) -> Evaluation:
        """Evaluate; collective.

        Args:
            pages: pages to show with their predictions: of pixel rows, or of pair rows where there are none.
        """
        totals = LossTotals(self._mesh.device)
        shown: list[PredictedPage] = []
        with_pages = next((kind for kind in (Kind.PIXEL, Kind.PAIR) if self._reader.num_rows(kind)), None)
        self._module.eval()
        for kind in Kind:
            for rows in self._reader.batches(kind, self._mesh.data_rank, self._mesh.data_size):
                batch = to_tensors(rows, self._objectives, self._mesh.device)
                outputs = self._module(batch.inputs)
                totals.add(kind, losses(outputs, batch.labels, self._objectives))
                if kind == with_pages and len(shown) < pages and self._mesh.data_rank == 0:
                    shown += self._predicted_pages(rows, batch, outputs)[: pages - len(shown)]
        self._module.train()
        return Evaluation(totals.means(self._objectives, self._mesh.data_group), shown)

    def _predicted_pages(
        self, rows: MicroBatch, batch: Batch, outputs: tuple[torch.Tensor, ...]
    ) -> list[PredictedPage]:
        place = next(i for i, objective in enumerate(self._objectives) if isinstance(objective, NextPatch))
        objective = self._objectives[place]
        assert isinstance(objective, NextPatch)
        assert rows.patches is not None
        positions = batch.labels.targets[place][: batch.counts[objective.name]]
        if not len(positions):
            return []
        errors = objective.loss(outputs[place], objective.targets(batch.labels, positions)).cpu().numpy()
        pixels = objective.to_pixels(outputs[place], batch.labels, positions).cpu().numpy()
        b, s = rows.modality.shape
        all_errors = np.full((b, s), np.nan, np.float32)
        all_pixels = np.zeros((b, s, pixels.shape[1]), np.uint8)
        predicted = positions.cpu().numpy() + 1
        all_errors.reshape(-1)[predicted] = errors
        all_pixels.reshape(b * s, -1)[predicted] = pixels
        pages = []
        for row, origin in enumerate(rows.rows):
            shown = rows.modality[row] == Modality.PATCH
            if shown.any():
                patches, predictions = (
                    values[row][shown].reshape(-1, *self._shape) for values in (rows.patches, all_pixels)
                )
                pages.append(PredictedPage(origin, patches, predictions, all_errors[row][shown]))
        return pages
