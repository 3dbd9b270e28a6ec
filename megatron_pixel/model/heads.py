"""The last stages: final norm, and one head per objective."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.model.batch import MODALITIES, Header, Travelling
from megatron_pixel.model.layers import ColumnParallelLinear, RMSNorm
from megatron_pixel.model.seeding import stage_seed
from megatron_pixel.model.token_loss import HeadLoss, linear_cross_entropy

if TYPE_CHECKING:
    from megatron_pixel.model.objectives import Prediction


class FinalNorm(nn.Module):
    """RMSNorm over the hidden states of the last layer."""

    def __init__(self, model: ModelConfig, transformer: TransformerConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(transformer, model.hidden, eps=model.norm_eps)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        state = Travelling(*inputs)
        return tuple(state._replace(hidden=self.norm(state.hidden)))


class TokenProjection(ColumnParallelLinear):
    """Hidden states to this rank's share of the logits; with the ids of the targets, to their loss."""

    def forward(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor | HeadLoss:
        if ids is None:
            return super().forward(hidden)[0]
        return linear_cross_entropy(hidden, self.weight, ids)


class TokenHead(nn.Module):
    """[n, h] to this rank's share of the logits, [n, vocab_size / tensor_parallel]; no bias.

    With the ids of the targets, int64 [n], to their cross entropy.
    """

    def __init__(self, model: ModelConfig, transformer: TransformerConfig) -> None:
        super().__init__()
        # The hidden states of all positions are here already, also under sequence parallelism.
        whole_rows = copy.copy(transformer)
        whole_rows.sequence_parallel = False
        self.linear = TokenProjection(
            model.hidden,
            model.vocab_size,
            config=whole_rows,
            init_method=transformer.init_method,
            bias=False,
            gather_output=False,
        )

    def forward(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor | HeadLoss:
        return self.linear(hidden, ids)


class PatchHead(nn.Module):
    """[n, h] to the values of a patch, [n, patch_size^2 * num_channels], in row, column, channel order; no bias."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(model.hidden, model.patch_size**2 * model.num_channels, bias=False)
        nn.init.normal_(self.linear.weight, 0.0, model.init_std)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden)


class Heads(nn.Module):
    """Predictions of every objective whose modality the rows hold, at its target positions only.

    Returns a tuple with one tensor [n, ...] per objective: its predictions in the order of ``targets``; where the head
    closes, the :class:`HeadLoss` of these. An objective that the rows do not need gives [0]; one that is needed but has
    no target in these rows gives one prediction that counts nothing, because ranks that disagree about which parameters
    have a gradient would hang.
    """

    def __init__(
        self,
        model: ModelConfig,
        transformer: TransformerConfig,
        seed: int,
        stage: int,
        objectives: Sequence["Prediction"],
        touch_all: bool,
    ) -> None:
        super().__init__()
        self.modalities = [objective.modality for objective in objectives]
        self.closes = [objective.closes for objective in objectives]
        self.touch_all = touch_all
        self.gathers = transformer.sequence_parallel
        with stage_seed(seed, stage):
            self.heads = nn.ModuleDict({o.name: o.build_head(model, transformer) for o in objectives})

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor | HeadLoss, ...]:
        state = Travelling(*inputs)
        header = Header.read(state.header)
        hidden = state.hidden
        if self.gathers:
            hidden = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=False)
        s, b, h = hidden.shape
        hidden = hidden.reshape(s * b, h)
        outputs: list[Tensor | HeadLoss] = []
        lines = zip(self.heads.values(), self.modalities, self.closes, header.counts, state.targets, strict=True)
        for head, modality, closes, count, targets in lines:
            if not self.touch_all and modality not in MODALITIES[header.kind]:
                outputs.append(hidden.new_empty(0))
                continue
            positions = targets[: max(count, 1)]
            row, position = positions // s, positions % s
            states = hidden.index_select(0, position * b + row)
            if closes:
                outputs.append(head(states, state.tokens.flatten().index_select(0, positions + 1).long()))
            else:
                outputs.append(head(states))
        return tuple(outputs)
