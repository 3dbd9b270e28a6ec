"""Runs of tiny models in many layouts, all in one start of four processes: imports cost more than the work.

The four processes first work alone, then in two worlds of two, then together. A world takes its cases one after
another; each case is a whole run (recipe, data, engine, evaluation), only without its checkpoint.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import deepspeed
import numpy as np
import torch.nn.functional as F
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

from megatron_pixel.data.rows import MicroBatch
from megatron_pixel.model import compiling
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training.run import Run
from tests.distributed.cases import Case, Layout, Share
from tests.distributed.harness import sign_of_life, use_store
from tests.distributed.tiny_run import lines

Found = TypeVar("Found")
LINEAR = F.linear


def work(folder: str, phases: Sequence[Sequence[Sequence[Case]]]) -> dict[Case, Share]:
    """What this rank finds in all of its cases; see :func:`in_worlds`."""
    return in_worlds(folder, phases, _run)


def in_worlds(
    folder: str, phases: Sequence[Sequence[Sequence[Case]]], run: Callable[[Case, Path, Mesh], Found]
) -> dict[Case, Found]:
    """Take cases in worlds of ranks; what this rank finds in all of its own.

    It takes a store for each layout of each world.

    Args:
        folder: for the runs.
        phases: for each phase the cases of every world; worlds of a phase are of one size.
        run: takes a case on the mesh of its layout.
    """
    silence_libraries()
    compiling.BACKEND = "aot_eager"  # layers are traced as ever, but no compiler writes code for them
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    stores = itertools.count()
    found: dict[Case, Found] = {}
    for worlds in phases:
        number, place = divmod(rank, size // len(worlds))
        # All ranks count the stores of all worlds.
        groups = [[(next(stores), cases) for cases in _by_layout(world)] for world in worlds]
        with _ranks(place, size // len(worlds)):
            for store, cases in groups[number]:
                use_store(store)
                with mesh(cases[0].config(Path(folder)).parallel) as here:
                    for case in cases:
                        sign_of_life()
                        forget_zero_3()
                        found[case] = run(case, Path(folder), here)
    return found


def _by_layout(cases: Sequence[Case]) -> list[list[Case]]:
    found: dict[Layout, list[Case]] = {}
    for case in cases:
        found.setdefault(case.layout, []).append(case)
    return list(found.values())


@contextmanager
def _ranks(rank: int, size: int) -> Iterator[None]:
    """This process as one rank of a smaller world."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    before = {name: os.environ[name] for name in names}
    os.environ.update(zip(names, map(str, (rank, size, rank)), strict=True))
    try:
        yield
    finally:
        os.environ.update(before)


def _run(case: Case, folder: Path, here: Mesh) -> Share:
    config = case.config(folder)
    with Run(config, here) as run:
        run._save = lambda step: None  # type: ignore[method-assign]
        if case.padding:
            _pad_rows(run._reader, case.padding)
        run.train()
        weights, split = {}, {}
        for name, parameter in run._engine.module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=case.zero == "zero3"):
                weights[name] = parameter.detach().float().cpu().numpy().copy()
            if getattr(parameter, "tensor_model_parallel", False):
                split[name] = (parameter.partition_dim, parameter.partition_stride)
    written = lines(config.run.dir) if here.is_main else []
    return Share((here.tensor_rank, here.pipe_rank, here.data_rank), written, weights, split)


def forget_zero_3() -> None:
    """Undo what ZeRO 3 leaves behind in a process, as the ranks of a world have been in others before.

    It numbers parameters and modules through the life of the process and compares the numbers between ranks; and it
    replaces ``F.linear`` for good, which changes the order of gradients, in which ZeRO 2 fills its buckets.
    """
    deepspeed.zero.Init.param_id = 0
    DeepSpeedZeRoOffload._register_deepspeed_module.__defaults__[0][0] = 0
    F.linear = LINEAR


def _pad_rows(reader: Any, positions: int) -> None:
    original = reader.micro_batch

    def padded(*args: int) -> MicroBatch:
        rows = original(*args)
        empty = {"tokens": 0, "modality": 0, "position_ids": 1, "segment_ids": -1, "patches": 255}
        wider = {
            name: np.pad(value, [(0, 0), (0, positions)] + [(0, 0)] * (value.ndim - 2), constant_values=empty[name])
            for name in empty
            if (value := getattr(rows, name)) is not None
        }
        return dataclasses.replace(rows, **wider)

    reader.micro_batch = padded
