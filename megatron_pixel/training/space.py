"""Whether the run's folder can be written by every rank, is the same for all, and has room for the checkpoints."""

import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import CheckpointConfig, RunConfig
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training import checkpoint_files as files

OPTIMIZER_BYTES = 12
"""Of a parameter in a checkpoint: its fp32 weight and AdamW's two moments."""
WEIGHT_BYTES = {"bf16": 2, "fp32": 4}
GIB = 2**30


def check_shared_folder(folder: Path, mesh: Mesh) -> None:
    """Have rank 0 make the run's folder, and every rank write to it and see what the others wrote; collective.

    Raises:
        UserError: on all ranks; names each rank that cannot write, or sees a folder of its own, with its host.
    """
    problem = _try(lambda: folder.mkdir(parents=True, exist_ok=True)) if mesh.is_main else None
    dist.barrier()
    token = folder / f".rank-{mesh.rank}"
    problem = problem or _try(lambda: _write(token))
    dist.barrier()
    if problem is None and not (folder / ".rank-0").exists():
        problem = "does not see what rank 0 has written: run.dir has to be on a file system that all nodes share"
    dist.barrier()
    with suppress(OSError):
        token.unlink()
    problems: list[str | None] = [None] * mesh.world_size
    dist.all_gather_object(problems, problem and f"rank {mesh.rank} on {socket.gethostname()} {problem}")
    found = [entry for entry in problems if entry is not None]
    if found:
        more = f" (and {len(found) - 1} more ranks)" if len(found) > 1 else ""
        raise UserError(f"run.dir: {folder}: {found[0]}{more}; choose another folder with --run.dir")


def checkpoint_bytes(parameters: int, precision: str) -> int:
    """Size of a checkpoint, without what is small."""
    return parameters * (OPTIMIZER_BYTES + WEIGHT_BYTES[precision])


def check_space(folder: Path, config: RunConfig, parameters: int, done: int) -> str:
    """Refuse a run whose checkpoints will not fit; a line that says how much room they need.

    Args:
        folder: of the run.
        config: of the run.
        parameters: of the whole model.
        done: steps taken before.

    Raises:
        UserError: names both numbers, and what to set.
    """
    size = checkpoint_bytes(parameters, config.training.precision)
    more = checkpoints_to_come(config.checkpoint, config.training.steps, done)
    here = len(files.list_checkpoints(folder / "checkpoints"))
    free = shutil.disk_usage(folder).free
    needed = max(1, more - (here if config.checkpoint.keep else 0)) * size
    if free < needed:
        raise UserError(
            f"run.dir: {folder} has {free / GIB:.1f} GiB free, but {needed / size:.0f} checkpoints of "
            f"{size / GIB:.2f} GiB are to come: make room, lower checkpoint.keep, raise checkpoint.every, or choose "
            "another folder with --run.dir"
        )
    return f"{free / GIB:,.0f} GiB free, {needed / GIB:.2g} GiB for checkpoints to come"


def checkpoints_to_come(config: CheckpointConfig, steps: int, done: int) -> int:
    """The most checkpoints that a run will keep at a time, and the one that is being written."""
    periodic = (steps - 1) // config.every - done // config.every if config.every else 0
    milestones = sum(done < step <= steps for step in config.milestones)
    return min(periodic + 1, config.keep) + milestones + 1 if config.keep else periodic + milestones + 1


def _try(work: object) -> str | None:
    try:
        work()  # type: ignore[operator]
    except OSError as error:
        return f"cannot write there: {error.strerror}"
    return None


def _write(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b"\n")
        file.flush()
        os.fsync(file.fileno())
