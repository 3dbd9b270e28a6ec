"""Compiled decoder layers compute what they compute else, and one code does for all of them."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.model import compiling
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from tests.model.helpers import batch_of

TRACED = "aot_eager"
"""A backend that traces as the real one does, forward and backward, and leaves out the writing of code."""


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(compiling, "BACKEND", TRACED)
    yield
    torch._dynamo.reset()


def built(model: ModelConfig, recompute: tuple[int, ...] = ()) -> nn.Sequential:
    objectives = pretraining_objectives(model, LossConfig())
    return nn.Sequential(*build_stages(model, objectives, seed=1, recompute=recompute))


def passes(network: nn.Sequential, model: ModelConfig, kind: Kind, layout: str = "compact") -> dict[str, Tensor]:
    """Losses and gradients of a micro-batch."""
    objectives = pretraining_objectives(model, LossConfig())
    batch = batch_of(kind, model, objectives, layout=layout)
    terms = losses(network(batch.inputs), batch.labels, objectives)
    network.zero_grad()
    torch.stack([term.sum for term in terms.values()]).sum().backward()
    found = {name: term.sum.detach() for name, term in terms.items()}
    return found | {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def compare(found: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    """But for the order of additions."""
    assert found.keys() == truth.keys()
    for name, value in found.items():
        assert torch.linalg.norm(value - truth[name]) <= 1e-5 * torch.linalg.norm(truth[name]), name


def test_one_code_runs_all_layers_and_all_kinds_of_rows(small: ModelConfig) -> None:
    """24 layers are more than the compiler keeps codes of one function; what came after them would not be compiled."""
    model = replace(small, layers=24)
    network = built(model, recompute=(1, 3))
    compiling.compile_layers(network, model, rows=3, dtype=torch.float32, masked=False)
    assert counters["stats"]["unique_graphs"] == 1
    for kind in Kind:
        passes(network, model, kind)
        passes(network, model, kind)
    network.eval()
    with torch.no_grad():
        network(batch_of(Kind.TEXT, model, pretraining_objectives(model, LossConfig())).inputs)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    assert not counters["recompiles"]


def test_rows_with_a_mask_have_a_code_of_their_own(small: ModelConfig) -> None:
    network = built(small)
    compiling.compile_layers(network, small, rows=3, dtype=torch.float32, masked=True)
    assert counters["stats"]["unique_graphs"] == 2
    for layout in ("compact", "released"):
        passes(network, small, Kind.PAIR, layout)
    assert counters["stats"]["unique_graphs"] == 2


def test_a_single_row_is_nothing_new(small: ModelConfig) -> None:
    """Its dimension of one has another stride behind the embedding than behind a layer."""
    network = built(small)
    compiling.compile_layers(network, small, rows=1, dtype=torch.float32, masked=False)
    objectives = pretraining_objectives(small, LossConfig())
    batch = batch_of(Kind.TEXT, small, objectives)
    inputs = batch.inputs._replace(**{name: getattr(batch.inputs, name)[:1] for name in
                                      ("tokens", "modality", "position_ids", "segment_ids")})  # fmt: skip
    network[:-1](inputs)[0].sum().backward()
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(("kind", "recompute"), [(Kind.TEXT, ()), (Kind.PAIR, (1, 2))], ids=["kept", "recomputed"])
def test_it_computes_the_same(small: ModelConfig, kind: Kind, recompute: tuple[int, ...]) -> None:
    truth = passes(built(small), small, kind)
    network = built(small, recompute)
    names = [name for name, _ in network.named_parameters()]
    state = torch.random.get_rng_state()
    compiling.compile_layers(network, small, rows=3, dtype=torch.float32, masked=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [name for name, _ in network.named_parameters()] == names
    assert all(parameter.grad is None for parameter in network.parameters())
    compare(passes(network, small, kind), truth)


def test_written_code_computes_the_same(small: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real backend, where this machine has a compiler; at a size from which products are oneDNN's on a CPU."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    model = replace(small, layers=1, hidden=512, ffn=640, seq_length=64)
    truth, network = passes(built(model), model, Kind.PAIR), built(model)
    assert compiling.compile_layers(network, model, rows=3, dtype=torch.float32, masked=False) > 0
    compare(passes(network, model, Kind.PAIR), truth)


def test_a_machine_without_a_compiler_says_so_at_once(small: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found\nand more")

    monkeypatch.setattr(compiling, "BACKEND", lacking)
    with pytest.raises(UserError, match=r"No working C\+\+ compiler found") as error:
        compiling.compile_layers(built(small), small, rows=3, dtype=torch.float32, masked=False)
    assert "set --training.compile none" in str(error.value)
    assert "and more" not in str(error.value)
