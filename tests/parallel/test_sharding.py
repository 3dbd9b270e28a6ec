from collections.abc import Iterator

import pytest
import torch

from megatron_pixel.config.schema import LossConfig, ModelConfig, ParallelConfig
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import mesh
from megatron_pixel.parallel.sharding import COLUMNS, GATE_AND_UP, ROWS, SPLITS, WHOLE, Split, split_of

MODEL = ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=40, seq_length=16, patch_size=4)


@pytest.fixture(scope="module")
def parameters() -> Iterator[dict[str, torch.nn.Parameter]]:
    with mesh(ParallelConfig()):
        stages = build_stages(MODEL, pretraining_objectives(MODEL, LossConfig()), seed=1)
        yield dict(torch.nn.Sequential(*stages).named_parameters())


def test_the_table_says_what_megatron_does(parameters: dict[str, torch.nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        split = split_of(name)
        if getattr(parameter, "tensor_model_parallel", False):
            assert (split.dim, split.blocks) == (parameter.partition_dim, parameter.partition_stride), name
        else:
            assert split == WHOLE, name


def test_every_line_of_the_table_is_used(parameters: dict[str, torch.nn.Parameter]) -> None:
    import re

    for pattern in SPLITS:
        assert any(re.fullmatch(pattern, name) for name in parameters), pattern


def test_a_parameter_without_a_line_is_an_error() -> None:
    for name in ("1.layer.mlp.router.weight", "1.layer.mlp.linear_fc1.bias", "x0.tokens.weight"):
        with pytest.raises(KeyError, match="does not say"):
            split_of(name)


@pytest.mark.parametrize("split", [WHOLE, ROWS, COLUMNS, GATE_AND_UP], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_shares_come_together_again(split: Split, size: int) -> None:
    full = torch.arange(16.0 * 8).view(16, 8)
    again = torch.full_like(full, -1)
    for rank in range(size):
        share = split.take(full, size, rank)
        assert tuple(share.shape) == split.local_shape(tuple(full.shape), size)
        assert split.full_shape(tuple(share.shape), size) == tuple(full.shape)
        split.put(again, share, size, rank)
    assert torch.equal(again, full)


def test_what_a_rank_holds() -> None:
    full = torch.arange(8).unsqueeze(1).repeat(1, 4)
    assert ROWS.take(full, 2, 1)[:, 0].tolist() == [4, 5, 6, 7]
    assert COLUMNS.take(full.t(), 2, 1)[0].tolist() == [4, 5, 6, 7]
    gate_and_up = GATE_AND_UP.take(full, 2, 1)[:, 0].tolist()
    assert gate_and_up == [2, 3, 6, 7], "the second half of the gate, then the second half of up"
