"""Micro-batches on their way to the device, ahead of the step that takes them.

What the host has to do for a micro-batch (where it predicts, how many targets it holds, pinning its arrays for a CUDA
device) is done in the thread that reads ahead (:meth:`Feeder.prepare`), and on CUDA a copy runs beside the pass over
the micro-batch before it, on a stream of its own (:meth:`Feeder.feed`): the step waits for neither.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch

from megatron_pixel.data.rows import MicroBatch
from megatron_pixel.model.batch import Batch, host_tensors
from megatron_pixel.model.objectives import Objective
from megatron_pixel.training.losses import Tally, tally

COPIES_AHEAD = 1
"""Micro-batches on their way to the device beside the one that is computed."""


@dataclass(frozen=True)
class Prepared:
    """A micro-batch whose work on the host is done."""

    batch: Batch
    """On the host; in pinned memory where the device is a CUDA device."""
    tally: Tally
    """What it holds."""


class Copies(Protocol):
    """How a micro-batch gets to the device."""

    def start(self, batch: Batch) -> Any:
        """Begin; nothing waits. Returns what :meth:`finish` takes."""
        ...

    def finish(self, started: Any) -> Batch:
        """The micro-batch on the device; what is computed from now on finds it there."""
        ...


class SameMemory:
    """The device computes in the memory of the host."""

    def start(self, batch: Batch) -> Batch:
        return batch

    def finish(self, started: Batch) -> Batch:
        return started


class SideStream:
    """Copies to a CUDA device on a stream of their own, beside what the current stream computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> tuple[Batch, Any]:
        with torch.cuda.stream(self._stream):
            return batch.to(self._device), self._stream.record_event()

    def finish(self, started: tuple[Batch, Any]) -> Batch:
        batch, event = started
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for tensor in batch.inputs:
            if tensor.is_cuda:
                # Its memory is the side stream's, which would otherwise fill it again while this one still reads.
                tensor.record_stream(current)
        return batch


class Feeder:
    """Brings micro-batches to the device.

    Args:
        objectives: what the model learns.
        end_patch: whether the black end patch is a target.
        device: where the model is.
        copies: how they get there, by default as the device wants it.
    """

    def __init__(
        self, objectives: Sequence[Objective], end_patch: bool, device: torch.device, copies: Copies | None = None
    ) -> None:
        self._objectives, self._end_patch, self._device = objectives, end_patch, device
        self._copies = copies or (SideStream(device) if device.type == "cuda" else SameMemory())

    def prepare(self, rows: MicroBatch | Prepared) -> Prepared:
        """Do the host's work for a micro-batch, in any thread; one that is prepared is handed back."""
        if isinstance(rows, Prepared):
            return rows
        counted = tally(rows, self._end_patch)
        if self._device.type != "cuda":
            return Prepared(host_tensors(rows, self._objectives), counted)
        with torch.cuda.device(self._device):  # a thread begins on device 0, where pinning would make a context
            return Prepared(host_tensors(rows, self._objectives, pinned=True), counted)

    def feed(self, prepared: Iterable[Prepared]) -> Iterator[Batch]:
        """The micro-batches on the device, in order; the first copies begin at once and not when they are asked for."""
        remaining = (item.batch for item in prepared)
        started = deque(self._copies.start(batch) for batch in islice(remaining, 1 + COPIES_AHEAD))
        return self._flow(started, remaining)

    def _flow(self, started: deque[Any], remaining: Iterator[Batch]) -> Iterator[Batch]:
        while started:
            yield self._copies.finish(started.popleft())
            started.extend(self._copies.start(batch) for batch in islice(remaining, 1))
