"""The classifier: the decoder of pretraining under a linear head at the last real position of each row."""

from dataclasses import replace

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.rows import Modality
from megatron_pixel.model.objectives import Prediction
from megatron_pixel.model.stages import stage_specs

MODALITY = {"text": Modality.TOKEN, "pixel": Modality.PATCH, "pair": Modality.TOKEN}
"""What the last real position of a row holds."""


class ScoreHead(nn.Module):
    """[n, h] to [n, labels]; no bias, as in the released classifier (``score.weight``)."""

    def __init__(self, model: ModelConfig, labels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(model.hidden, labels, bias=False)
        nn.init.normal_(self.linear.weight, 0.0, model.init_std)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(self.dropout(hidden))


class Score(Prediction):
    """The label of a row, at its last real position: the end patch of an image, the last token of a text or pair.

    The released code takes the last *patch* of a pair whose tokens need no padding, and counts on padding where there
    is none; here padding is what the row says it is.
    """

    name = "score"

    def __init__(self, modality: str, labels: int, dropout: float = 0.0) -> None:
        self.modality = MODALITY[modality]
        self._labels, self._dropout = labels, dropout

    def build_head(self, model: ModelConfig, transformer: TransformerConfig) -> nn.Module:
        return ScoreHead(model, self._labels, self._dropout)

    def positions(self, modality: Tensor, segment_ids: Tensor) -> Tensor:
        """One position of each row that holds anything."""
        real = modality != Modality.PADDING
        behind = real.flip(1).to(torch.int32).cumsum(1).flip(1)  # real positions from here on
        return real & (behind == 1)


def build_classifier(
    model: ModelConfig, score: Score, seed: int, dropout: float = 0.0, touch_all: bool = False
) -> nn.Sequential:
    """The stages with fresh weights; dropout is behind attention and feed-forward layers, as in Llama's ancestors.

    The embedder that the rows do not need is frozen, so that it takes no optimizer state.
    """
    specs = stage_specs(model, [score], seed, touch_all=touch_all)
    # Every stage shares one object; pretraining knows no dropout.
    transformer: TransformerConfig = specs[0].arguments[1]
    transformer.hidden_dropout = dropout
    return nn.Sequential(*(spec.build() for spec in specs))


def freeze_unused(network: nn.Sequential, modality: str) -> None:
    """Exclude the embedder that rows of this modality never use from training."""
    unused = {"text": network[0].patches, "pixel": network[0].tokens}.get(modality)
    if unused is not None:
        for parameter in unused.parameters():
            parameter.requires_grad_(False)


def averaged_channels(weight: Tensor, patch_size: int) -> Tensor:
    """The projection of RGB patches for gray or binary ones: mean over channels (paper, section E.3).

    Args:
        weight: [h, P * P * 3], values of a patch in row, column, channel order.

    Returns:
        [h, P * P].
    """
    return weight.unflatten(1, (patch_size * patch_size, -1)).mean(-1)


def one_channel(model: ModelConfig) -> ModelConfig:
    """The same model reading gray patches."""
    return replace(model, num_channels=1)
