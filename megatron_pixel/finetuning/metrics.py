"""The paper's metrics (section E.1), and what a majority guesser reaches on them. Plain numpy, exact on ties."""

from collections.abc import Callable, Mapping

import numpy as np

Metric = Callable[[np.ndarray, np.ndarray], float]


def accuracy(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Share of equal entries of two int64 [n]."""
    return float(np.mean(labels == predictions))


def f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """``2 tp / (2 tp + fp + fn)`` of class 1; 0 where nobody says 1."""
    hits = int(np.sum((labels == 1) & (predictions == 1)))
    errors = int(np.sum((labels == 1) ^ (predictions == 1)))
    return 2 * hits / (2 * hits + errors) if hits else 0.0


def macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Mean of the F1 of every class that occurs in the labels."""
    return float(np.mean([f1((labels == c).astype(int), (predictions == c).astype(int)) for c in np.unique(labels)]))


def mcc(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Matthews correlation of any number of classes (Gorodkin 2004); 0 where either side says one class only."""
    classes = int(max(labels.max(), predictions.max())) + 1
    confusion = np.zeros((classes, classes))
    np.add.at(confusion, (labels, predictions), 1)
    total, hits = confusion.sum(), np.trace(confusion)
    true, said = confusion.sum(1), confusion.sum(0)
    spread = (total**2 - said @ said) * (total**2 - true @ true)
    return float((hits * total - true @ said) / np.sqrt(spread)) if spread > 0 else 0.0


def pearson(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Linear correlation of two float64 [n]; 0 where either side is constant."""
    x, y = labels - labels.mean(), predictions - predictions.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / spread) if spread > 0 else 0.0


def spearman(labels: np.ndarray, predictions: np.ndarray) -> float:
    """Correlation of ranks; ties share the mean of theirs."""
    return pearson(_ranks(labels), _ranks(predictions))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[places]


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "mcc": mcc,
    "spearman": spearman,
    "pearson": pearson,
}
SCORE_METRICS = ("spearman", "pearson")
"""Metrics of a number; the others are of classes."""


def majority(metric: str, train: np.ndarray, labels: np.ndarray) -> float:
    """What the constant guess reaches: the most frequent class of the training split, or the mean score."""
    if metric in SCORE_METRICS:
        return 0.0
    return METRICS[metric](labels, np.full(len(labels), np.bincount(train).argmax()))
