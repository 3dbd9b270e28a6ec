"""The way that a GPU takes through model and losses, without one: no tensor of the host comes into it.

On PyTorch's meta device tensors have shapes and no values. It is not a CPU, so the model goes the way of a GPU there,
and what asks for a value fails, as it would wait on a GPU.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.generation import weights_of
from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.data.rows import Kind, MicroBatch
from megatron_pixel.generation.decoder import Cache, Decoder
from megatron_pixel.model import products
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.training.losses import LossTotals
from tests.model import test_packing
from tests.model.helpers import rows_of

META = torch.device("meta")


class OnOneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, and moves from one to another."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        result = func(*args, **(kwargs or {}))
        # One of the host without dimensions is a number, which a kernel takes along.
        devices = {each.device.type for each in given if each.ndim or each.device.type != "cpu"}
        if devices:
            devices |= {each.device.type for each in _tensors(result)}
        assert len(devices) <= 1, f"{func} of {[(str(each.device), tuple(each.shape)) for each in given]}"
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [each for each in tree_leaves(values) if isinstance(each, Tensor)]


def cases(model: ModelConfig) -> Iterator[MicroBatch]:
    """Rows of every kind, some with padding before content, and of several documents."""
    for kind in Kind:
        yield rows_of(kind, model)
        yield test_packing.rows_of(kind, model, test_packing.LENGTHS)
    yield rows_of(Kind.PAIR, model, layout="released")


@pytest.mark.parametrize("touch_all", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_pass_stays_on_its_device(
    monkeypatch: pytest.MonkeyPatch, small: ModelConfig, dtype: torch.dtype, touch_all: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(products, "LEAST", 0)
    monkeypatch.setattr(products, "_onednn", lambda *_: pytest.fail("a product of CPUs"))
    objectives = pretraining_objectives(small, LossConfig())
    stages = build_stages(small, objectives, seed=1, touch_all=touch_all, recompute=(2,))
    network = nn.Sequential(*stages).to(META, dtype)
    for rows in cases(small):
        network.zero_grad()
        batch = to_tensors(rows, objectives, META)
        totals = LossTotals(META, {rows.kind: ["a:0", "a:1"]})
        with OnOneDevice():
            terms = losses(network(batch.inputs), batch.labels, objectives)
            totals.add(batch.kind, terms)
            torch.stack([term.sum for term in terms.values()]).sum().backward()
        gradients = {name for name, weight in network.named_parameters() if weight.grad is not None}
        assert all(weight.grad.is_meta for weight in network.parameters() if weight.grad is not None)
        assert (len(gradients) == len(list(network.parameters()))) == (touch_all or batch.kind == Kind.PAIR)


def test_the_decoder_stays_on_its_device(small: ModelConfig) -> None:
    weights = weights_of(small)
    decoder = Decoder(small, weights.__getitem__, set(weights), device="meta")
    ids, places = torch.zeros(2, 5, dtype=torch.int64, device=META), torch.arange(5, device=META).expand(2, 5)
    cache = Cache(decoder, 2, 8)
    with OnOneDevice():
        hidden = decoder.forward(decoder.embed_tokens(ids), places, cache)
        decoder.head("token", decoder.forward(hidden[:, -2:], places[:, :2] + 5, cache))


def test_what_a_gpu_refuses_is_refused() -> None:
    there = torch.empty(2, device=META)
    with OnOneDevice():
        assert (there * torch.tensor(2.0)).is_meta
        for call in (
            lambda: there + torch.ones(2),
            lambda: torch.ones(2).to(META),
            lambda: there[torch.ones(1).long()],
        ):
            with pytest.raises((AssertionError, RuntimeError), match=r"meta|device"):
                call()
