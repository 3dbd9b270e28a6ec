"""What the classifier says of a split: its outputs in the order of the examples, on every rank."""

from typing import Any

import numpy as np
import torch

from megatron_pixel.finetuning.batches import RowBuilder, evaluation_batches
from megatron_pixel.finetuning.classifier import Score
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.parallel.mesh import Mesh


@torch.no_grad()
def outputs_of(network: Any, rows: RowBuilder, score: Score, width: int, batch_rows: int, mesh: Mesh) -> np.ndarray:
    """Run the classifier over all examples of a split; collective.

    Args:
        network: takes model inputs; put back into training mode afterwards.
        rows: of the split.
        score: the classifier's prediction.
        width: outputs of an example.
        batch_rows: rows of a forward pass.
        mesh: where this process stands.

    Returns:
        float32 [n, width].
    """
    network.eval()
    found = np.zeros((len(rows.lengths), width), np.float32)
    mine = evaluation_batches(rows.lengths, batch_rows, mesh.data_rank, mesh.data_size)
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for indexes in mine:
        batch = to_tensors(rows.batch(indexes), [score], mesh.device)
        outputs = network(batch.inputs)[0]
        shown = indexes[indexes >= 0]
        if len(shown):
            parts.append((shown, outputs.float().cpu().numpy()))
    network.train()
    for indexes, values in (part for rank in mesh.gather(parts) for part in rank):
        found[indexes] = values
    return found
