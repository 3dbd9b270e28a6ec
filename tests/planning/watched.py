"""Runs of tiny models whose third step is watched: what they send and hold. What happens in each rank."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed import ProcessGroup
from torch.profiler import ProfilerActivity, profile, record_function

from megatron_pixel.model.layers import DecoderLayer
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.parallel.partitions import Partitions
from megatron_pixel.parallel.sharding import MOMENTS
from megatron_pixel.training.loop import Trainer
from megatron_pixel.training.run import Run
from tests.distributed.cases import Case
from tests.distributed.layouts import in_worlds
from tests.planning.findings import Sent, Watched
from tests.planning.pipelines import counted_headers, watched_schedule

STEPS = 3
"""The last one is watched: the first sends shapes through a pipeline, and ZeRO 3 learns the order of modules."""
METHODS = (
    "allreduce allgather all_gather_single reduce_scatter reduce_scatter_single broadcast reduce send barrier".split()
)
"""Of a process group."""
RECORDS = {
    "c10d::allreduce_": "all_reduce",
    "c10d::_allgather_base_": "all_gather",
    "c10d::_reduce_scatter_base_": "reduce_scatter",
    "c10d::broadcast_": "broadcast",
    "c10d::send": "send",
}
"""Names of the profiler's records, and what the plan calls them."""
MARK, STEP = "group of ", "all micro-batches"


def work(folder: str, phases: Sequence[Sequence[Sequence[Case]]]) -> dict[Case, Watched]:
    """What this rank finds in all of its cases; phases and worlds as in ``tests/distributed/layouts.py``."""
    return in_worlds(folder, phases, watch)


def watch(case: Case, folder: Path, here: Mesh) -> Watched:
    """Train, and watch the last step."""
    config = case.config(folder)
    found = Watched((here.tensor_rank, here.pipe_rank, here.data_rank))
    original = Trainer.step

    def step(trainer: Trainer, number: int, batches: Sequence[Any]) -> Any:
        if number < STEPS:
            return original(trainer, number, batches)
        for item in batches:
            found.kinds.append(item.batch.kind)
            found.targets.append((item.tally.tokens, item.tally.patches))
        stack.enter_context(marked_groups())
        stack.enter_context(gradients_of(trainer, len(batches), found))
        if here.pipe_size > 1:
            stack.enter_context(watched_schedule(trainer.engine, found))
            stack.enter_context(counted_headers(found))
        stack.enter_context(marked_step(trainer))
        stack.enter_context(saved_by(trainer, found))
        records.append(stack.enter_context(profile(activities=[ProfilerActivity.CPU], record_shapes=True)))
        result = original(trainer, number, batches)
        found.weights, found.optimizer = held(trainer.engine)
        return result

    stack, records = ExitStack(), []
    with Run(config, here) as run:
        run._save = lambda step: None  # type: ignore[method-assign]
        # What ends a step for the loop: the ranks have agreed whether to stop.
        run._record = lambda record, last: stack.close()  # type: ignore[method-assign]
        Trainer.step = step  # type: ignore[method-assign]
        try:
            run.train()
        finally:
            Trainer.step = original  # type: ignore[method-assign]
    found.sent, found.around = sent(records[0])
    return found


@contextmanager
def marked_groups() -> Iterator[None]:
    """The profiler's records of c10d tell neither the group of an operation nor a dtype: an event around each does."""
    originals = {name: vars(ProcessGroup)[name] for name in METHODS}

    def marked(name: str) -> Callable[..., Any]:
        def call(group: Any, *arguments: Any, **options: Any) -> Any:
            tensors = arguments[0] if arguments else []
            first = tensors[0] if isinstance(tensors, list) else tensors
            width = first.element_size() if isinstance(first, torch.Tensor) else 0
            with record_function(f"{MARK}{group.size()} {width}"):
                return originals[name].__get__(group)(*arguments, **options)

        return call

    for name in originals:
        setattr(ProcessGroup, name, marked(name))
    try:
        yield
    finally:
        for name, method in originals.items():
            setattr(ProcessGroup, name, method)


@contextmanager
def marked_step(trainer: Trainer) -> Iterator[None]:
    """An event around model and engine, to tell them from the loop."""
    execution = trainer._execution
    original = execution.step

    def step(*arguments: Any) -> None:
        with record_function(STEP):
            original(*arguments)

    execution.step = step  # type: ignore[method-assign]
    try:
        yield
    finally:
        execution.step = original  # type: ignore[method-assign]


