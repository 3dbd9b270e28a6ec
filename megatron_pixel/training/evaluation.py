"""Losses on the held-out rows, and pages with what the model predicted for them."""

from collections.abc import Sequence
from typing import Any

import torch

from megatron_pixel.data.mixture import HeldoutReader
from megatron_pixel.data.rows import Kind
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import Objective, losses
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.losses import LossTotals


class Evaluator:
    """Runs the model over the held-out rows of every kind, the same rows each time, on all data-parallel ranks.

    Args:
        module: the model; in evaluation mode while it runs here, its weights stay as they are.
        reader: held-out rows, as many batches on every rank.
        objectives: what the model predicts.
    """

    def __init__(
        self,
        module: Any,
        reader: HeldoutReader,
        objectives: Sequence[Objective],
        mesh: Mesh,
    ) -> None:
        self._module = module
        self._reader = reader
        self._objectives = objectives
        self._mesh = mesh

    @torch.no_grad()
    def losses(self) -> dict[str, float | None]:
        """Losses by key without prefix, each the mean over all held-out targets of its kind. Collective."""
        totals = LossTotals(self._mesh.device)
        self._module.eval()
        for kind in Kind:
            for rows in self._reader.batches(kind, self._mesh.data_rank, self._mesh.data_size):
                batch = to_tensors(rows, self._objectives, self._mesh.device)
                totals.add(kind, losses(self._module(batch.inputs), batch.labels, self._objectives))
        self._module.train()
        return totals.means(self._objectives, self._mesh.data_group)
