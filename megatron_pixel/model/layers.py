"""The decoder layer: megatron-core's, with local linear layers, torch's RMSNorm and our core attention."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel import ColumnParallelLinear as MegatronColumnParallelLinear
from megatron.core.tensor_parallel import RowParallelLinear as MegatronRowParallelLinear
from megatron.core.transformer.attention import SelfAttention as MegatronSelfAttention
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.model.attention import Documents, MaskKind, SDPACoreAttention, attention_mask
from megatron_pixel.model.batch import Header, Travelling
from megatron_pixel.model.products import OneDNNLinear
from megatron_pixel.model.rms_norm import rms_norm
from megatron_pixel.model.rotary import rotary_angles, rotation, turned_heads
from megatron_pixel.model.seeding import stage_seed
from megatron_pixel.model.swiglu import swiglu


class ColumnParallelLinear(OneDNNLinear, MegatronColumnParallelLinear):
    """Megatron's, without the empty ``_extra_state`` in its state dict that breaks DeepSpeed's checkpoint converter."""

    get_extra_state = nn.Module.get_extra_state


class RowParallelLinear(OneDNNLinear, MegatronRowParallelLinear):
    """Megatron's, likewise without ``_extra_state``."""

    get_extra_state = nn.Module.get_extra_state


class RMSNorm(nn.RMSNorm):
    """torch's, built as megatron-core builds its norms, with few passes over memory on a CPU.

    Under sequence parallelism each tensor-parallel rank normalizes its own positions, so the gradient of the weight, of
    which every rank has a copy, is summed over them.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps)
        self.eps: float = eps
        if config.sequence_parallel:
            self.weight.register_hook(_summed_over_tensor_ranks)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SelfAttention(MegatronSelfAttention):
    """Megatron's for training, with rotary positions of our own."""

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | Documents | None, rotary_pos_emb: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states [s, b, h] to the same; angles [s, b, d / 2] of :func:`rotary_angles`."""
        fused, _bias = self.linear_qkv(hidden_states)
        by = rotation(rotary_pos_emb, fused.dtype)
        query, key, value = turned_heads(fused, self.num_query_groups_per_partition, by)
        output: tuple[Tensor, Tensor | None] = self.linear_proj(self.core_attention(query, key, value, attention_mask))
        return output


def _summed_over_tensor_ranks(gradient: Tensor) -> Tensor:
    summed = gradient.contiguous().clone()
    dist.all_reduce(summed, group=parallel_state.get_tensor_model_parallel_group())
    return summed


def transformer_config(
    model: ModelConfig, tensor_parallel: int = 1, sequence_parallel: bool = False
) -> TransformerConfig:
    """Megatron-core's settings for ``model``.

    Weights are drawn whole on the CPU and then split, so every tensor-parallel size starts from the same model. All
    matrices have the same standard deviation, as in Llama; megatron's smaller one for output projections is not used.
    With ``sequence_parallel``, norms and residuals are split over the same ranks by position (CUDA only).

    Raises:
        UserError: the model does not divide over ``tensor_parallel`` ranks, or over its own heads.
    """
    _check_divides("model.hidden", model.hidden, "model.heads", model.heads)
    _check_divides("model.heads", model.heads, "model.kv_heads", model.kv_heads)
    for name in ("heads", "kv_heads", "ffn", "vocab_size"):
        _check_divides(f"model.{name}", getattr(model, name), "parallel.tensor", tensor_parallel)
    if (model.hidden // model.heads) % 2:
        raise UserError(
            f"model.hidden {model.hidden} / model.heads {model.heads} is odd: rotary positions turn pairs of values"
        )

    def normal(tensor: Tensor) -> None:
        nn.init.normal_(tensor, 0.0, model.init_std)

    return TransformerConfig(
        num_layers=model.layers,
        hidden_size=model.hidden,
        num_attention_heads=model.heads,
        num_query_groups=model.kv_heads,
        ffn_hidden_size=model.ffn,
        normalization="RMSNorm",
        layernorm_epsilon=model.norm_eps,
        gated_linear_unit=True,
        activation_func=F.silu,
        use_te_activation_func=True,  # not Transformer Engine's: the one that layer_spec names
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method=normal,
        output_layer_init_method=normal,
        use_cpu_initialization=True,
        tensor_model_parallel_size=tensor_parallel,
        sequence_parallel=sequence_parallel,
        # The fusions want Apex or CUDA.
        bias_activation_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
    )


def layer_spec() -> ModuleSpec:
    """Pre-norm decoder layer: RMSNorm, grouped-query attention, RMSNorm, SwiGLU."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    spec.submodules.input_layernorm = RMSNorm
    spec.submodules.pre_mlp_layernorm = RMSNorm
    spec.submodules.self_attention.module = SelfAttention
    attention = spec.submodules.self_attention.submodules
    attention.linear_qkv = ColumnParallelLinear
    attention.core_attention = SDPACoreAttention
    attention.linear_proj = RowParallelLinear
    mlp = spec.submodules.mlp.submodules
    mlp.linear_fc1 = ColumnParallelLinear
    mlp.linear_fc2 = RowParallelLinear
    mlp.activation_func = swiglu
    return spec


