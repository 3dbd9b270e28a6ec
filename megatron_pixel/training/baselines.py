"""What a model must beat to have learnt anything: baselines on the very same held-out rows.

A loss alone proves little: with black text on white, one constant patch already reaches 0.75 of the normalised error.
All baselines are fitted on the held-out targets themselves, which flatters them: a model below them has learnt from its
context, not from marginal statistics.
"""

import numpy as np

from megatron_pixel.data.rows import MicroBatch, target_masks

VARIANCE_EPSILON = 1e-6
"""Added to the variance of a patch before the root, as in the model's regression target."""


class UnigramEntropy:
    """Entropy of the empirical distribution of the target tokens: the best that a model without context can do."""

    def __init__(self, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, np.int64)

    def add(self, batch: MicroBatch) -> None:
        """Count the target tokens of a micro-batch."""
        token_mask, _ = target_masks(batch.modality, batch.segment_ids)
        self.counts += np.bincount(batch.tokens[:, 1:][token_mask[:, :-1]], minlength=len(self.counts))

    def value(self) -> float | None:
        """Nats a token; None where no target was seen."""
        total = self.counts.sum()
        if total == 0:
            return None
        p = self.counts[self.counts > 0] / total
        return float(-(p * np.log(p)).sum())


class PatchBaselines:
    """Errors of the best constant patch and of the best linear map from the previous patch.

    Accumulates the normal equations in float64, so that any number of pages fits in memory. The error is the model's:
    squared error, mean over the values of a patch, mean over target patches.

    Args:
        patch_dim: values of a patch (768 for 16 x 16 RGB).
        normalised: whether targets are normalised per patch (``model.patch_target``).
        end_patch: whether the black end patch is a target (``loss.end_patch``).
    """

    def __init__(self, patch_dim: int, normalised: bool = True, end_patch: bool = True) -> None:
        self.normalised = normalised
        self.end_patch = end_patch
        self.count = 0
        self.xx = np.zeros((patch_dim + 1, patch_dim + 1))
        self.xy = np.zeros((patch_dim + 1, patch_dim))
        self.yy = 0.0

    def target(self, patches: np.ndarray) -> np.ndarray:
        """Regression targets [k, d] float64 of patches [k, d] uint8."""
        y = patches / 255.0
        if not self.normalised:
            return y
        mean = y.mean(-1, keepdims=True)
        variance = y.var(-1, ddof=1, keepdims=True)
        return (y - mean) / np.sqrt(variance + VARIANCE_EPSILON)

    def add(self, batch: MicroBatch) -> None:
        """Accumulate the target patches of a micro-batch and the patches before them."""
        if batch.patches is None:
            return
        _, patch_mask = target_masks(batch.modality, batch.segment_ids, end_patch=self.end_patch)
        patch_mask = patch_mask[:, :-1]
        previous = batch.patches[:, :-1][patch_mask] / 255.0
        x = np.concatenate([previous, np.ones((len(previous), 1))], axis=1)
        y = self.target(batch.patches[:, 1:][patch_mask])
        self.count += len(x)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float((y * y).sum())

    def constant_patch(self) -> float | None:
        """Error of the one best patch; None where no target was seen."""
        if self.count == 0:
            return None
        mean = self.xy[-1] / self.count
        return float((self.yy / self.count - (mean * mean).sum()) / len(mean))

    def linear_previous_patch(self) -> float | None:
        """Error of the best affine map from the previous patch's pixels; None where no target was seen."""
        if self.count == 0:
            return None
        # Gray pages repeat each value in three channels, so the system is singular: least-norm solution.
        weights = np.linalg.pinv(self.xx, rcond=1e-10, hermitian=True) @ self.xy
        return float((self.yy - (weights * self.xy).sum()) / self.count / self.xy.shape[1])
