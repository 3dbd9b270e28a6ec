"""Finding the checkpoint that a run resumes from, and restoring it. Saving is in :mod:`saving`.

Every function here is collective: all ranks call it, with the same arguments.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import CheckpointConfig, RunConfig
from megatron_pixel.parallel.partitions import Partitions
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import CANONICAL, Source, load_partitions, open_source, pieces_file
from megatron_pixel.training.resume import Layout, refuse_changes, refuse_other_data
from megatron_pixel.training.rng import draw_rng_state, rng_file, set_rng_state


@dataclasses.dataclass(frozen=True)
class Found:
    """The checkpoint that a run resumes from."""

    folder: Path
    step: int
    passed_over: tuple[str, ...]
    """Newer checkpoints that are not whole, each with the reason."""


@dataclasses.dataclass(frozen=True)
class Resumed:
    """What a checkpoint gave back."""

    step: int
    """Steps done."""
    skipped_steps: int
    changed: list[str]
    """Settings that differ from the checkpoint's because the user allowed it."""
    origin: str | None
    """What wrote the checkpoint, where it was not this layout; None where the resume is exact."""


def find(root: Path, config: CheckpointConfig) -> Found | None:
    """The checkpoint that ``checkpoint.resume`` asks for, its files checked against their sha256 by all ranks together.

    Returns:
        None where the run starts afresh: ``none``, or ``auto`` without any checkpoint.

    Raises:
        UserError: the named folder is no whole checkpoint, or ``auto`` finds checkpoints but none of them whole:
            beginning again from step 1 is for the user to decide.
    """
    if config.resume == "none":
        return None
    if config.resume != "auto":
        folder = Path(config.resume).resolve()
        if not folder.is_dir():
            raise UserError(f"checkpoint.resume: there is no folder {config.resume}")
        step = files.step_of(folder)
        if step is None:
            raise UserError(f"checkpoint.resume: {config.resume} is no checkpoint folder (step-00000120 and the like)")
        if (problem := _problem(folder)) is not None:
            raise UserError(f"checkpoint.resume: {folder} cannot be used: {problem}")
        return Found(folder, step, ())
    passed_over: list[str] = []
    for step, folder in _from_rank_0(files.list_checkpoints(root)):
        if (problem := _problem(folder)) is None:
            return Found(folder, step, tuple(passed_over))
        passed_over.append(f"{folder.name}: {problem}")
    if passed_over:
        raise UserError(
            f"no checkpoint in {root} is whole:\n  "
            + "\n  ".join(passed_over)
            + "\nSet checkpoint.resume to a checkpoint folder elsewhere, or to none to begin again from step 1"
        )
    return None


def find_before(root: Path, step: int) -> Found | None:
    """The newest whole checkpoint in ``root`` of a step before ``step``; None without any."""
    for number, folder in _from_rank_0(files.list_checkpoints(root)):
        if number < step and _problem(folder) is None:
            return Found(folder, number, ())
    return None


def restore(
    engine: Any, found: Found, config: RunConfig, consumed: Mapping[str, int], data: Mapping[str, Any]
) -> Resumed:
    """Put weights, optimizer and counts of a checkpoint into a fresh engine, whatever layout wrote it.

    In the layout of the checkpoint each rank reads its own files, and random states are restored: the run goes on bit
    for bit. In another one every rank takes its share of the full tensors, and draws random states anew.

    Args:
        consumed: rows that this run's data would have taken from each source by the checkpoint's step.
        data: what this run's datasets were made with.

    Raises:
        UserError: another architecture, a change of settings or of data that nobody allowed.
    """
    state = json.loads((found.folder / files.STATE).read_text(encoding="utf-8"))
    imported = "imported" in state  # a released checkpoint knows its model, but no run's settings and rows
    changed = refuse_changes(state["config"], config, found.folder, sections=("model",) if imported else None)
    changed += refuse_other_data(state["data"], data, config.checkpoint.allow_changes, found.folder)
    if not changed and not imported and state["consumed"] != dict(consumed):
        raise UserError(f"{found.folder} {_other_rows(found.step, state['consumed'], consumed)}")
    partitions = Partitions(engine)
    rank = dist.get_rank()
    exact = _all_ranks(_same_pieces(found.folder, partitions))
    if exact:
        path, _ = engine.load_checkpoint(str(found.folder.parent), tag=found.folder.name)
        if path is None:
            raise UserError(f"{found.folder} could not be loaded")
        set_rng_state(torch.load(found.folder / rng_file(rank), map_location="cpu", weights_only=True))
        origin = None
    else:
        source = open_source(found.folder)
        _check_architecture(partitions, source)
        load_partitions(partitions, source)
        engine.global_steps, engine.global_samples = found.step, state["samples"]
        engine.skipped_steps = state["skipped_steps"]
        draw_rng_state(config.training.seed, found.step, rank)
        origin = "canonical form" if state["form"] == CANONICAL else str(Layout(**state["layout"]))
    return Resumed(found.step, int(state["skipped_steps"]), changed, origin)


def _other_rows(step: int, saved: Mapping[str, int], now: Mapping[str, int]) -> str:
    """What the datasets of a checkpoint have given otherwise than those of this run would have."""
    before, after = (
        ", ".join(f"{count:,} of {name}" for name, count in mine.items() if others.get(name) != count)
        for mine, others in ((saved, now), (now, saved))
    )
    return (
        f"had taken other rows by step {step} ({before or 'none'}) than this run's data would have given "
        f"({after or 'none'}): the datasets are not those that the checkpoint was trained on, or were packed anew"
    )


def _same_pieces(folder: Path, partitions: Partitions) -> bool:
    """Whether this rank's optimizer file of a checkpoint is what this rank's optimizer would write."""
    mine, beyond = (folder / pieces_file(dist.get_rank() + ahead) for ahead in (0, dist.get_world_size()))
    if not mine.is_file() or beyond.is_file():
        return False
    told = json.loads(mine.read_text(encoding="utf-8"))
    return {key: value for key, value in told.items() if key not in ("rank", "file")} == partitions.describe()


def _check_architecture(partitions: Partitions, source: Source) -> None:
    """Over all ranks, since each may hold a part of the model only."""
    gathered: list[dict[str, tuple[int, ...]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, {name: held.shape for name, held in partitions.held.items()})
    shapes = {name: shape for part in gathered for name, shape in part.items()}
    source.check_fits(shapes, "this run's model")


def _all_ranks(flag: bool) -> bool:
    flags: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(flags, flag)
    return all(flags)


def _problem(folder: Path) -> str | None:
    """What is wrong with a checkpoint; the ranks share the reading of its files."""
    table, problem = files.manifest_problem(folder)
    if problem is None:
        problem = files.content_problem(folder, table, sorted(table)[dist.get_rank() :: dist.get_world_size()])
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((entry for entry in problems if entry is not None), None)


def _from_rank_0(value: Any) -> Any:
    """Rank 0's view: on a network file system another rank may still see an older listing."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
