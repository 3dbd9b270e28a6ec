"""Taking a step, or an evaluation, over micro-batches: one interface for a whole model and for a pipeline.

A pipeline decides by itself when which micro-batch runs where, so the loop hands all of them over at once, and what it
wants to know of the outputs it passes as functions. They are called in the order of the micro-batches, on the ranks
that hold the last stage; on the others never.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_pixel.model.batch import Batch
from megatron_pixel.parallel.clock import Clock, time_pipeline

Outputs = tuple[Any, ...]
"""What the last stage hands out: tensors, or :class:`megatron_pixel.model.token_loss.HeadLoss`."""
Loss = Callable[[Outputs, Batch], Tensor]
"""The scalar whose backward pass a micro-batch contributes."""
Look = Callable[[Outputs, Batch], None]
"""Takes the outputs of a micro-batch of an evaluation."""


class Execution(ABC):
    """The model, ready to run in some layout.

    Attributes:
        module: this rank's stages.
    """

    module: Any

    @abstractmethod
    def evaluate(self, batches: Iterable[Batch], count: int, look: Look) -> None:
        """Forward passes over ``count`` micro-batches of equal shapes, without gradients; collective."""


class Training(Execution):
    """An execution that can also train.

    Attributes:
        engine: the DeepSpeed engine.
        clock: counts where the time of a step goes.
    """

    engine: Any
    clock: Clock

    @abstractmethod
    def step(self, batches: Iterable[Batch], loss: Loss, headers: Sequence[Tensor]) -> None:
        """Forward and backward passes over the micro-batches of a step, and the optimizer step; collective.

        Args:
            batches: of the step, pulled one by one by the ranks that need them.
            loss: of each.
            headers: of all of them, on the host: every rank of a pipeline needs them, and gets them from others on the
                device, which it would have to wait for.
        """


class WholeModel(Execution):
    """A model that stands on this device."""

    def __init__(self, module: Any) -> None:
        self.module = module

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch], count: int, look: Look) -> None:
        self.module.eval()
        for batch in batches:
            look(self.module(batch.inputs), batch)
        self.module.train()


class WholeTraining(WholeModel, Training):
    """A DeepSpeed engine without a pipeline."""

    def __init__(self, engine: Any, clock: Clock | None = None) -> None:
        super().__init__(engine.module)
        self.engine = engine
        self.clock = clock or Clock()

    def step(self, batches: Iterable[Batch], loss: Loss, headers: Sequence[Tensor]) -> None:
        part = self.clock.part
        for batch in batches:
            with part("forward"):
                value = loss(self.engine(batch.inputs), batch)
            with part("backward"):
                self.engine.backward(value)
            with part("optimizer", "optimizer step"):
                self.engine.step()


class PipelineTraining(Training):
    """A DeepSpeed ``PipelineEngine``, whose schedule is one forward, one backward.

    Only first and last ranks pull micro-batches, in order. DeepSpeed would carry labels along; here the last rank keeps
    the batches that it has pulled until their outputs arrive.

    Args:
        engine: None until :meth:`attach`, as the engine's model needs :meth:`loss` first.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.engine: Any = None
        self.clock = clock or Clock()
        self._evaluates = False
        self._waiting: deque[Batch] = deque()
        self._loss: Loss | None = None

    def attach(self, engine: Any) -> "PipelineTraining":
        """Name the engine whose model calls :meth:`loss`."""
        self.engine = engine
        self.module = engine.module
        time_pipeline(engine, self.clock)
        return self

    def loss(self, outputs: Outputs, labels: tuple[Tensor, ...]) -> Tensor:
        """What DeepSpeed calls on the last rank with the outputs of each micro-batch."""
        assert self._loss is not None
        return self._loss(outputs, self._waiting.popleft())

    def step(self, batches: Iterable[Batch], loss: Loss, headers: Sequence[Tensor]) -> None:
        self._loss = loss
        self._switch(evaluates=False)
        self.module.headers.extend(headers)
        self.engine.train_batch(self._feed(batches))

    def evaluate(self, batches: Iterable[Batch], count: int, look: Look) -> None:
        if not count:
            return

        def no_loss(outputs: Outputs, batch: Batch) -> Tensor:
            look(outputs, batch)
            return torch.zeros((), device=batch.labels.targets.device)

        self._loss = no_loss
        self._switch(evaluates=True)
        self.engine.eval_batch(self._feed(batches), reduce_output=None, bcast_loss=False, num_micro_batches=count)
        self.engine.module.train()

    def _switch(self, evaluates: bool) -> None:
        """Let the ranks agree on shapes anew: held-out rows may have others than those of a step."""
        if evaluates != self._evaluates:
            self.engine.reset_activation_shape()
            self._evaluates = evaluates

    def _feed(self, batches: Iterable[Batch]) -> Iterator[tuple[Outputs, Outputs]]:
        for batch in batches:
            if self.engine.is_last_stage():
                self._waiting.append(batch)
            yield tuple(batch.inputs), ()
