"""Saving and resuming over all ranks. The folders themselves are in :mod:`checkpoint_files`.

Every function here is collective: all ranks call it, with the same arguments.
"""

import contextlib
import dataclasses
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import save_config, to_dict
from megatron_pixel.config.schema import CheckpointConfig, RunConfig
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.resume import Layout, refuse_changes, refuse_other_layout

STATE = "state.json"


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


def save(engine: Any, root: Path, step: int, config: RunConfig, layout: Layout, consumed: Mapping[str, int]) -> Path:
    """Write ``root/step-…`` for the engine after ``step``; it appears whole or not at all. Then prune older ones.

    Args:
        consumed: rows taken from each source so far, compared at resume.

    Raises:
        UserError: the files cannot be written; checkpoints that stood before still stand.
    """
    area = files.writing_area(root)
    folder = area / files.folder_name(step)
    try:
        if dist.get_rank() == 0:
            files.clear(folder)
            folder.mkdir(parents=True)
        dist.barrier()
        with _recorded(engine.checkpoint_engine) as written:
            engine.save_checkpoint(str(area), tag=folder.name, save_latest=False)
        rng = folder / _rng_file(dist.get_rank())
        torch.save(rng_state(), rng)
        names = {path.relative_to(folder).as_posix() for path in [*written, rng]}
        table = _merged(files.describe_files(folder, names))
        if dist.get_rank() == 0:
            state = {
                "step": step,
                "skipped_steps": int(engine.skipped_steps),
                "layout": dataclasses.asdict(layout),
                "consumed": dict(consumed),
                "config": to_dict(config),
                "created_by": f"megatron_pixel {megatron_pixel.__version__}",
            }
            files.write_durably(folder / STATE, json.dumps(state, indent=1) + "\n")
            save_config(config, folder / "config.yaml")
            # What no rank claims (DeepSpeed's recovery scripts, ours) falls to rank 0.
            table |= files.describe_files(folder, set(files.files_below(folder)) - set(table))
            files.write_manifest(folder, step, table)
            files.publish(folder, root)
            files.prune(root, config.checkpoint.keep, config.checkpoint.milestones)
        dist.barrier()
    except OSError as error:
        raise UserError(f"the checkpoint of step {step} could not be written to {folder}: {error}") from error
    return root / folder.name


def restore(engine: Any, found: Found, config: RunConfig, layout: Layout, consumed: Mapping[str, int]) -> Resumed:
    """Put weights, optimizer and random states of a checkpoint into a fresh engine of the same layout.

    Args:
        consumed: rows that this run's data would have taken from each source by the checkpoint's step.

    Raises:
        UserError: another layout, a change of settings or of data that nobody allowed.
    """
    state = json.loads((found.folder / STATE).read_text(encoding="utf-8"))
    changed = refuse_changes(state["config"], config, found.folder)
    refuse_other_layout(state["layout"], layout, found.folder)
    if not changed and state["consumed"] != dict(consumed):
        raise UserError(
            f"{found.folder} had taken {state['consumed']} rows by step {found.step}; this run's data would have given "
            f"{dict(consumed)}: the datasets are not those that the checkpoint was trained on"
        )
    path, _ = engine.load_checkpoint(str(found.folder.parent), tag=found.folder.name)
    if path is None:
        raise UserError(f"{found.folder} could not be loaded")
    set_rng_state(torch.load(found.folder / _rng_file(dist.get_rank()), map_location="cpu", weights_only=True))
    return Resumed(found.step, int(state["skipped_steps"]), changed)


def rng_state() -> dict[str, Any]:
    """The random states of this process: torch (CPU and its CUDA device), numpy, Python."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global state that libraries draw from)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Undo of :func:`rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def _rng_file(rank: int) -> str:
    return f"rng-{rank:05d}.pt"


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


def _merged(table: files.FileTable) -> files.FileTable:
    tables: list[files.FileTable] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(tables, table)
    return {name: entry for part in tables for name, entry in part.items()}


@contextlib.contextmanager
def _recorded(checkpoint_engine: Any) -> Iterator[list[Path]]:
    """The files that DeepSpeed writes on this rank: each rank hashes its own while they are in its cache."""
    written: list[Path] = []
    original = checkpoint_engine.save

    def save_and_note(state_dict: Any, path: str) -> Any:
        written.append(Path(path))
        return original(state_dict, path)

    checkpoint_engine.save = save_and_note
    try:
        yield written
    finally:
        del checkpoint_engine.save
