"""Every parameter of the model by name and shape, in the order of the model: shape arithmetic, nothing is built.

A test holds the list against the parameters of models that are built.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.parallel.sharding import Split, split_of

PATCHES_ONLY = (".patches.", ".heads.patch.")
"""Parts of the names of parameters that rows without patches leave alone."""
TOKENS_ONLY = (".tokens.", ".heads.token.")
"""Likewise, rows without tokens."""


@dataclass(frozen=True, eq=False)
class Parameter:
    """One parameter of the whole model; compared by identity, as plans look them up often."""

    name: str
    shape: tuple[int, ...]

    @cached_property
    def stage(self) -> int:
        """Place of its stage in the list of stages."""
        return int(self.name.partition(".")[0])

    @property
    def module(self) -> str:
        """Name of the module that owns it."""
        return self.name.rpartition(".")[0]

    @cached_property
    def numel(self) -> int:
        """Values of the whole parameter."""
        return prod(self.shape)

    def share(self, tensor: int) -> int:
        """Values on each of ``tensor`` tensor-parallel ranks."""
        return prod(self._split.local_shape(self.shape, tensor))

    @cached_property
    def _split(self) -> Split:
        return split_of(self.name)

    def used_by(self, tokens: bool, patches: bool) -> bool:
        """Whether rows that hold tokens, or patches, or both, give it a gradient."""
        return (patches or not _any(PATCHES_ONLY, self.name)) and (tokens or not _any(TOKENS_ONLY, self.name))


def parameters(model: ModelConfig) -> list[Parameter]:
    """All parameters in the order of ``named_parameters`` of the list of stages."""
    h, f, v, d = model.hidden, model.ffn, model.vocab_size, model.patch_size**2 * model.num_channels
    qkv = h + 2 * model.kv_heads * (h // model.heads)
    last = model.layers + 1
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (h,),
        "self_attention.linear_proj.weight": (h, h),
        "self_attention.linear_qkv.weight": (qkv, h),
        "pre_mlp_layernorm.weight": (h,),
        "mlp.linear_fc1.weight": (2 * f, h),
        "mlp.linear_fc2.weight": (h, f),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "0.tokens.weight": (v, h),
        "0.patches.projection.weight": (h, d),
        "0.patches.projection.bias": (h,),
        "0.patches.norm.weight": (h,),
        "0.patches.norm.bias": (h,),
        **{f"{i}.layer.{name}": shape for i in range(1, model.layers + 1) for name, shape in layer.items()},
        f"{last}.norm.weight": (h,),
        f"{last + 1}.heads.token.linear.weight": (v, h),
        f"{last + 1}.heads.patch.linear.weight": (d, h),
    }
    return [Parameter(name, shape) for name, shape in shapes.items()]


def groups(held: Sequence[Parameter]) -> list[list[Parameter]]:
    """Parameters as the optimizer groups them: matrices, then vectors; see ``parallel.engine.parameter_groups``."""
    matrices = [parameter for parameter in held if len(parameter.shape) > 1]
    vectors = [parameter for parameter in held if len(parameter.shape) <= 1]
    return [group for group in (matrices, vectors) if group]


def _any(parts: Sequence[str], name: str) -> bool:
    return any(part in name for part in parts)
