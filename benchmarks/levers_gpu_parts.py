"""The parts of ``levers_gpu.py``: each gives changes of a step, or says why they cannot be measured on this machine."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.model import token_loss
from megatron_pixel.model.batch import Header, Travelling
from megatron_pixel.model.compiling import compile_layers
from megatron_pixel.model.layers import run_layer
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import stage_specs

Work = Callable[[], object]
CHUNKS = (512, 1024, 4096, 8192)
"""Targets of the token head at a time that are compared with ours."""
FP8_MOST = 448.0
"""The largest number of float8_e4m3fn."""


class LeftOutError(Exception):
    """A part cannot be measured here; the message is one line that says why."""


@dataclass(frozen=True)
class Setup:
    """What the parts are measured with."""

    model: ModelConfig
    rows: int
    """Of a micro-batch."""
    dtype: torch.dtype
    device: torch.device
    parameters: int
    """Of the optimizer's step."""

    @property
    def positions(self) -> int:
        """Of a micro-batch."""
        return self.rows * self.model.seq_length

    def random(self, *shape: int) -> Tensor:
        """An input that wants a gradient."""
        return torch.randn(shape, device=self.device).to(self.dtype).requires_grad_()

    def stage(self, number: int) -> Any:
        """A stage of the model, its weights drawn anew."""
        specs = stage_specs(self.model, pretraining_objectives(self.model, LossConfig()), seed=1)
        return specs[number].build().to(self.device, self.dtype)

    def travelling(self, rows: int) -> Travelling:
        """Text rows on their way into a decoder layer."""
        s = self.model.seq_length
        whole = torch.zeros(rows, s, dtype=torch.int32, device=self.device)
        places = torch.arange(s, dtype=torch.int32, device=self.device).repeat(rows, 1)
        hidden = self.random(s, rows, self.model.hidden)
        return Travelling(hidden, whole, places, whole, whole, Header(Kind.TEXT, False, ()).tensor())


@dataclass(frozen=True)
class Change:
    """A change of a part of the step."""

    name: str
    before: Work
    after: Work
    figures: dict[str, float] = field(default_factory=dict)
    """What else is known of it, such as the error that it makes."""


def optimizer(setup: Setup) -> Iterator[Change]:
    """The optimizer's step over one flat buffer, as DeepSpeed gives it."""

    def step(**options: bool) -> Work:
        buffer = nn.Parameter(torch.randn(setup.parameters, device=setup.device))
        buffer.grad = torch.randn(setup.parameters, device=setup.device)
        return torch.optim.AdamW([buffer], lr=1e-4, **options).step

    yield Change("AdamW: torch's default -> fused (ours)", step(), step(fused=True))


