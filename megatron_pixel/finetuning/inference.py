"""A fine-tuned model, opened to be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.finetuning.arguments import load
from megatron_pixel.finetuning.classifier import Score, build_classifier
from megatron_pixel.finetuning.examples import Examples, TaskData
from megatron_pixel.finetuning.inputs import Inputs, open_inputs
from megatron_pixel.finetuning.origin import Start, find_start
from megatron_pixel.finetuning.outputs import outputs_of
from megatron_pixel.finetuning.tasks import Task, open_task
from megatron_pixel.finetuning.weights import load_start
from megatron_pixel.parallel.mesh import Mesh

BATCH_ROWS = 32
"""Rows of a forward pass."""


@dataclass(frozen=True)
class Classifier:
    """A fine-tuned model and its task."""

    config: FinetuningConfig
    start: Start
    inputs: Inputs
    task: Task
    data: TaskData
    network: Any
    mesh: Mesh

    def scores(self, examples: Examples) -> dict[str, float]:
        """All metrics of labelled examples."""
        assert examples.labels is not None
        return self.task.score(examples.labels, self.outputs(examples))

    def outputs(self, examples: Examples) -> np.ndarray:
        """float32 [n, width], of any examples."""
        rows, _ = self.inputs.rows(examples)
        width = 1 if self.task.is_score else len(self.data.classes or ())
        score = Score(self.config.modality, width)
        return outputs_of(self.network, rows, score, width, BATCH_ROWS, self.mesh)


def open_classifier(run: Path, mesh: Mesh) -> Classifier:
    """The best model of a fine-tuning run, with the examples of the run, which must still be there.

    Raises:
        UserError: no such run, or one whose model was not kept.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no fine-tuning run: it has no config.yaml")
    config = load(run / "config.yaml")
    if not (run / "best").is_dir():
        raise UserError(f"{run} kept no model; fine-tune with keep_model true")
    config.checkpoint, config.weights, config.input.cache = str(run / "best"), "pretrained", ""
    start = find_start(config.checkpoint)
    inputs = open_inputs(config, start)
    task, data = open_task(config.task, config.examples)
    width = 1 if task.is_score else len(data.classes or ())
    network = build_classifier(inputs.model, Score(config.modality, width), config.training.seed).to(mesh.device)
    load_start(network, start, inputs.model, data.classes, "auto")
    return Classifier(config, start, inputs, task, data, network.requires_grad_(False), mesh)


def last_states(network: torch.nn.Sequential, inputs: Any, positions: torch.Tensor) -> list[torch.Tensor]:
    """Hidden states of rows behind the embedding and behind every layer.

    Args:
        network: the stages.
        inputs: of a micro-batch of ``b`` rows of ``s`` positions.
        positions: int64 [n], flat positions ``row * s + i``.

    Returns:
        float32 [n, 2 * h] for each: the state at the position, and the mean over the row up to it.
    """
    states = []
    state = inputs
    for stage in network[:-2]:
        state = stage(state)
        hidden = state[0].transpose(0, 1).float()  # [b, s, h]
        s = hidden.shape[1]
        rows, places = positions // s, positions % s
        sums = hidden.cumsum(1)[rows, places] / (places + 1)[:, None]
        states.append(torch.cat([hidden[rows, places], sums], dim=1))
    return states
