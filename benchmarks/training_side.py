"""What ``training.py`` has in processes of their own: sides, which take steps, and the limits of the device.

Everything here imports torch when it is made, not before: the environment that a process sets must be there first.
"""

import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from megatron_pixel.config.schema import RunConfig
from megatron_pixel.parallel.environment import set_environment
from megatron_pixel.parallel.launch import read_launch
from megatron_pixel.parallel.quiet import silence_libraries

if TYPE_CHECKING:
    from benchmarks.training_peers import Peer
    from benchmarks.training_run import MeasuredRun
    from megatron_pixel.parallel.mesh import Mesh

PARTS = ("data", "forward", "backward", "optimizer")


@dataclass(frozen=True)
class SidePlan:
    """What a side is."""

    peer: str
    """A name of :data:`benchmarks.training_peers.PEERS`; empty for a run of ours."""
    config: RunConfig
    accumulation: int
    """Micro-batches of a step of one kind of rows."""
    keeps_memory: bool
    """Whether the process keeps what it frees, as a run of ours does on a CPU; else it does what glibc does."""
    processor_time: bool
    """Seconds of the processor instead of those of the wall."""


@dataclass(frozen=True)
class Step:
    """A step that was timed."""

    number: int
    """Counts the steps of its kind of rows from 1, and so says which rows it had."""
    seconds: float
    parts: dict[str, float]
    """Of these seconds, by ``PARTS``."""
    page_faults: int | None
    """How often the system had to find and clear a page of memory meanwhile; on a GPU, None."""


class Limits:
    """What the device can do at most.

    Args:
        plan: of the side whose rows and model count.
    """

    def __init__(self, plan: SidePlan) -> None:
        self._stack = ExitStack()
        self._mesh = begin(plan, self._stack)
        self._config, self._clock = plan.config, clock(plan)
        import torch

        from benchmarks.training_ceiling import HeadAlone
        from benchmarks.training_run import readers
        from megatron_pixel.model.objectives import pretraining_objectives

        self._dtype = torch.bfloat16 if plan.config.training.precision == "bf16" else torch.float32
        objectives = pretraining_objectives(plan.config.model, plan.config.loss)
        self._head = HeadAlone(plan.config.model, objectives, self._dtype, self._mesh)
        self._text = readers(plan.config, plan.accumulation)["text"]

    def device(self) -> dict[str, Any]:
        """Its ``name``, and its ``peak_tflops``, None where that is not known."""
        import torch

        from megatron_pixel.training.throughput import peak_tflops

        device = self._mesh.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        return {"name": name, "peak_tflops": peak_tflops(device, self._config.training.precision)}

    def ceiling(self, kind: str) -> float:
        """See :func:`benchmarks.training_ceiling.ceiling`."""
        from benchmarks.training_ceiling import ceiling

        config, device = self._config, self._mesh.device
        repeats = 5 if device.type == "cuda" else 2
        return ceiling(config.model, config.training.micro_rows, kind, self._dtype, device, repeats, self._clock)

    def head_seconds(self, number: int) -> float:
        """Time of the vocabulary head and its loss, forward and backward, on the rows of a text step."""
        from benchmarks.training_run import rows_of

        return sum(self._head.seconds(rows, self._clock) for rows in rows_of(self._text, number))

    def close(self) -> None:
        """Leave the process as it was."""
        self._stack.close()


class TrainingSide:
    """Takes the steps.

    Args:
        plan: what it is.
    """

    def __init__(self, plan: SidePlan) -> None:
        self._stack = ExitStack()
        self._mesh = begin(plan, self._stack)
        self._clock = clock(plan)
        self._numbers: dict[str, int] = {}
        from benchmarks.training_memory import PeakMemory

        self._memory = PeakMemory(self._mesh.device)
        try:
            with redirect_stdout(StringIO()):  # DeepSpeed tells the memory of each of its groups
                self._runner = self._built(plan)
        except BaseException:
            self._stack.close()
            raise

    def _built(self, plan: SidePlan) -> "MeasuredRun | Peer":
        from benchmarks.training_peers import PEERS, Peer
        from benchmarks.training_run import MeasuredRun, readers

        config, here = plan.config, self._mesh
        if not plan.peer:
            run = MeasuredRun(config, here, plan.accumulation)
            self._stack.enter_context(run)
            return run
        return Peer(PEERS[plan.peer](config.model), config, readers(config, plan.accumulation), here)

    def facts(self) -> dict[str, Any]:
        """Its ``parameters`` and the ``kinds`` of rows that it can read."""
        return {"parameters": self._runner.parameters, "kinds": self._runner.kinds}

    def step(self, kind: str) -> Step:
        """A step on the next rows of a kind.

        On a GPU another one goes before it, and afterwards all memory that is free goes back: so the models of many
        processes fit, and none is timed while it gets memory.
        """
        if self._mesh.device.type == "cuda":
            self._take(kind)
        step = self._take(kind)
        self._release()
        return step

    def warm_up(self, kind: str) -> None:
        """A step that is not timed: the first one makes what lasts."""
        self._take(kind)

    def peak_memory(self, kind: str) -> int:
        """Most bytes in use during a step, from a state in which nothing is kept that is free."""
        found = self._memory.during(lambda: self._take(kind))
        self._release()
        return found

    def _release(self) -> None:
        import torch

        if self._mesh.device.type == "cuda":
            torch.cuda.empty_cache()

    def _take(self, kind: str) -> Step:
        from benchmarks.training_ceiling import synchronize

        number = self._numbers[kind] = self._numbers.get(kind, 0) + 1
        self._runner.prepare(kind)
        synchronize(self._mesh.device)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start = self._clock()
        found = self._runner.take(kind)
        synchronize(self._mesh.device)
        seconds = self._clock() - start
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        parts = {part: float(found.get(f"{part}_seconds") or 0.0) for part in PARTS}
        return Step(number, seconds, parts, None if self._mesh.device.type == "cuda" else faults)

    def close(self) -> None:
        """End what runs in the background."""
        self._stack.close()


def begin(plan: SidePlan, stack: ExitStack) -> "Mesh":
    """Make this process ready for its model, until the stack closes."""
    silence_libraries()
    set_environment(read_launch(os.environ))
    from megatron_pixel.parallel import mesh

    if not plan.keeps_memory:
        mesh.keep_freed_memory = lambda: False
    return stack.enter_context(mesh.mesh(plan.config.parallel))


def clock(plan: SidePlan) -> Callable[[], float]:
    """Seconds."""
    return time.process_time if plan.processor_time else time.perf_counter