def attention(setup: Setup) -> Iterator[Change]:
    """Grouped queries: keys and values repeated for each query head, or shared inside the kernel."""
    model, b = setup.model, setup.rows
    s, d, groups = model.seq_length, model.hidden // model.heads, model.kv_heads
    query = setup.random(b, model.heads, s, d)
    key, value = setup.random(b, groups, s, d), setup.random(b, groups, s, d)

    def repeated() -> Tensor:
        every = (part.repeat_interleave(model.heads // groups, dim=1) for part in (key, value))
        return F.scaled_dot_product_attention(query, *every, is_causal=True)

    def shared() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    inputs = [query, key, value]
    yield Change("attention: keys repeated -> enable_gqa (ours)", passes(repeated, inputs), passes(shared, inputs))


def head(setup: Setup) -> Iterator[Change]:
    """The token head and its loss, in chunks of other sizes."""
    model = setup.model
    hidden, weight = setup.random(setup.positions, model.hidden), setup.random(model.vocab_size, model.hidden)
    ids = torch.randint(0, model.vocab_size, (setup.positions,), device=setup.device)
    ours = token_loss.CHUNK

    def loss() -> Tensor:
        return token_loss.linear_cross_entropy(hidden, weight, ids).sum

    both = passes(loss, [hidden, weight])

    def chunked(size: int) -> Work:
        def work() -> None:
            token_loss.CHUNK = size
            try:
                both()
            finally:
                token_loss.CHUNK = ours

        return work

    for size in CHUNKS:
        yield Change(f"token head: chunks of {ours:,} (ours) -> {size:,}", chunked(ours), chunked(size))


def patches(setup: Setup) -> Iterator[Change]:
    """Patches on their way to the device: as numbers that the model takes, or as bytes that are expanded there."""
    values = setup.model.patch_size**2 * setup.model.num_channels
    pixels = torch.randint(0, 256, (setup.rows, setup.model.seq_length, values), dtype=torch.uint8)
    numbers = pixels.float() / 255
    if setup.device.type == "cuda":
        pixels, numbers = pixels.pin_memory(), numbers.pin_memory()

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(setup.device, non_blocking=True).to(setup.dtype)

    yield Change("patches: moved as fp32 -> as bytes (ours)", lambda: move(numbers), lambda: move(pixels).div_(255))


def compiled(setup: Setup) -> Iterator[Change]:
    """A decoder layer as it is, and as ``training.compile: layers`` runs it."""
    plain, other = setup.stage(1), setup.stage(1)
    seconds = compile_layers(other, setup.model, setup.rows, setup.dtype, masked=False)
    yield Change(
        "a decoder layer: as it is -> compiled",
        layer_passes(plain, setup, setup.rows),
        layer_passes(other, setup, setup.rows),
        {"compiled_in_seconds": seconds},
    )


class Graphable(nn.Module):
    """A decoder layer of tensors only, as a CUDA graph takes them."""

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.layer = stage.layer

    def forward(self, hidden: Tensor, angles: Tensor) -> Tensor:
        return run_layer(self.layer, hidden, None, angles)


def graph(setup: Setup) -> Iterator[Change]:
    """A decoder layer launched kernel by kernel, and as two CUDA graphs: with one row, and with a full micro-batch."""
    if setup.device.type != "cuda":
        raise LeftOutError("CUDA graphs want a CUDA device")
    for rows in dict.fromkeys((1, setup.rows)):
        stage = setup.stage(1)
        state = setup.travelling(rows)
        angles = _angles(stage, state)
        eager, captured = Graphable(stage), Graphable(setup.stage(1))
        sample = (torch.randn_like(state.hidden).requires_grad_(), angles.clone())
        torch.cuda.make_graphed_callables(captured, sample)

        def work(module: nn.Module, hidden: Tensor = state.hidden, angles: Tensor = angles) -> Work:
            return passes(lambda: module(hidden, angles), [hidden, *module.parameters()])

        yield Change(f"a decoder layer on {rows} row(s): launched -> CUDA graph", work(eager), work(captured))


def fp8(setup: Setup) -> Iterator[Change]:
    """The products of a layer, forward and backward, in bf16 and in FP8, its operands ready or made on the way."""
    capability = torch.cuda.get_device_capability(setup.device) if setup.device.type == "cuda" else (0, 0)
    if capability < (8, 9):
        raise LeftOutError("products in FP8 want a CUDA device of compute capability 8.9 or more")
    for rowwise in (False, True):
        yield from fp8_changes(setup, rowwise, torch.compile(as_fp8, dynamic=True))


def fp8_changes(setup: Setup, rowwise: bool, cast: Callable[[Tensor, bool], tuple[Tensor, Tensor]]) -> Iterator[Change]:
    """The changes of :func:`fp8` for one way of scaling."""
    model, n = setup.model, setup.positions
    width = model.hidden + 2 * model.kv_heads * (model.hidden // model.heads)
    shapes = [(model.hidden, width), (model.hidden, model.hidden), (model.hidden, 2 * model.ffn)]
    triples = []
    for k, m in [*shapes, (model.ffn, model.hidden)]:
        x, weight, gradient = setup.random(n, k), setup.random(m, k), setup.random(n, m)
        triples.append((x.detach(), weight.detach(), gradient.detach()))

    # Of [m, k] and [n, k]: what is multiplied lies in rows on both sides.
    operands = [
        pair
        for x, weight, gradient in triples
        for pair in ((x, weight), (gradient, weight.t().contiguous()), (gradient.t().contiguous(), x.t().contiguous()))
    ]
    ready = [(cast(a, rowwise), cast(b, rowwise)) for a, b in operands]

    def plain() -> None:
        for x, weight, gradient in triples:
            torch.mm(x, weight.t())
            torch.mm(gradient, weight)
            torch.mm(gradient.t(), x)

    def multiplied() -> None:
        for a, b in ready:
            scaled_product(a, b)

    def cast_and_multiplied() -> None:
        for x, weight, gradient in triples:
            pairs = ((x, weight), (gradient, weight.t()), (gradient.t(), x.t()))
            for a, b in pairs:
                scaled_product(cast(a.contiguous(), rowwise), cast(b.contiguous(), rowwise))

    exact = torch.mm(triples[0][0].float(), triples[0][1].float().t())
    error = torch.linalg.norm(scaled_product(*ready[0]).float() - exact) / torch.linalg.norm(exact)
    way = "a scale a row" if rowwise else "one scale"
    figures = {"relative_error": float(error)}
    yield Change(f"products of a layer: bf16 -> FP8, {way}, operands ready", plain, multiplied, figures)
    yield Change(f"products of a layer: bf16 -> FP8, {way}, operands made", plain, cast_and_multiplied, figures)


def as_fp8(matrix: Tensor, rowwise: bool) -> tuple[Tensor, Tensor]:
    """A matrix in float8_e4m3fn, and the scale of each row [m, 1] or of all (fp32) that gives its numbers back."""
    wide = matrix.float()
    most = wide.abs().amax(dim=1, keepdim=True) if rowwise else wide.abs().amax()
    scale = (most / FP8_MOST).clamp(min=1e-12)
    return (wide / scale).to(torch.float8_e4m3fn), scale


def scaled_product(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    """bf16 [m, n] of [m, k] and [n, k] with their scales: ``a @ b.T``."""
    (left, left_scale), (right, right_scale) = a, b
    scale = right_scale.t() if right_scale.ndim == 2 else right_scale
    return torch._scaled_mm(left, right.t(), scale_a=left_scale, scale_b=scale, out_dtype=torch.bfloat16)


def transformer_engine(setup: Setup) -> Iterator[Change]:
    """Norm and product, norm and feed-forward layer: ours, and Transformer Engine's in bf16 and in FP8."""
    try:
        import transformer_engine.pytorch as te
    except (ImportError, OSError, RuntimeError) as error:
        raise LeftOutError(f"Transformer Engine: {next(iter(str(error).splitlines()), type(error).__name__)}") from None
    model, layer = setup.model, setup.stage(1).layer
    hidden = setup.random(model.seq_length, setup.rows, model.hidden)
    width = model.hidden + 2 * model.kv_heads * (model.hidden // model.heads)
    common = {"eps": model.norm_eps, "bias": False, "normalization": "RMSNorm"}
    common |= {"params_dtype": setup.dtype, "device": setup.device}
    attention, mlp = layer.self_attention, layer.mlp
    sides = {
        "norm and queries, keys, values": (
            (layer.input_layernorm, attention.linear_qkv),
            te.LayerNormLinear(model.hidden, width, **common),
        ),
        "norm and feed-forward layer": (
            (layer.pre_mlp_layernorm, mlp),
            te.LayerNormMLP(model.hidden, model.ffn, activation="swiglu", **common),
        ),
    }
    for name, (ours, theirs) in sides.items():

        def plain(norm: Any = ours[0], products: Any = ours[1]) -> Tensor:
            output, _ = products(norm(hidden))
            return output

        before = passes(plain, [hidden, *(weight for module in ours for weight in module.parameters())])
        wanted = [hidden, *theirs.parameters()]
        for precision in ("bf16", "FP8"):

            def run(theirs: Any = theirs, enabled: bool = precision == "FP8") -> Tensor:
                with te.fp8_autocast(enabled=enabled):
                    return theirs(hidden)

            yield Change(f"{name}: ours -> Transformer Engine, {precision}", before, passes(run, wanted))


def passes(call: Callable[[], Tensor], wanted: list[Tensor]) -> Work:
    """Forward and backward pass of what ``call`` gives, to some tensors."""
    gradients: list[Tensor] = []

    def work() -> None:
        output = call()
        if not gradients:
            gradients.append(torch.randn_like(output))
        torch.autograd.grad(output, wanted, gradients[0])

    return work


def layer_passes(stage: Any, setup: Setup, rows: int) -> Work:
    """Forward and backward pass of a decoder layer."""
    state = setup.travelling(rows)
    return passes(lambda: stage(tuple(state))[0], [state.hidden, *stage.parameters()])


def _angles(stage: Any, state: Travelling) -> Tensor:
    """The angles that a stage hands to its layer."""
    found: list[Tensor] = []

    def look(layer: nn.Module, hidden: Tensor, seen: Any, angles: Tensor) -> Tensor:
        found.append(angles)
        return hidden

    kept, stage.run = stage.run, look
    stage(tuple(state))
    stage.run = kept
    return found[0]


ALL: dict[str, Callable[[Setup], Iterator[Change]]] = {
    "optimizer": optimizer,
    "attention": attention,
    "head": head,
    "patches": patches,
    "compiled": compiled,
    "graph": graph,
    "fp8": fp8,
    "transformer_engine": transformer_engine,
}
"""By name; one that raises leaves its own changes out, and nobody else's."""
