#!/usr/bin/env python
"""What each change of the training step gives, on and off in one run.

    python benchmarks/levers.py
    python benchmarks/levers.py --precision bf16 --repeats 9
    python benchmarks/levers.py --json benchmarks/results/levers.json

Parts of a step at the paper's width, vocabulary 32,000, one text row: *before* is what megatron-core, torch's autograd
or torch's default do there, *after* is what stands in this project, or was tried. Both take turns; a ratio is the
median of before by after, above 1 where the change gains time. Takes five minutes on two cores and 4 GB of memory. With
OMP_NUM_THREADS=1 and `--clock processor` other work on the machine disturbs little.
"""

import itertools
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.timing import Timer, Work, measuring, parser_of
from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.config.schema import LossConfig, ModelConfig


@dataclass(frozen=True)
class Lever:
    """A change of a part of the step."""

    name: str
    before: Work
    after: Work
    kept: bool
    keeps: Callable[[Work], int] | None = None
    """Bytes that the part keeps for its backward pass, where the change is about them."""


def main(words: Sequence[str]) -> None:
    """Measure and show."""
    parser = parser_of(__doc__, " pairs")
    parameters_help = "of the optimizer's step (default: %(default)s)"
    parser.add_argument("--parameters", type=int, default=100_000_000, help=parameters_help)
    arguments = parser.parse_args(words)
    figures: dict[str, Any] = {}
    from benchmarks.levers_layer import between_products

    with measuring(arguments, figures) as (timer, dtypes):
        for precision, dtype in dtypes.items():
            of = ModelConfig(), dtype, timer.device
            figures[precision] = measure(itertools.chain(levers(*of), between_products(*of), compiled(*of)), timer)
        # Its weights and moments are fp32 in both.
        figures["optimizer"] = measure([adamw(arguments.parameters, timer.device)], timer)


def measure(parts: Iterable[Lever], timer: Timer) -> dict[str, Any]:
    """Times of both sides, in turns."""
    found = {}
    for lever in parts:
        pairs = [(timer.once(lever.before), timer.once(lever.after)) for _ in range(timer.repeats + 1)][1:]
        before, after = (1e3 * statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(old / new for old, new in pairs)
        row = {"before_ms": before, "after_ms": after, "ratio": ratio, "kept": lever.kept}
        if lever.keeps is not None:
            row |= {f"{side}_megabytes": lever.keeps(getattr(lever, side)) / 1e6 for side in ("before", "after")}
        found[lever.name] = row
        print(f"{lever.name}: {before:.1f} ms before, {after:.1f} ms after, ratio {ratio:.2f}", flush=True)
    return found


def levers(model: ModelConfig, dtype: Any, device: Any) -> Iterator[Lever]:
    """Those of the forward and backward pass."""
    import torch
    import torch.nn.functional as F

    from megatron_pixel.model import token_loss
    from megatron_pixel.model.objectives import NextToken, pretraining_objectives
    from megatron_pixel.model.products import linear
    from megatron_pixel.model.stages import stage_specs
    from megatron_pixel.model.swiglu import swiglu
    from megatron_pixel.model.token_loss import linear_cross_entropy

    n, h, f, v = model.seq_length, model.hidden, model.ffn, model.vocab_size
    heads = stage_specs(model, pretraining_objectives(model, LossConfig()), seed=1)[-1].build().to(device, dtype)
    projection: Any = heads.heads["token"].linear
    objective, ids = NextToken(closes=False), torch.randint(0, v, (n,), device=device)

    def random(*shape: int) -> Any:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    hidden, both = random(n, h), random(n, 1, 2 * f)
    gradient = torch.randn(n, 1, f, device=device).to(dtype)

    def whole() -> None:
        torch.autograd.grad(objective.loss(projection(hidden), ids).sum(), (hidden, projection.weight))

    def chunks() -> None:
        torch.autograd.grad(linear_cross_entropy(hidden, projection.weight, ids).sum, (hidden, projection.weight))

    def as_transformers() -> None:
        logits = F.linear(hidden, projection.weight).float()
        torch.autograd.grad(F.cross_entropy(logits, ids, reduction="sum"), (hidden, projection.weight))

    yield Lever("token head: whole logits -> chunks, gradients with them", whole, chunks, True, saved)
    yield Lever("token head: as in transformers -> chunks", as_transformers, chunks, True, saved)

    def odd(aligned: int) -> Work:
        def work() -> None:
            token_loss.ALIGNED, usual = aligned, token_loss.ALIGNED
            torch.autograd.grad(linear_cross_entropy(hidden[1:], projection.weight, ids[1:]).sum, projection.weight)
            token_loss.ALIGNED = usual

        return work

    yield Lever(f"token head: {n - 1:,} targets -> {n:,}", odd(1), odd(token_loss.ALIGNED), True)

    def plain() -> None:
        gate, up = both.chunk(2, dim=-1)
        torch.autograd.grad(F.silu(gate) * up, both, gradient)

    yield Lever(
        "SwiGLU: autograd -> own backward pass",
        plain,
        lambda: torch.autograd.grad(swiglu(both), both, gradient),
        True,
        saved,
    )
    if device.type == "cpu" and dtype == torch.float32:
        x, weight, result = random(n, h), random(2 * f, h), torch.randn(n, 2 * f)

        def product(call: Callable[..., Any]) -> Work:
            return lambda: torch.autograd.grad(call(x, weight), (x, weight), result)

        yield Lever("gate and up: torch's products -> oneDNN's", product(F.linear), product(linear), True)


def compiled(model: ModelConfig, dtype: Any, device: Any) -> Iterator[Lever]:
    """A decoder layer as it is and through ``torch.compile``; nothing where there is no compiler for it."""
    import torch

    from megatron_pixel.model.layers import rotary_angles
    from megatron_pixel.model.objectives import pretraining_objectives
    from megatron_pixel.model.stages import stage_specs

    layer: Any = stage_specs(model, pretraining_objectives(model, LossConfig()), seed=1)[1].build().layer
    layer.to(device, dtype)
    s, h = model.seq_length, model.hidden
    angles = rotary_angles(torch.arange(s, device=device)[None], h // model.heads, model.rope_theta)
    hidden = torch.randn((s, 1, h), device=device).to(dtype).requires_grad_()
    gradient = torch.randn_like(hidden)

    def both(call: Callable[..., Any]) -> Work:
        def work() -> None:
            output, _ = call(hidden, attention_mask=None, rotary_pos_emb=angles)
            torch.autograd.grad(output, [hidden, *layer.parameters()], gradient)

        return work

    eager, after = both(layer), both(torch.compile(layer, dynamic=False))
    try:
        after()
    except RuntimeError as error:  # no compiler, or one that fails
        print(f"left out: a compiled decoder layer: {str(error).splitlines()[0]}")
        return
    yield Lever("a decoder layer: as it is -> torch.compile", eager, after, False, saved)


def adamw(parameters: int, device: Any) -> Lever:
    """The optimizer's step over one flat buffer, as DeepSpeed gives it."""
    import torch

    def optimizer(**options: bool) -> Work:
        buffer = torch.nn.Parameter(torch.randn(parameters, device=device))
        buffer.grad = torch.randn(parameters, device=device)
        return torch.optim.AdamW([buffer], lr=1e-4, **options).step

    return Lever("AdamW: torch's default -> fused", optimizer(), optimizer(fused=True), True)


def saved(work: Work) -> int:
    """Bytes that autograd saves while some work runs, each piece of memory once."""
    import torch

    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(kept.values())


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
