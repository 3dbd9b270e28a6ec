"""Parts on one GPU: rows on their way to it, attention's kernel, the decoder with its cache, a meter of memory."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.generation import uncached_tokens, weights_of
from benchmarks.training_memory import PeakMemory
from megatron_pixel.config.schema import DataConfig, LossConfig, ModelConfig, PairConfig, ParallelConfig, TrainingConfig
from megatron_pixel.data.mixture import open_training
from megatron_pixel.data.rows import Kind, MicroBatch
from megatron_pixel.generation.decoder import Decoder
from megatron_pixel.generation.prompts import Prompt
from megatron_pixel.generation.sampling import Sampling
from megatron_pixel.generation.tokens import write_tokens
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.training.feeding import Feeder

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

MODEL = ModelConfig(layers=2, hidden=256, heads=4, kv_heads=2, ffn=512, vocab_size=512, seq_length=256)
OBJECTIVES = pretraining_objectives(MODEL, LossConfig())
FAST = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_cudnn_attention")
SLOW = ("_scaled_dot_product_attention_math", "_scaled_dot_product_efficient_attention")
"""torch's kernels: none of them holds the square of positions but the one of plain matrix products; the efficient one
is slower than those two."""


@pytest.fixture(scope="module")
def here() -> Iterator[Mesh]:
    with mesh(ParallelConfig()) as found:
        yield found


def rows_of(kind: Kind, rows: int = 2) -> MicroBatch:
    mixture = ":".join("1" if each == kind else "0" for each in Kind)
    training = TrainingConfig(global_batch_rows=rows, micro_batch_rows=rows)
    pair = PairConfig(patches=128, tokens=128)
    reader = open_training(DataConfig(mixture=mixture, synthetic=True), MODEL, pair, training, dp_size=1)
    return reader.micro_batch(0, 0, 0, 1)


@pytest.mark.parametrize("kind", Kind)
def test_rows_come_through_pinned_memory_unchanged(here: Mesh, kind: Kind) -> None:
    truth = to_tensors(rows_of(kind), OBJECTIVES)
    given = [rows_of(kind) for _ in range(4)]
    feeder = Feeder(OBJECTIVES, True, here.device)
    prepared = [feeder.prepare(rows) for rows in given]
    for rows in given:
        rows.tokens[:] = -1  # the loader fills its memory again
    for item in prepared:
        assert all(tensor.is_pinned() for tensor in item.batch.inputs[:-1] if tensor.numel())
    found = list(feeder.feed(prepared))
    assert len(found) == len(given)
    for batch in found:
        assert batch.inputs.header.device.type == "cpu"
        for mine, other in zip(batch.inputs, truth.inputs, strict=True):
            assert torch.equal(mine.cpu(), other)


@pytest.mark.parametrize("kind", Kind)
def test_attention_takes_a_flash_kernel(here: Mesh, kind: Kind) -> None:
    network = nn.Sequential(*build_stages(MODEL, OBJECTIVES, seed=1)).to(here.device, torch.bfloat16)
    batch = to_tensors(rows_of(kind), OBJECTIVES, here.device)
    with profile(activities=[ProfilerActivity.CPU]) as record:
        terms = losses(network(batch.inputs), batch.labels, OBJECTIVES)
        torch.stack([term.sum for term in terms.values()]).sum().backward()
    names = {event.key for event in record.key_averages()}
    assert any(name in key for key in names for name in FAST), sorted(key for key in names if "attention" in key)
    assert not any(name in key for key in names for name in SLOW)


def decoders() -> tuple[Decoder, Decoder]:
    """The same weights on the GPU and on the CPU."""
    weights = weights_of(MODEL)
    make = weights.__getitem__
    return Decoder(MODEL, make, set(weights), device="cuda"), Decoder(MODEL, make, set(weights))


def test_the_cache_writes_what_reading_anew_writes() -> None:
    on_gpu, on_cpu = decoders()
    prompt = Prompt(tokens=np.arange(3, 19))
    written = write_tokens(on_gpu, [prompt], Sampling(), 24)[0].tokens
    assert written == write_tokens(on_cpu, [prompt], Sampling(), 24)[0].tokens
    assert written == uncached_tokens(on_cpu, prompt, 24)


def test_hidden_states_are_those_of_the_cpu() -> None:
    on_gpu, on_cpu = decoders()
    row, places = torch.arange(3, 67), torch.arange(64)[None]
    truth = on_cpu.forward(on_cpu.embed_tokens(row)[None], places)
    found = on_gpu.forward(on_gpu.embed_tokens(row.cuda())[None], places.cuda()).cpu()
    assert torch.linalg.norm(found - truth) < 1e-4 * torch.linalg.norm(truth)


def test_peak_memory_is_that_of_the_allocator() -> None:
    meter = PeakMemory(torch.device("cuda"))
    kept = torch.zeros(1 << 20, device="cuda")
    found = meter.during(lambda: torch.zeros(1 << 22, device="cuda").sum())
    assert 20 << 20 <= found <= 21 << 20
    del kept
