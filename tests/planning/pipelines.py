"""What DeepSpeed's pipeline engine executes in a step, tick by tick. What happens in each rank."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime.pipe import schedule
from torch import Tensor

from megatron_pixel.parallel.pipeline import PipelinedStages
from tests.planning.findings import Watched

KINDS = {
    schedule.ForwardPass: "forward",
    schedule.BackwardPass: "backward",
    schedule.SendActivation: "send activation",
    schedule.RecvActivation: "receive activation",
    schedule.SendGrad: "send gradient",
    schedule.RecvGrad: "receive gradient",
}


class Counted:
    """A schedule that tells which of its ticks the engine has come to."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self.ticks = 0

    def __iter__(self) -> Iterator[Any]:
        for commands in self._original:
            self.ticks += 1
            yield commands

    def num_pipe_buffers(self) -> int:
        """As the engine asks for them."""
        return int(self._original.num_pipe_buffers())


@contextmanager
def counted_headers(found: Watched) -> Iterator[None]:
    """Count the copies to the host that the stages ask for themselves."""
    original = Tensor.cpu

    def cpu(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
        found.headers_asked_for += sys._getframe(1).f_code is PipelinedStages.forward.__code__
        return original(tensor, *arguments, **options)

    Tensor.cpu = cpu  # type: ignore[method-assign]
    try:
        yield
    finally:
        Tensor.cpu = original  # type: ignore[method-assign]


@contextmanager
def watched_schedule(engine: Any, found: Watched) -> Iterator[None]:
    """Write down every pass, send and receive that the engine executes, with its tick and its micro-batch.

    A kind of instruction comes to the micro-batches in their order, so its count tells the micro-batch.
    """
    table = engine._INSTRUCTION_MAP
    run_schedule = engine._exec_schedule
    counts: Counter[str] = Counter()
    running: list[Counted] = []

    def watched(work: Callable[..., None], kind: str) -> Callable[..., None]:
        def run(self: Any, **arguments: Any) -> None:
            work(self, **arguments)
            found.instructions.append((running[-1].ticks - 1, kind, counts[kind]))
            counts[kind] += 1

        return run

    def run_counted(original: Any) -> None:
        running.append(Counted(original))
        run_schedule(running[-1])
        found.ticks = running[-1].ticks

    engine._INSTRUCTION_MAP = {
        command: watched(work, KINDS[command]) if command in KINDS else work for command, work in table.items()
    }
    engine._exec_schedule = run_counted
    try:
        yield
    finally:
        engine._INSTRUCTION_MAP = table
        engine._exec_schedule = run_schedule
