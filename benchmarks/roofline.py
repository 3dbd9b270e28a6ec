#!/usr/bin/env python
"""The roofline of one decoder layer and of the token head: what each operation could take on this machine, and takes.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --precision bf16 --rows 2
    python benchmarks/roofline.py --json benchmarks/results/roofline.json

Forward and backward pass of a text row at the paper's width. For every operation: its floating-point operations, the
bytes that it must read and write at least (inputs, outputs and their gradients, each once), and from the machine's
own rates, measured first, the time that it needs at least: operations by the rate of a large matrix product, or bytes
by the rate of copying, whichever is longer. *Reached* is that time by the measured one. Takes two minutes on two cores.
With OMP_NUM_THREADS=1 and `--clock processor` other work on the machine disturbs little.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import Timer, Work, measuring, parser_of
from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.config.schema import LossConfig, ModelConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Operation:
    """A part of the layer, forward and backward."""

    name: str
    flops: float
    values: float
    """Read and written at least."""
    work: Work


def main(words: Sequence[str]) -> None:
    """Measure and show."""
    parser = parser_of(__doc__, "")
    parser.add_argument("--rows", type=int, default=1, help="of the micro-batch (default: %(default)s)")
    arguments = parser.parse_args(words)
    figures: dict[str, Any] = {"rows": arguments.rows}
    with measuring(arguments, figures) as (timer, dtypes):
        for precision, dtype in dtypes.items():
            figures[precision] = measure(ModelConfig(), arguments.rows, dtype, timer)
            show(precision, figures[precision])


def measure(model: ModelConfig, rows: int, dtype: Any, timer: Timer) -> dict[str, Any]:
    """The machine's rates, and a row of figures for every operation."""
    import torch

    side, device = 2048, timer.device
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    rate = 2 * side**3 / timer.seconds(lambda: torch.mm(a, b))
    source = torch.randn(1 << 26, device=device)  # 256 MB, more than any cache
    target = torch.empty_like(source)
    bandwidth = 2 * source.nbytes / timer.seconds(lambda: target.copy_(source))
    width = dtype.itemsize
    found: dict[str, Any] = {"gflops": rate / 1e9, "gigabytes_per_second": bandwidth / 1e9, "operations": {}}
    for operation in operations(model, rows, dtype, device):
        seconds = timer.seconds(operation.work)
        size = operation.values * width
        least = max(operation.flops / rate, size / bandwidth)
        found["operations"][operation.name] = {
            "gflop": operation.flops / 1e9,
            "megabytes": size / 1e6,
            "intensity": operation.flops / size,
            "bound_by": "operations" if operation.flops / rate > size / bandwidth else "memory",
            "least_ms": 1e3 * least,
            "ms": 1e3 * seconds,
            "reached": least / seconds,
        }
        print(f"  {operation.name}: {1e3 * seconds:.1f} ms, at least {1e3 * least:.1f} ms", flush=True)
    return found


def operations(model: ModelConfig, rows: int, dtype: Any, device: Any) -> Iterator[Operation]:
    """The layer's operations in their order, the layer as a whole, and the token head with its loss."""
    import torch

    from megatron_pixel.model.objectives import pretraining_objectives
    from megatron_pixel.model.rotary import rotary_angles, rotation, turned_heads
    from megatron_pixel.model.stages import stage_specs
    from megatron_pixel.model.token_loss import linear_cross_entropy

    s, h, f, heads, groups = model.seq_length, model.hidden, model.ffn, model.heads, model.kv_heads
    d, n, v = h // heads, s * rows, model.vocab_size
    kv = groups * d
    specs = stage_specs(model, pretraining_objectives(model, LossConfig()), seed=1)
    stage = specs[1].build().to(device, dtype)
    layer: Any = stage.layer
    attention = layer.self_attention
    positions = torch.arange(s, dtype=torch.int32, device=device).repeat(rows, 1)

    def random(*shape: int) -> "Tensor":
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    hidden = random(s, rows, h)
    angles = rotary_angles(positions, d, model.rope_theta)
    query, key, value = random(s, rows, heads, d), random(s, rows, groups, d), random(s, rows, groups, d)

    def both(call: Callable[..., Any], *inputs: "Tensor", of: "nn.Module | None" = None) -> Work:
        """Forward and backward pass, to the inputs and the parameters of a module."""
        gradients: list[Tensor] = []

        def work() -> None:
            outputs = call(*inputs)
            output = outputs[0] if isinstance(outputs, tuple) else outputs
            if not gradients:
                gradients.append(torch.randn_like(output))
            wanted = [*inputs, *(of.parameters() if of is not None else ())]
            torch.autograd.grad(output, wanted, gradients[0].expand_as(output))

        return work

    def product(name: str, module: "nn.Module", k: int, m: int) -> Operation:
        size = 3 * (n * k + k * m + n * m)
        return Operation(name, 6.0 * n * k * m, size, both(module, random(s, rows, k), of=module))

    def turn(fused: "Tensor") -> "Tensor":
        return torch.cat([part.flatten() for part in turned_heads(fused, groups, rotation(angles, dtype))])

    norm = both(layer.input_layernorm, hidden, of=layer.input_layernorm)
    yield Operation("norm (of two)", 12.0 * n * h, 5 * n * h, norm)
    yield product("queries, keys, values", attention.linear_qkv, h, h + 2 * kv)
    yield Operation("rotary positions", 6.0 * n * (h + kv), 4 * n * (h + kv), both(turn, random(s, rows, h + 2 * kv)))
    core = both(lambda *parts: attention.core_attention(*parts, None), query, key, value)
    yield Operation("attention", 7.0 * rows * s * s * h, n * (6 * h + 6 * kv), core)
    yield product("output projection", attention.linear_proj, h, h)
    yield product("gate and up", layer.mlp.linear_fc1, h, 2 * f)
    yield Operation("SwiGLU", 12.0 * n * f, 8 * n * f, both(layer.mlp.activation_func, random(s, rows, 2 * f)))
    yield product("down", layer.mlp.linear_fc2, f, h)
    weights = h * (2 * h + 2 * kv + 3 * f)
    whole = both(lambda hidden: layer(hidden, attention_mask=None, rotary_pos_emb=angles), hidden, of=layer)
    values = 3 * weights + 5 * n * h
    yield Operation("the layer as a whole", 6.0 * n * weights + 7.0 * rows * s * s * h, values, whole)
    head, ids = random(v, h), torch.randint(0, v, (n,), device=device)

    def close(hidden: "Tensor", weight: "Tensor") -> "Tensor":
        return linear_cross_entropy(hidden, weight, ids).sum

    closed = both(close, random(n, h), head)
    yield Operation("token head and its loss", 6.0 * n * h * v, 3 * (n * h + h * v), closed)


def show(precision: str, found: dict[str, Any]) -> None:
    """The table on the terminal."""
    rates = f"{found['gflops']:.0f} GFLOP/s, {found['gigabytes_per_second']:.1f} GB/s"
    print(f"{precision}: {rates}")
    print(f"{'':24}{'GFLOP':>9}{'MB':>9}{'FLOP/B':>9}{'bound by':>12}{'least ms':>10}{'ms':>9}{'reached':>9}")
    for name, row in found["operations"].items():
        print(
            f"{name:24}{row['gflop']:9.2f}{row['megabytes']:9.1f}{row['intensity']:9.1f}{row['bound_by']:>12}"
            f"{row['least_ms']:10.1f}{row['ms']:9.1f}{row['reached']:9.0%}"
        )


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
