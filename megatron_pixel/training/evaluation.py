"""Losses on the held-out rows, and pages with what the model predicted for them."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.mixture import HeldoutReader
from megatron_pixel.data.rows import Kind, Modality
from megatron_pixel.model.batch import Batch, to_tensors
from megatron_pixel.model.objectives import NextPatch, Objective, losses
from megatron_pixel.parallel.execution import Execution, Outputs
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.attention_probe import AttentionProbe
from megatron_pixel.training.losses import LossTotals
from megatron_pixel.training.pages import PredictedPage


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found."""

    losses: dict[str, float | None]
    """Keys as in metrics.jsonl, without prefix; each the mean over all held-out targets of its kind."""
    pages: list[PredictedPage]
    """The first held-out pages, on the ranks of data-parallel rank 0; in a pipeline on all ranks."""
    by_source: dict[str, float]
    """Losses by source."""


class Evaluator:
    """Runs the model over the held-out rows of every kind, the same rows each time, on all ranks.

    Args:
        execution: the model, in any layout; its weights stay as they are.
        reader: held-out rows, as many batches on every rank.
        objectives: what the model predicts.
        model: shape of the patches.
        mesh: where this process stands.
    """

    def __init__(
        self,
        execution: Execution,
        reader: HeldoutReader,
        objectives: Sequence[Objective],
        model: ModelConfig,
        mesh: Mesh,
    ) -> None:
        self._execution = execution
        self._reader = reader
        self._objectives = objectives
        self._shape = (model.patch_size, model.patch_size, model.num_channels)
        self._mesh = mesh

    def run(self, pages: int = 0, attention: int | None = None) -> Evaluation:
        """Evaluate; collective.

        Args:
            pages: pages to show with their predictions: of pixel rows, or of pair rows where there are none.
            attention: decoder layer, counted from 1, whose attention on these pages is wanted.
        """
        mesh = self._mesh
        totals = LossTotals(mesh.device, self._reader.source_names)
        shown: list[PredictedPage] = []
        with_pages = next((kind for kind in (Kind.PIXEL, Kind.PAIR) if self._reader.num_rows(kind)), None)
        probe = None
        if pages and attention is not None:
            probe = AttentionProbe(self._execution.module, attention, pages, mesh)

        def look(outputs: Outputs, batch: Batch) -> None:
            totals.add(batch.kind, losses(outputs, batch.labels, self._objectives), batch.rows)
            if batch.kind == with_pages and len(shown) < pages and mesh.data_rank == 0:
                shown.extend(self._predicted_pages(batch, outputs)[: pages - len(shown)])

        for kind in Kind:
            batches = (
                to_tensors(rows, self._objectives, mesh.device)
                for rows in self._reader.batches(kind, mesh.data_rank, mesh.data_size)
            )
            with probe.watching() if probe is not None and kind == with_pages else nullcontext():
                self._execution.evaluate(batches, self._reader.num_batches(kind, mesh.data_size), look)
        if pages and mesh.pipe_size > 1:
            # The last rank has seen them, the first one draws them.
            shown = [page for part in mesh.gather(shown) for page in part]
        if probe is not None:
            shown = [
                replace(page, attention=weights[: len(page.patches), : len(page.patches)], layer=attention)
                for page, weights in zip(shown, probe.maps(), strict=False)
            ]
        found = totals.collect(self._objectives, mesh)
        return Evaluation(found.by_kind, shown, found.by_source)

    def _predicted_pages(self, batch: Batch, outputs: Outputs) -> list[PredictedPage]:
        rows = batch.rows
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
