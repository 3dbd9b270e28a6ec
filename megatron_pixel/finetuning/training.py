"""The training of a classifier: steps, evaluations between them, the best model, early stopping."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.finetuning.batches import RowBuilder, TrainingOrder, cut_step
from megatron_pixel.finetuning.classifier import Score
from megatron_pixel.finetuning.outputs import outputs_of
from megatron_pixel.finetuning.tasks import Task
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.parallel.engine import set_learning_rate
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.guards import StopSignals
from megatron_pixel.training.schedule import learning_rate

Scores = dict[str, dict[str, float]]
"""Metrics by split."""


@dataclass
class Split:
    """An evaluation split, ready."""

    name: str
    rows: RowBuilder
    labels: np.ndarray | None
    selects: bool
    """Whether its score takes part in choosing the best model."""


@dataclass
class Fit:
    """How a training went."""

    best_step: int = 0
    best: float = -math.inf
    scores: Scores = field(default_factory=dict)
    """Of the best model."""
    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    """Of the best model, by split: float32 [n, width]."""
    steps: int = 0
    examples: int = 0
    seconds: float = 0.0
    """In training steps alone."""
    ended_by: str = "steps"
    """``steps``, ``early stopping``, or the name of a signal."""


class Fitter:
    """Trains a classifier on examples.

    Args:
        engine: DeepSpeed's, around the classifier.
        train: rows of the training split.
        labels: their labels.
        task, score: what is learnt.
        width: outputs of an example.
        config: settings.
        mesh: where this process stands.
    """

    def __init__(
        self,
        engine: Any,
        train: RowBuilder,
        labels: np.ndarray,
        task: Task,
        score: Score,
        width: int,
        config: FinetuningConfig,
        mesh: Mesh,
    ) -> None:
        self._engine, self._train, self._task, self._score, self._width = engine, train, task, score, width
        self._config, self._mesh = config, mesh
        self._labels = torch.from_numpy(labels)
        training = config.training
        self._order = TrainingOrder(len(labels), training.global_batch_rows, training.seed)

    def fit(
        self,
        splits: Sequence[Split],
        record: Callable[[Mapping[str, Any]], None],
        keep: Callable[[int, Scores], None],
        signals: StopSignals | None = None,
    ) -> Fit:
        """Train to the end, or until evaluations stop improving; collective.

        Args:
            splits: evaluated together; those that select choose the best model by the mean of their scores.
            record: takes a line of metrics.
            keep: called with the step and the scores when the weights are the best so far.
            signals: a signal ends the training after the step that is under way.
        """
        config, fit = self._config, Fit()
        every = config.stopping.every or config.training.steps
        worse = 0
        for step in range(1, config.training.steps + 1):
            start = time.perf_counter()
            loss, rate = self.step(step)
            seconds = time.perf_counter() - start
            fit.steps, fit.seconds = step, fit.seconds + seconds
            fit.examples += config.training.global_batch_rows
            record({"step": step, "loss": loss, "lr": rate, "seconds": seconds})
            if not math.isfinite(loss):
                raise UserError(
                    f"step {step}: the loss is not a finite number; take a lower optimizer.lr than {rate:g}"
                )
            stop = self._signal(signals)
            last = step == config.training.steps or stop is not None
            if step % every and not last:
                continue
            better = self._evaluate(step, splits, fit, record)
            if better:
                keep(step, fit.scores)
            worse = 0 if better else worse + 1
            if stop is not None:
                fit.ended_by = stop
                break
            if config.stopping.patience and worse >= config.stopping.patience and not last:
                fit.ended_by = "early stopping"
                break
        return fit

    def step(self, step: int) -> tuple[float, float]:
        """One optimizer step; the mean loss over all of its examples, and the learning rate."""
        config, mesh = self._config, self._mesh
        training = config.training
        rate = learning_rate(step, training.steps, config.optimizer)
        set_learning_rate(self._engine, rate)
        indexes = self._order.step(step - 1)
        micro = cut_step(indexes, self._train.lengths, training.micro_batch_rows, mesh.data_rank, mesh.data_size)
        # DeepSpeed divides by ranks and micro-batches; the sum over the step is to be divided by its examples.
        scale = len(indexes) // training.micro_batch_rows / len(indexes)
        total = torch.zeros((), device=mesh.device)
        for rows in micro:
            batch = to_tensors(self._train.batch(rows), [self._score], mesh.device)
            loss = self._loss(self._engine(batch.inputs)[0], self._labels[rows].to(mesh.device)).sum()
            self._engine.backward(loss * scale)
            self._engine.step()
            total += loss.detach()
        dist.all_reduce(total, group=mesh.data_group)
        return float(total) / len(indexes), rate

    def _loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """fp32 [n]: cross entropy, or squared error of a score."""
        if self._task.is_score:
            return (outputs[:, 0].float() - labels.float()).square()
        return F.cross_entropy(outputs.float(), labels, reduction="none")

    def _evaluate(
        self, step: int, splits: Sequence[Split], fit: Fit, record: Callable[[Mapping[str, Any]], None]
    ) -> bool:
        """Score the splits that select, and the others if this is the best model so far: whether it is."""
        scores: Scores = {}
        outputs: dict[str, np.ndarray] = {}

        def look(chosen: Sequence[Split]) -> None:
            for split in chosen:
                rows = 4 * self._config.training.micro_batch_rows
                found = outputs_of(self._engine.module, split.rows, self._score, self._width, rows, self._mesh)
                outputs[split.name] = found
                if split.labels is not None:
                    scores[split.name] = self._task.score(split.labels, found)

        look([split for split in splits if split.selects])
        value = float(np.mean([values[self._task.metric] for values in scores.values()]))
        better = value > fit.best
        if better:
            look([split for split in splits if not split.selects])
        record({"step": step, "eval_score": value, "eval": scores})
        if not better:
            return False
        fit.best, fit.best_step, fit.scores, fit.outputs = value, step, scores, outputs
        return True

    def _signal(self, signals: StopSignals | None) -> str | None:
        """The signal that any rank has received, the same answer on all ranks."""
        if signals is None:
            return None
        names = (None, "SIGINT", "SIGTERM")
        known = signals.received if signals.received in names else "SIGTERM"
        flag = torch.tensor(names.index(known), device=self._mesh.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return names[int(flag)]
