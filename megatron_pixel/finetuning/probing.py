"""What a frozen model's layers hold: a linear classifier on the states of each, beside one on random weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.finetuning.batches import RowBuilder, evaluation_batches
from megatron_pixel.finetuning.classifier import Score, build_classifier
from megatron_pixel.finetuning.inference import BATCH_ROWS, last_states
from megatron_pixel.finetuning.inputs import open_inputs
from megatron_pixel.finetuning.metrics import majority
from megatron_pixel.finetuning.origin import find_start
from megatron_pixel.finetuning.tasks import open_task
from megatron_pixel.finetuning.weights import load_start
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.parallel.mesh import Mesh, mesh

RIDGES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Penalties that are tried; a fifth of the training split chooses one."""


def ridge(states: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Weights of a ridge regression with a constant: float64 [d + 1, k] from [n, d] and [n, k]."""
    x = np.concatenate([states, np.ones((len(states), 1))], axis=1).astype(np.float64)
    gram = x.T @ x
    gram[np.arange(len(gram) - 1), np.arange(len(gram) - 1)] += penalty  # the constant is free
    return np.linalg.solve(gram, x.T @ targets)


def apply(weights: np.ndarray, states: np.ndarray) -> np.ndarray:
    """[n, k] of :func:`ridge`'s weights."""
    return states @ weights[:-1] + weights[-1]


def probe(config: FinetuningConfig, show: Callable[[str], None] = print) -> dict[str, Any]:
    """Fit a probe on every layer of a pretrained model, and of the same model with random weights.

    A probe is a ridge regression from the state at the last real position and the mean of all states, each dimension
    standardized, to the class (one-hot) or the score.

    Returns:
        ``{"metric", "split", "majority", "pretrained": [score by layer], "random": [...]}``; entry 0 is the embedding.

    Raises:
        UserError: as a fine-tuning run with the same settings does.
    """
    with mesh(ParallelConfig()) as here:
        start = find_start(config.checkpoint)
        inputs = open_inputs(config, start)
        task, data = open_task(config.task, config.examples)
        split = data.evaluation[0]
        labels, held = data.train.labels, split.labels
        assert labels is not None
        assert held is not None
        rows = [inputs.rows(part)[0] for part in (data.train, split)]
        width = 1 if task.is_score else len(data.classes or ())
        targets = labels[:, None].astype(np.float64) if task.is_score else np.eye(width)[labels]
        show(f"{task.title}, modality {config.modality}, {start.where} ({start.system}); {task.metric} of {split.name}")
        found: dict[str, list[float]] = {}
        for weights in ("pretrained", "random"):
            network = build_classifier(inputs.model, Score(config.modality, width), config.training.seed).to(
                here.device
            )
            if weights == "pretrained":
                load_start(network, start, inputs.model, data.classes, "new")
            states = [_states(network, part, config.modality, here) for part in rows]
            found[weights] = [
                task.score(held, _fit(train, targets, test))[task.metric] for train, test in zip(*states, strict=True)
            ]
        floor = majority(task.metric, labels, held)
        show(f"{'layer':12}{'pretrained':>12}{'random':>12}")
        for layer, (one, other) in enumerate(zip(found["pretrained"], found["random"], strict=True)):
            show(f"{'embedding' if layer == 0 else layer!s:12}{one:12.4f}{other:12.4f}")
        show(f"majority {floor:.4f}")
    return {
        "task": task.name,
        "metric": task.metric,
        "split": split.name,
        "modality": config.modality,
        "system": start.system,
        "majority": floor,
        **found,
    }


@torch.no_grad()
def _states(network: torch.nn.Sequential, rows: RowBuilder, modality: str, here: Mesh) -> list[np.ndarray]:
    """float32 [n, 2 h] for each layer."""
    network.eval()
    score = Score(modality, 1)
    found: list[np.ndarray] = []
    for indexes in evaluation_batches(rows.lengths, BATCH_ROWS, 0, 1):
        batch = to_tensors(rows.batch(indexes), [score], here.device)
        shown = indexes[indexes >= 0]
        states = last_states(network, batch.inputs, batch.inputs.targets[0][: len(shown)])
        if not found:
            found = [np.empty((len(rows.lengths), state.shape[1]), np.float32) for state in states]
        for all_states, state in zip(found, states, strict=True):
            all_states[shown] = state.cpu().numpy()
    return found


def _fit(train: np.ndarray, targets: np.ndarray, test: np.ndarray) -> np.ndarray:
    """What the probe says of ``test``."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    cut = len(train) * 4 // 5
    errors = [
        float(np.mean((apply(ridge(train[:cut], targets[:cut], penalty), train[cut:]) - targets[cut:]) ** 2))
        for penalty in RIDGES
    ]
    return apply(ridge(train, targets, RIDGES[int(np.argmin(errors))]), test)
