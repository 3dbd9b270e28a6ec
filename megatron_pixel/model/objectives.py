"""Objectives: what is predicted, with which head, under which mask, at which loss.

An objective owns its target, head, mask kind and loss; the stages, the training loop and the metrics treat all of them
alike, by name. Losses are handed on as sums and counts, in fp32: their mean is over the *global* batch, which only the
training loop sees.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.data.rows import Modality
from megatron_pixel.model.attention import MaskKind
from megatron_pixel.model.batch import Labels
from megatron_pixel.model.heads import PatchHead, TokenHead
from megatron_pixel.model.token_loss import HeadLoss

VARIANCE_EPS = 1e-6
"""Keeps a patch of one value finite when it is normalized; as in the released code."""


class Prediction(ABC):
    """One thing that the model predicts, with a head of its own: all that the stages know of it.

    Attributes:
        name: key of its head, its loss and its metrics.
        modality: the rows that hold it have this prediction.
        mask_kind: who sees whom; all predictions of a model must agree.
        closes: whether the head also takes the ids of the tokens to be predicted, and hands out their loss in place of
            predictions, which then never exist all at once.
    """

    name: str
    modality: Modality
    mask_kind: MaskKind = MaskKind.CAUSAL
    closes: bool = False

    @abstractmethod
    def build_head(self, model: ModelConfig, transformer: TransformerConfig) -> nn.Module:
        """A module from hidden states [n, h] to predictions [n, ...]."""

    @abstractmethod
    def positions(self, modality: Tensor, segment_ids: Tensor) -> Tensor:
        """Which positions predict: bool [b, s] from uint8 and int32 [b, s]."""


class Objective(Prediction):
    """A prediction whose target stands in the row itself.

    Attributes:
        weight: factor of its mean loss in the loss of the step.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    @abstractmethod
    def targets(self, labels: Labels, positions: Tensor) -> Tensor:
        """What is to be predicted at the flat positions int64 [n]; [n, ...]."""

    @abstractmethod
    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """fp32 [n]."""


class NextToken(Objective):
    """Cross entropy of the next token; logits split over tensor-parallel ranks.

    Args:
        weight: factor in the loss of the step.
        closes: see :class:`Prediction`; otherwise the head hands out logits.
    """

    name = "token"
    modality = Modality.TOKEN

    def __init__(self, weight: float = 1.0, closes: bool = True) -> None:
        super().__init__(weight)
        self.closes = closes

    def build_head(self, model: ModelConfig, transformer: TransformerConfig) -> nn.Module:
        return TokenHead(model, transformer)

    def positions(self, modality: Tensor, segment_ids: Tensor) -> Tensor:
        return _successor_alike(modality, segment_ids) & (modality == Modality.TOKEN)

    def targets(self, labels: Labels, positions: Tensor) -> Tensor:
        """Token ids, int64 [n]."""
        return labels.tokens.flatten().index_select(0, positions + 1)

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Nats per target from this rank's logits [n, vocab_size / tensor_parallel]."""
        # Megatron turns fp32 logits into probabilities in place; the caller keeps its own.
        logits = predictions.clone() if predictions.dtype == torch.float32 else predictions
        return vocab_parallel_cross_entropy(logits, targets)


