"""Where the time of a step goes, and the names of its parts in a trace; costs no wait for the device.

On a CPU the time is that of the clock. A CUDA device runs behind the program, so there events are recorded on its
stream and read after the step, when the program has waited for the device anyway.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

PARTS = ("data", "forward", "backward", "optimizer", "pipeline")
"""``data``: waiting for rows and moving them to the device; ``pipeline``: sending and receiving between its ranks."""


class Clock:
    """Sums the time of each part of a step.

    Attributes:
        traces: whether the parts are named in the trace of a profiler that is recording.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.traces = False
        self._cuda = torch.device(device).type == "cuda"
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._events: list[tuple[str, Any, Any]] = []
        self._spare: list[Any] = []

    @contextmanager
    def part(self, name: str, trace: str | None = None, on_host: bool = False) -> Iterator[None]:
        """Count the time of the block to a part.

        Args:
            name: one of ``PARTS``.
            trace: name in a trace, by default the part's.
            on_host: the block keeps the program waiting and not the device, so the clock is right on any device.
        """
        if self.traces:
            with torch.profiler.record_function(trace or name), self._timed(name, on_host):
                yield
        else:
            with self._timed(name, on_host):
                yield

    def named(self, name: str) -> AbstractContextManager[Any]:
        """A block with a name in a trace, and no time of its own."""
        return torch.profiler.record_function(name) if self.traces else nullcontext()

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last call. To be called when the device has done what was asked of it."""
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1e3
            self._spare += (begin, end)
        self._events.clear()
        found, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return found

    @contextmanager
    def _timed(self, name: str, on_host: bool) -> Iterator[None]:
        if self._cuda and not on_host:
            begin, end = self._event(), self._event()
            begin.record()
            try:
                yield
            finally:
                end.record()
                self._events.append((name, begin, end))
            return
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def _event(self) -> Any:
        return self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)


def time_pipeline(engine: Any, clock: Clock) -> None:
    """Count the instructions of a DeepSpeed ``PipelineEngine`` to the parts of a step.

    Its schedule looks every instruction up in a table; this engine gets a table of its own with the clock around each.
    What loads micro-batches counts for itself.
    """
    from deepspeed.runtime.pipe import schedule

    parts = {
        schedule.ForwardPass: ("forward", "forward"),
        schedule.BackwardPass: ("backward", "backward"),
        schedule.ReduceGrads: ("backward", "reduce gradients"),
        schedule.ReduceTiedGrads: ("backward", "reduce tied gradients"),
        schedule.OptimizerStep: ("optimizer", "optimizer step"),
        schedule.SendActivation: ("pipeline", "send activations"),
        schedule.RecvActivation: ("pipeline", "receive activations"),
        schedule.SendGrad: ("pipeline", "send gradients"),
        schedule.RecvGrad: ("pipeline", "receive gradients"),
    }

    def timed(work: Callable[..., None], name: str, trace: str) -> Callable[..., None]:
        def run(self: Any, **arguments: Any) -> None:
            with clock.part(name, trace):
                work(self, **arguments)

        return run

    table = engine._INSTRUCTION_MAP
    engine._INSTRUCTION_MAP = {
        command: timed(work, *parts[command]) if command in parts else work for command, work in table.items()
    }
