"""Metrics against their textbook formulas, written out one pair at a time."""

import math

import numpy as np
import pytest

from megatron_pixel.finetuning.metrics import METRICS, accuracy, f1, macro_f1, majority, mcc, pearson, spearman


def counts(labels: np.ndarray, said: np.ndarray) -> tuple[int, int, int, int]:
    """True and false positives and negatives."""
    pairs = list(zip(labels.tolist(), said.tolist(), strict=True))
    return pairs.count((1, 1)), pairs.count((0, 1)), pairs.count((1, 0)), pairs.count((0, 0))


@pytest.mark.parametrize("seed", range(5))
def test_binary_metrics(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, said = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    tp, fp, fn, tn = counts(labels, said)
    assert accuracy(labels, said) == pytest.approx((tp + tn) / 50)
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert f1(labels, said) == pytest.approx(2 * precision * recall / (precision + recall))
    expected = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert mcc(labels, said) == pytest.approx(expected)


def test_correlations_with_ties() -> None:
    x = np.array([1.0, 2.0, 2.0, 4.0, 5.0])
    y = np.array([10.0, 30.0, 20.0, 20.0, 70.0])
    # Ranks by hand: 1, 2.5, 2.5, 4, 5 and 1, 4, 2.5, 2.5, 5.
    assert spearman(x, y) == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4, 5], [1, 4, 2.5, 2.5, 5])[0, 1])
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert spearman(x, np.exp(x)) == pytest.approx(1.0)


def test_macro_f1_is_the_mean_over_the_classes_of_the_labels() -> None:
    labels, said = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0])
    assert macro_f1(labels, said) == pytest.approx((2 / 4 + 2 / 3 + 0) / 3)


def test_one_sided_predictions_score_zero_and_not_nothing() -> None:
    labels, said = np.array([0, 1, 1]), np.array([0, 0, 0])
    assert f1(labels, said) == mcc(labels, said) == 0.0
    assert pearson(labels.astype(float), said.astype(float)) == 0.0


def test_majority_guesses_the_most_frequent_class_of_the_training_split() -> None:
    train, labels = np.array([1, 1, 0]), np.array([0, 0, 0, 1])
    assert majority("accuracy", train, labels) == 0.25
    assert majority("f1", train, labels) == pytest.approx(2 / 5)
    assert majority("spearman", train.astype(float), labels.astype(float)) == 0.0
    assert set(METRICS) == {"accuracy", "f1", "macro_f1", "mcc", "spearman", "pearson"}
