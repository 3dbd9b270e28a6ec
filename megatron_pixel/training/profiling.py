"""A trace of some steps, with a name on everything: stages of the model, parts of a step, operations, kernels.

``<run>/profile/steps-10-13.rank-0.json.gz`` opens in Perfetto (ui.perfetto.dev) and in chrome://tracing. While nothing
is recorded there are no hooks and no names, so a run that is not profiled pays nothing.
"""

import gzip
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_pixel.config.schema import ProfileConfig
from megatron_pixel.config.steps import parse_steps
from megatron_pixel.model.embedding import Embedding
from megatron_pixel.model.heads import FinalNorm, Heads
from megatron_pixel.model.layers import DecoderLayer
from megatron_pixel.model.token_loss import HeadLoss
from megatron_pixel.parallel.execution import Training
from megatron_pixel.parallel.mesh import Mesh

BACKWARD_TRACK = "stages backward"
_BACKWARD = re.compile(r'"name": *"(layer [0-9]+|norm|heads) backward"')
STAGES: dict[type[nn.Module], str] = {
    Embedding: "embedding",
    DecoderLayer: "layer {}",
    FinalNorm: "norm",
    Heads: "heads",
}


class Profiler:
    """Records the steps that the config names; on all ranks, each for itself.

    Args:
        config: which steps.
        folder: of the run.
        execution: the model and its optimizer.
        mesh: where this process stands.
        note: shows a line.
    """

    def __init__(
        self, config: ProfileConfig, folder: Path, execution: Training, mesh: Mesh, note: Callable[[str], None]
    ) -> None:
        self._steps = None if config.steps is None else parse_steps(config.steps)
        self._stacks = config.stacks
        self._folder = folder / "profile"
        self._execution, self._mesh, self._note = execution, mesh, note
        self._recording: Any = None
        self._names = ExitStack()
        self._first = 0

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around a step: recorded if it is among those that were asked for."""
        if self._steps is None or not self._steps[0] <= step <= self._steps[1]:
            yield
            return
        if self._recording is None:
            self._start(step)
        with torch.profiler.record_function(f"step {step}"):
            yield
        if step == self._steps[1]:
            self._finish(step)

    def close(self, step: int) -> None:
        """The run ends after ``step``: a trace that has begun is written all the same."""
        if self._recording is not None:
            self._finish(step)

    def _start(self, step: int) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._mesh.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._first = step
        self._execution.clock.traces = True
        self._names.callback(setattr, self._execution.clock, "traces", False)
        self._names.enter_context(named_stages(self._execution.engine.module))
        self._recording = torch.profiler.profile(activities=activities, with_stack=self._stacks)
        self._recording.start()

    def _finish(self, step: int) -> None:
        if self._mesh.device.type == "cuda":
            torch.cuda.synchronize()
        recording, self._recording = self._recording, None
        recording.stop()
        self._names.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"steps-{self._first}-{step}.rank-{self._mesh.rank}.json.gz"
        raw, packed = (path.with_name(f"writing.{self._mesh.rank}.{kind}") for kind in ("json", "gz"))
        try:
            recording.export_chrome_trace(str(raw))
            with raw.open(encoding="utf-8", errors="replace") as lines, gzip.open(packed, "wt", 3) as file:
                file.writelines(backward_on_its_own_track(lines))
            os.replace(packed, path)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                packed.unlink()
            self._note(f"profile: the trace of steps {self._first} to {step} could not be written to {path}: {error}")
            return
        finally:
            with suppress(OSError):
                raw.unlink()
        self._note(f"profile: steps {self._first} to {step} in {path}, a file a rank; open it at ui.perfetto.dev")


def backward_on_its_own_track(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a trace with the backward pass of stages on a track beside that of its thread.

    Where the backward pass goes over from one stage to the next, autograd is in the middle of an operation. So these
    regions and operations overlap without one holding the other, and on one track viewers drop such regions.
    """
    moves = False
    for line in lines:
        if '"name":' in line:
            moves = _BACKWARD.search(line) is not None
        if moves and '"tid":' in line:  # on a line of its own, or of the name's: as the version of PyTorch writes it
            line = re.sub(r'"tid": *([0-9]+)', rf'"tid": "\1 {BACKWARD_TRACK}"', line)
            moves = False
        yield line


@contextmanager
def named_stages(model: nn.Module) -> Iterator[None]:
    """Names in a trace for the forward pass of every stage, and for the backward pass of those behind the embedding.

    A stage goes backward between the moments in which the gradients of its output and of its input are known.
    """
    handles = []
    backward = _Backward()
    number = 0
    for module in model.modules():
        name = STAGES.get(type(module))
        if name is not None:
            if isinstance(module, DecoderLayer):
                number = module.layer.layer_number
            stage = _Stage(name.format(number), backward)
            handles.append(module.register_forward_pre_hook(stage.before))
            handles.append(module.register_forward_hook(stage.after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Backward:
    """The one region of the backward pass that is open: where a stage begins, the one behind it has ended."""

    def __init__(self) -> None:
        self._pass: object = None
        self._region: Any = None

    def begin(self, number: object, name: str) -> None:
        if number is self._pass:
            return  # heads have several outputs; the first gradient begins
        self.end(self._pass)
        self._pass, self._region = number, _opened(f"{name} backward")

    def end(self, number: object) -> None:
        if number is self._pass and self._region is not None:
            self._region.__exit__(None, None, None)
            self._pass = self._region = None


class _Stage:
    """The hooks of one stage."""

    def __init__(self, name: str, backward: _Backward) -> None:
        self._name, self._backward = name, backward
        self._forward: list[Any] = []

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._forward.append(_opened(self._name))

    def after(self, module: nn.Module, inputs: tuple[Any, ...], outputs: tuple[Tensor | HeadLoss, ...]) -> None:
        self._forward.pop().__exit__(None, None, None)
        came = next((tensor for tensor in inputs[0] if tensor.requires_grad), None)
        if came is None:
            return  # the embedding: nothing tells when its backward pass ends
        number = object()
        for output in outputs:
            tensor = output.sum if isinstance(output, HeadLoss) else output
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._backward.begin(number, self._name))
        came.register_hook(lambda gradient: self._backward.end(number))


def _opened(name: str) -> Any:
    return torch.profiler.record_function(name).__enter__()
