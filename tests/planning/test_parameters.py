"""The list of parameters against models that are built."""

import pytest
import torch
from torch import nn

from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.planning.parameters import groups, parameters
from tests.alone import alone

MODELS = [
    ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=40, seq_length=16, patch_size=4),
    ModelConfig(layers=3, hidden=48, heads=6, kv_heads=6, ffn=40, vocab_size=64, patch_size=8, num_channels=1),
]


@pytest.mark.parametrize("model", MODELS, ids=["grouped", "all-heads"])
def test_names_shapes_and_order_are_those_of_the_model(model: ModelConfig) -> None:
    with alone():
        network = nn.Sequential(*build_stages(model, pretraining_objectives(model, LossConfig()), seed=1))
    built = [(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]
    assert [(parameter.name, parameter.shape) for parameter in parameters(model)] == built
    assert sum(parameter.numel for parameter in parameters(model)) == sum(p.numel() for p in network.parameters())


def test_the_papers_model_has_the_papers_parameters() -> None:
    """317M in its tables: patches in, token embedding, layers, norm."""
    without_heads = [p.numel for p in parameters(ModelConfig()) if "heads" not in p.name]
    assert round(sum(without_heads) / 1e6) == 317


def test_groups_are_those_of_the_optimizer() -> None:
    from megatron_pixel.parallel.engine import parameter_groups

    listed = parameters(MODELS[0])
    tensors = [torch.nn.Parameter(torch.zeros(parameter.shape)) for parameter in listed]
    expected = [len(group["params"]) for group in parameter_groups(tensors, 0.1)]
    assert [len(group) for group in groups(listed)] == expected
