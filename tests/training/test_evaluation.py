import math
from typing import Any

import numpy as np
import pytest
import torch

from megatron_pixel.config.schema import (
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    PairConfig,
    TrainingConfig,
)
from megatron_pixel.data.mixture import HeldoutReader, open_heldout
from megatron_pixel.data.rows import Kind
from megatron_pixel.model.batch import MODALITIES, Labels, ModelInputs
from megatron_pixel.model.objectives import NextPatch, pretraining_objectives
from megatron_pixel.parallel.execution import WholeModel
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.evaluation import Evaluator

MODEL = ModelConfig(vocab_size=64, seq_length=16, patch_size=4)


class Clairvoyant:
    """A model that knows every next patch, and gives all tokens the same probability."""

    def __init__(self, objectives: Any) -> None:
        self.objectives = objectives
        self.calls: list[str] = []

    def eval(self) -> None:
        self.calls.append("eval")

    def train(self) -> None:
        self.calls.append("train")

    def __call__(self, inputs: ModelInputs) -> tuple[torch.Tensor, ...]:
        assert not torch.is_grad_enabled()
        kind, _, *counts = inputs.header.tolist()
        labels = Labels(inputs.tokens, inputs.patches, inputs.targets, inputs.header)
        outputs = []
        for objective, count, targets in zip(self.objectives, counts, inputs.targets, strict=True):
            if objective.modality not in MODALITIES[Kind(kind)]:
                outputs.append(torch.empty(0))
            elif isinstance(objective, NextPatch):
                outputs.append(objective.targets(labels, targets[: max(count, 1)]))
            else:
                outputs.append(torch.zeros(max(count, 1), MODEL.vocab_size))
        return tuple(outputs)


def reader(mixture: str, rows: int = 5) -> HeldoutReader:
    training = TrainingConfig(micro_batch_rows=2)
    data = DataConfig(mixture=mixture, synthetic=True)
    return open_heldout(data, MODEL, PairConfig(patches=8, tokens=8), training, EvaluationConfig(rows=rows))


@pytest.mark.parametrize("patch_target", ["normalised", "raw"])
def test_losses_and_pages_of_a_known_model(one_process: Mesh, patch_target: Any) -> None:
    objectives = pretraining_objectives(ModelConfig(patch_target=patch_target), LossConfig())
    model = Clairvoyant(objectives)
    found = Evaluator(WholeModel(model), reader("4:4:2"), objectives, MODEL, one_process).run(pages=3)
    assert model.calls == ["eval", "train"] * len(Kind)
    assert found.losses["loss_token_text"] == pytest.approx(math.log(64))
    assert found.losses["loss_token_pair"] == pytest.approx(math.log(64))
    assert found.losses["loss_patch_pixel"] == found.losses["loss_patch_pair"] == pytest.approx(0, abs=1e-9)
    assert found.losses["loss"] == pytest.approx(math.log(64))
    assert [page.origin for page in found.pages] == [("pixel:synthetic", i) for i in range(3)]
    for page in found.pages:
        assert page.patches.shape == page.predictions.shape == (len(page.errors), 4, 4, 3)
        assert np.isnan(page.errors[0])
        assert not np.isnan(page.errors[1:]).any()
        # Each prediction stands at the patch that it predicts.
        assert (page.predictions[1:] == page.patches[1:]).all()
        assert not page.predictions[0].any()
        assert not page.patches[-1].any(), "the end patch is part of the page"


@pytest.mark.parametrize(
    ("mixture", "kind"), [("1:0:0", None), ("1:0:1", "pair:synthetic"), ("0:1:1", "pixel:synthetic")]
)
def test_pages_come_from_pixel_rows_or_else_from_pairs(one_process: Mesh, mixture: str, kind: str | None) -> None:
    objectives = pretraining_objectives(ModelConfig(), LossConfig())
    found = Evaluator(WholeModel(Clairvoyant(objectives)), reader(mixture), objectives, MODEL, one_process).run(pages=9)
    assert [page.origin[0] for page in found.pages] == ([] if kind is None else [kind] * 5)
