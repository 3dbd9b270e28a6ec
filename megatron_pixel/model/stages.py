"""The model as one list of stages: embedding, decoder layers, final norm, heads.

Every stage takes a tuple of tensors and returns one, so ``nn.Sequential`` of the list is the model, and a pipeline cuts
the same list. Parameter names (``0.tokens.weight``, ``1.layer.mlp.linear_fc1.weight``, ...) number the stages and so
depend on neither the pipeline's size nor the tensor-parallel size.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.model.embedding import Embedding
from megatron_pixel.model.heads import FinalNorm, Heads
from megatron_pixel.model.layers import DecoderLayer, transformer_config
from megatron_pixel.model.objectives import Prediction


@dataclass(frozen=True)
class StageSpec:
    """A stage that is not built yet: a pipeline builds only its own."""

    module: type[nn.Module]
    arguments: tuple[Any, ...]

    def build(self) -> nn.Module:
        """Draw its weights: they depend on the seed and the place in the list, on nothing built before."""
        return self.module(*self.arguments)


def stage_specs(
    model: ModelConfig,
    objectives: Sequence[Prediction],
    seed: int,
    tensor_parallel: int = 1,
    touch_all: bool = False,
    recompute: Collection[int] = (),
    sequence_parallel: bool = False,
) -> list[StageSpec]:
    """The list, not built.

    Args:
        model: shape of the model.
        objectives: what it learns; each brings its head.
        seed: of the initial weights.
        tensor_parallel: ranks that share every layer; must be the size that the process mesh was set up with.
        touch_all: every parameter takes part in every micro-batch, by one position that counts nothing (ZeRO 3);
            otherwise what the rows do not need is not run.
        recompute: decoder layers, counted from 1, that compute their activations again in the backward pass.
        sequence_parallel: split norms and residuals over the tensor-parallel ranks by position; CUDA only.

    Raises:
        UserError: the shape does not divide as it must.
        ValueError: the objectives want different masks.
    """
    masks = {objective.mask_kind for objective in objectives}
    if len(masks) != 1:
        raise ValueError(f"objectives want the masks {sorted(mask.value for mask in masks)}: one model has one")
    mask_kind = masks.pop()
    transformer = transformer_config(model, tensor_parallel, sequence_parallel)
    last = model.layers + 2
    return [
        StageSpec(Embedding, (model, transformer, seed, 0, touch_all)),
        *(
            StageSpec(DecoderLayer, (model, transformer, seed, i, mask_kind, i in recompute))
            for i in range(1, model.layers + 1)
        ),
        StageSpec(FinalNorm, (model, transformer)),
        StageSpec(Heads, (model, transformer, seed, last, tuple(objectives), touch_all)),
    ]


def build_stages(
    model: ModelConfig,
    objectives: Sequence[Prediction],
    seed: int,
    tensor_parallel: int = 1,
    touch_all: bool = False,
    recompute: Collection[int] = (),
    sequence_parallel: bool = False,
) -> list[nn.Module]:
    """The list, built; arguments as in :func:`stage_specs`. The process mesh must be set up."""
    specs = stage_specs(model, objectives, seed, tensor_parallel, touch_all, recompute, sequence_parallel)
    return [spec.build() for spec in specs]