def sent(record: profile) -> tuple[Sent, Sent]:
    """Bytes of the profiler's records of c10d: of the model and the engine, and of the loop.

    They tell operation and shape; group and width of a value come from the event around them.
    """
    events = sorted(record.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    marks = [(span(event), *map(int, event.name().split()[2:])) for event in events if event.name().startswith(MARK)]
    (steps,) = (span(event) for event in events if event.name() == STEP)
    inside: Sent = Counter()
    around: Sent = Counter()
    for event in events:
        if event.name() not in RECORDS:
            continue
        shapes, begin = event.structured_input_shapes(), event.start_ns()
        if event.name() == "c10d::_reduce_scatter_base_":
            shapes = shapes[1:]
        tensors = shapes[0] if shapes[0] and isinstance(shapes[0][0], list) else [shapes[0]]
        ((ranks, width),) = [(ranks, width) for (first, last), ranks, width in marks if first <= begin <= last]
        if ranks > 1:
            place = inside if steps[0] <= begin <= steps[1] else around
            place[RECORDS[event.name()], ranks] += sum(math.prod(shape) for shape in tensors) * width
    return inside, around


def span(event: Any) -> tuple[int, int]:
    """When it begins and ends."""
    return event.start_ns(), event.start_ns() + event.duration_ns()


def held(engine: Any) -> tuple[int, int]:
    """Bytes of the weights, and of fp32 weights and moments of the optimizer."""
    partitions = Partitions(engine)
    weights = storages(getattr(parameter, "ds_tensor", parameter) for parameter in engine.module.parameters())
    state = [partitions.state(buffer)[moment] for buffer in partitions.buffers for moment in MOMENTS]
    return weights, storages([*partitions.buffers, *state])


def storages(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the memory behind them, each piece counted once."""
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())


@contextmanager
def gradients_of(trainer: Trainer, micro_batches: int, found: Watched) -> Iterator[None]:
    """Bytes of gradients that have added up before the last micro-batch; in a pipeline after it."""
    execution, engine = trainer._execution, trainer.engine
    original = execution.step
    if trainer.mesh.pipe_size > 1:
        instructions = engine._INSTRUCTION_MAP
        kind = next(kind for kind in instructions if kind.__name__ == "ReduceGrads")

        def look_and_reduce(self: Any, *arguments: Any) -> None:
            found.gradients = gradient_bytes(engine)
            instructions[kind](self, *arguments)

        engine._INSTRUCTION_MAP = {**instructions, kind: look_and_reduce}
        yield
        engine._INSTRUCTION_MAP = instructions
        return
    calls = itertools.count(1)

    def step(batches: Any, loss: Any, headers: Any) -> None:
        def look_and_lose(*arguments: Any) -> Any:
            if next(calls) == micro_batches > 1:
                found.gradients = gradient_bytes(engine)
            return loss(*arguments)

        original(batches, look_and_lose, headers)

    execution.step = step  # type: ignore[method-assign]
    yield
    execution.step = original  # type: ignore[method-assign]


def gradient_bytes(engine: Any) -> int:
    """Wherever DeepSpeed keeps gradients between micro-batches."""
    optimizer = engine.optimizer
    tensors = [p.grad for p in engine.module.parameters() if p.grad is not None]
    for name in ("fp32_groups_gradients_flat", "averaged_gradients", "all_grad_tensors"):
        kept = getattr(optimizer, name, None) or []
        for entry in kept.values() if isinstance(kept, dict) else kept:
            tensors += [] if entry is None else [entry] if isinstance(entry, torch.Tensor) else list(entry)
    flat = getattr(optimizer, "grad_partitions_flat_buffer", None)
    return storages([*tensors, *([] if flat is None else [flat])])


@contextmanager
def saved_by(trainer: Trainer, found: Watched) -> Iterator[None]:
    """Bytes of what each micro-batch keeps for its backward pass: saved tensors, and inputs of recomputed layers."""
    module = trainer.engine.module
    weights: set[int] = set()
    kept: list[dict[int, torch.Tensor]] = []

    def begin(*_: Any) -> None:
        weights.update(p.untyped_storage().data_ptr() for p in module.parameters())
        kept.append({})

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if kept and place not in weights:
            kept[-1][place] = tensor
        return tensor

    def look(layer: torch.nn.Module, inputs: Any) -> None:
        if isinstance(layer, DecoderLayer) and layer.recompute:
            keep(inputs[0][0])

    with ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(begin).remove)
        stack.callback(torch.nn.modules.module.register_module_forward_pre_hook(look).remove)
        stack.enter_context(saved_tensors_hooks(keep, lambda tensor: tensor))
        yield
    found.saved = [storages(tensors.values()) for tensors in kept]