LayerCall = Callable[[nn.Module, Tensor, Tensor | Documents | None, Tensor], Tensor]
"""What :func:`run_layer` takes and gives."""


def run_layer(layer: nn.Module, hidden: Tensor, seen: Tensor | Documents | None, angles: Tensor) -> Tensor:
    """Megatron-core's ``layer`` on hidden states [s, b, h]; who sees whom as core attention takes it."""
    output, _ = layer(hidden, attention_mask=seen, rotary_pos_emb=angles)
    return output


class DecoderLayer(nn.Module):
    """One layer as a stage: :class:`Travelling` in, :class:`Travelling` out.

    With ``recompute`` only its input is kept for the backward pass, which runs the layer a second time.

    Attributes:
        run: what takes the place of :func:`run_layer` in training: its compiled form, for one.
    """

    def __init__(
        self,
        model: ModelConfig,
        transformer: TransformerConfig,
        seed: int,
        stage: int,
        mask_kind: MaskKind,
        recompute: bool,
    ) -> None:
        super().__init__()
        self.mask_kind = mask_kind
        self.recompute = recompute
        self.head_width = model.hidden // model.heads
        self.rope_theta = model.rope_theta
        self.run: LayerCall = run_layer
        with stage_seed(seed, stage):
            self.layer = build_module(layer_spec(), config=transformer, layer_number=stage)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        state = Travelling(*inputs)
        if self.recompute and torch.is_grad_enabled():
            # No random states to put back: nothing here draws, as there is no dropout.
            hidden = checkpoint(self._hidden, state, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden = self._hidden(state)
        return tuple(state._replace(hidden=hidden))

    def _hidden(self, state: Travelling) -> Tensor:
        run = self.run if self.training else run_layer
        angles = rotary_angles(state.position_ids, self.head_width, self.rope_theta)
        return run(self.layer, state.hidden, self._seen(state), angles)

    def _seen(self, state: Travelling) -> Tensor | Documents | None:
        """Who sees whom, as core attention takes it."""
        header = Header.read(state.header)
        if not header.documents:
            return attention_mask(self.mask_kind, state.segment_ids, header.inner_padding)
        if self.mask_kind is not MaskKind.CAUSAL:
            raise ValueError(f"rows of several documents under the mask {self.mask_kind.value}: causal alone is known")
        return Documents(state.position_ids, header.documents)


def _check_divides(name: str, value: int, divisor_name: str, divisor: int) -> None:
    if divisor < 1 or value % divisor:
        raise UserError(f"{name} is {value}, which {divisor_name} {divisor} does not divide")
