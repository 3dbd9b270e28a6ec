"""What the device could do at most for ``training.py``: its plain matrix products, and the vocabulary head alone."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.rows import MicroBatch
from megatron_pixel.model.batch import Travelling, to_tensors
from megatron_pixel.model.objectives import losses
from megatron_pixel.model.stages import stage_specs
from megatron_pixel.parallel.mesh import Mesh

Product = tuple[int, int, int]
"""``m, k, n`` of a product of [m, k] and [k, n]."""


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int, clock: Callable[[], float]) -> float:
    """Median of some runs after one that warms up; on a GPU of ten at a time, so that starting them costs nothing."""
    at_a_time = 10 if device.type == "cuda" else 1
    found = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = clock()
        for _ in range(at_a_time):
            work()
        synchronize(device)
        found.append((clock() - start) / at_a_time)
    return statistics.median(found[1:])


def products(model: ModelConfig, rows: int, kind: str) -> Counter[Product]:
    """The products of the forward pass over a micro-batch, and how often each occurs.

    Heads run at full rows of targets; a pair row counts as half patches, half tokens.
    """
    n, h, f = rows * model.seq_length, model.hidden, model.ffn
    values = model.patch_size**2 * model.num_channels
    found: Counter[Product] = Counter()
    for product in ((n, h, h + 2 * h * model.kv_heads // model.heads), (n, h, h), (n, h, 2 * f), (n, f, h)):
        found[product] += model.layers
    tokens = {"text": n, "pixel": 0, "pair": n // 2}[kind]
    if tokens:
        found[tokens, h, model.vocab_size] += 1
    if n - tokens:
        found[n - tokens, values, h] += 1
        found[n - tokens, h, values] += 1
    return found


def ceiling(
    model: ModelConfig,
    rows: int,
    kind: str,
    dtype: torch.dtype,
    device: torch.device,
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """10^12 operations a second of all the weights' products of a micro-batch, forward and backward, and nothing else.

    Attention is not among them: its operations count at this rate.
    """
    operations = seconds = 0.0
    for (m, k, n), count in products(model, rows, kind).items():
        x = torch.randn(m, k, device=device).to(dtype)
        weight = torch.randn(n, k, device=device).to(dtype)
        gradient = torch.randn(m, n, device=device).to(dtype)

        def work(x: Tensor = x, weight: Tensor = weight, gradient: Tensor = gradient) -> None:
            torch.mm(x, weight.t())
            torch.mm(gradient, weight)
            torch.mm(gradient.t(), x)

        seconds += count * seconds_of(work, device, repeats, clock)
        operations += count * 6.0 * m * k * n
    return operations / seconds / 1e12


class HeadAlone:
    """Forward and backward pass of the heads and their losses on given rows, outside of the engine.

    Args:
        model: its shape.
        objectives: what it learns.
        dtype: of weights and hidden states.
        mesh: where this process stands.
    """

    def __init__(self, model: ModelConfig, objectives: Sequence[Any], dtype: torch.dtype, mesh: Mesh) -> None:
        self._heads = stage_specs(model, objectives, seed=1)[-1].build().to(mesh.device, dtype)
        self._objectives, self._mesh, self._hidden, self._dtype = objectives, mesh, model.hidden, dtype

    def seconds(self, rows: MicroBatch, clock: Callable[[], float]) -> float:
        """Time of one pass."""
        device = self._mesh.device
        batch = to_tensors(rows, self._objectives, device)
        b, s = rows.tokens.shape
        hidden = torch.randn(s, b, self._hidden, device=device).to(self._dtype).requires_grad_()
        given = batch.inputs
        state = Travelling(
            hidden, given.tokens.int(), given.position_ids, given.segment_ids, given.targets, given.header
        )
        synchronize(device)
        start = clock()
        terms = losses(self._heads(tuple(state)), batch.labels, self._objectives)
        torch.stack([term.sum / max(1, term.count) for term in terms.values()]).sum().backward()
        synchronize(device)
        taken = clock() - start
        self._heads.zero_grad(set_to_none=True)
        return taken