class NextPatch(Objective):
    """Squared error of the next patch, mean over its values (paper, section 3.3).

    Args:
        weight: factor in the loss of the step.
        normalized: regress ``(x - mean) / sqrt(var + 1e-6)`` with each patch's own mean and unbiased variance over its
            values, else the values themselves; ``x`` are pixels / 255.
        end_patch: whether the last patch of a segment, the black one, is a target. Normalized it is the zero vector.
    """

    name = "patch"
    modality = Modality.PATCH

    def __init__(self, weight: float = 1.0, normalized: bool = True, end_patch: bool = True) -> None:
        super().__init__(weight)
        self.normalized = normalized
        self.end_patch = end_patch

    def build_head(self, model: ModelConfig, transformer: TransformerConfig) -> nn.Module:
        return PatchHead(model)

    def positions(self, modality: Tensor, segment_ids: Tensor) -> Tensor:
        predicts = _successor_alike(modality, segment_ids) & (modality == Modality.PATCH)
        if not self.end_patch:
            # Position i predicts the last patch of its segment exactly if position i + 1 predicts nothing.
            predicts[:, :-1] &= predicts[:, 1:].clone()
        return predicts

    def targets(self, labels: Labels, positions: Tensor) -> Tensor:
        """Regression targets, float32 [n, d]."""
        pixels = self._pixels(labels, positions)
        if not self.normalized:
            return pixels
        mean, deviation = _statistics(pixels)
        return (pixels - mean) / deviation

    def loss(self, predictions: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error per target from predictions [n, d]."""
        return (predictions.float() - targets).square().mean(-1)

    def to_pixels(self, predictions: Tensor, labels: Labels, positions: Tensor) -> Tensor:
        """Predictions [n, d] as pixels, uint8 [n, d]; normalized ones borrow mean and variance from the true patch."""
        values = predictions.float()
        if self.normalized:
            mean, deviation = _statistics(self._pixels(labels, positions))
            values = values * deviation + mean
        return (values * 255).round().clamp(0, 255).to(torch.uint8)

    def _pixels(self, labels: Labels, positions: Tensor) -> Tensor:
        return labels.patches.flatten(0, 1).index_select(0, positions + 1).float() / 255


def pretraining_objectives(model: ModelConfig, loss: LossConfig) -> tuple[Objective, ...]:
    """Next token and next patch, as the config weighs them."""
    return (
        NextToken(loss.token_weight),
        NextPatch(loss.patch_weight, normalized=model.patch_target == "normalised", end_patch=loss.end_patch),
    )


@dataclass(frozen=True)
class LossSum:
    """Loss of one objective over the targets of a micro-batch."""

    sum: Tensor
    """fp32 scalar with its graph."""
    count: int
    """Number of targets."""
    each: Tensor | None = None
    """fp32 [count] without a graph: the loss of each target."""
    positions: Tensor | None = None
    """int64 [count]: its flat position ``row * s + i``."""


def losses(
    outputs: tuple[Tensor | HeadLoss, ...], labels: Labels, objectives: Sequence[Objective]
) -> dict[str, LossSum]:
    """Sums and counts by objective, for the objectives that the model ran on these rows.

    The loss of a step is ``sum_k weight_k * sum_k / count_k`` with sums and counts over all micro-batches and ranks. An
    objective that ran without a target has a sum of zero tied to its parameters; it belongs in the backward pass too.
    """
    results = {}
    counts = labels.header.tolist()[2:]
    for objective, predictions, count, positions in zip(objectives, outputs, counts, labels.targets, strict=True):
        if len(predictions) == 0:
            continue
        if count == 0:
            nothing = predictions.sum if isinstance(predictions, HeadLoss) else predictions.float().sum()
            results[objective.name] = LossSum(0 * nothing, 0)
            continue
        predicting = positions[:count]
        if isinstance(predictions, HeadLoss):
            results[objective.name] = LossSum(predictions.sum, count, predictions.each, predicting)
            continue
        each = objective.loss(predictions, objective.targets(labels, predicting))
        results[objective.name] = LossSum(each.sum(), count, each.detach(), predicting)
    return results


def _successor_alike(modality: Tensor, segment_ids: Tensor) -> Tensor:
    """bool [b, s]: the next position has the same modality and the same segment."""
    alike = torch.zeros_like(modality, dtype=torch.bool)
    alike[:, :-1] = (modality[:, :-1] == modality[:, 1:]) & (segment_ids[:, :-1] == segment_ids[:, 1:])
    return alike


def _statistics(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and regularized standard deviation of each patch, [n, 1] each, of float32 [n, d]."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return mean, (variance + VARIANCE_EPS).sqrt()
