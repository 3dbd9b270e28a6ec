"""The one table of tensor names: what each parameter of ours is made of in a released checkpoint.

A released tensor is a view of a parameter of ours, its values in another order at the most. So writing and reading are
copies of views: nothing is computed, and a round trip keeps every bit.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from megatron_pixel.config.schema import ModelConfig

Layout = Literal["released", "llama"]
"""``released``: the paper's models (both embedders, both heads, or a classifier); ``llama``: plain Llama."""

Shape = tuple[int, ...]

SCORE = "score"
"""Head of a classifier, in place of the two of pretraining."""


def _whole(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Part:
    """One released tensor."""

    name: str
    shape: Shape
    view: Callable[[Tensor], Tensor] = _whole
    """From a parameter of ours to a view that holds the released tensor's values in their order, in any shape."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of ours, by its name in :mod:`megatron_pixel.model.stages`."""

    name: str
    shape: Shape
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def parameters(model: ModelConfig, layout: Layout, labels: int = 0) -> list[Parameter]:
    """Every parameter that a checkpoint of ``layout`` holds, in the order of the model.

    Args:
        model: its shape.
        layout: of the released checkpoint. ``llama`` has no patch embedder and no pixel head.
        labels: outputs of a classifier, which has a score and no other head; 0 for a pretraining model.
    """
    released = layout == "released"
    hidden, last = model.hidden, model.layers + 2
    found = [_same("0.tokens.weight", "model.embed_tokens.weight", (model.vocab_size, hidden))]
    if released:
        found += _patch_embedder(model)
    for layer in range(1, model.layers + 1):
        found += _layer(model, layer)
    found.append(_same(f"{last - 1}.norm.weight", "model.norm.weight", (hidden,)))
    if labels:
        return [*found, _same(head_name(model, SCORE), "score.weight", (labels, hidden))]
    head = "lm_token_head.weight" if released else "lm_head.weight"
    found.append(_same(head_name(model, "token"), head, (model.vocab_size, hidden)))
    if released:
        values = model.patch_size**2 * model.num_channels
        found.append(_same(head_name(model, "patch"), "lm_pixel_head.weight", (values, hidden)))
    return found


def head_name(model: ModelConfig, head: str) -> str:
    """Name of the weight of a head: ``token``, ``patch`` or ``score``."""
    return f"{model.layers + 2}.heads.{head}.linear.weight"


def _same(ours: str, theirs: str, shape: Shape) -> Parameter:
    return Parameter(ours, shape, (Part(theirs, shape),))


def _patch_embedder(model: ModelConfig) -> list[Parameter]:
    hidden, size, channels = model.hidden, model.patch_size, model.num_channels
    prefix = "model.embed_patches.patch_embeddings."

    def kernel(weight: Tensor) -> Tensor:
        # Ours is flattened row, column, channel; theirs is a Conv2d kernel.
        return weight.view(hidden, size, size, channels).permute(0, 3, 1, 2)

    projection = Part(f"{prefix}projection.weight", (hidden, channels, size, size), kernel)
    return [
        Parameter("0.patches.projection.weight", (hidden, size * size * channels), (projection,)),
        _same("0.patches.projection.bias", f"{prefix}projection.bias", (hidden,)),
        _same("0.patches.norm.weight", f"{prefix}norm.weight", (hidden,)),
        _same("0.patches.norm.bias", f"{prefix}norm.bias", (hidden,)),
    ]


def _layer(model: ModelConfig, number: int) -> list[Parameter]:
    hidden, ffn, groups = model.hidden, model.ffn, model.kv_heads
    width, queries = hidden // model.heads, model.heads // groups
    ours, theirs = f"{number}.layer.", f"model.layers.{number - 1}."

    def grouped(qkv: Tensor) -> Tensor:
        # Group by group: its queries, its key, its value.
        return qkv.view(groups, queries + 2, width, hidden)

    key_shape = (groups * width, hidden)
    attention = (
        Part(f"{theirs}self_attn.q_proj.weight", (hidden, hidden), lambda qkv: grouped(qkv)[:, :queries]),
        Part(f"{theirs}self_attn.k_proj.weight", key_shape, lambda qkv: grouped(qkv)[:, queries]),
        Part(f"{theirs}self_attn.v_proj.weight", key_shape, lambda qkv: grouped(qkv)[:, queries + 1]),
    )
    gated = (
        Part(f"{theirs}mlp.gate_proj.weight", (ffn, hidden), lambda fc1: fc1[:ffn]),
        Part(f"{theirs}mlp.up_proj.weight", (ffn, hidden), lambda fc1: fc1[ffn:]),
    )
    rows = groups * (queries + 2) * width
    return [
        _same(f"{ours}input_layernorm.weight", f"{theirs}input_layernorm.weight", (hidden,)),
        Parameter(f"{ours}self_attention.linear_qkv.weight", (rows, hidden), attention),
        _same(f"{ours}self_attention.linear_proj.weight", f"{theirs}self_attn.o_proj.weight", (hidden, hidden)),
        _same(f"{ours}pre_mlp_layernorm.weight", f"{theirs}post_attention_layernorm.weight", (hidden,)),
        Parameter(f"{ours}mlp.linear_fc1.weight", (2 * ffn, hidden), gated),
        _same(f"{ours}mlp.linear_fc2.weight", f"{theirs}mlp.down_proj.weight", (hidden, ffn)),
    ]
