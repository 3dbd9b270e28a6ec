"""What a run looks at before it builds anything: its folder, its lock, the machines."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.mixture import parse_mixture, parse_source
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.mixture import MixtureReader, kinds_of
from megatron_pixel.data.packing import plans_of
from megatron_pixel.data.sources import DATA_KEYS
from megatron_pixel.data.verification_packing import examine_plan
from megatron_pixel.data.verification_tasks import Task, run_here
from megatron_pixel.model.compiling import compile_layers
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training import health
from megatron_pixel.training.run_lock import RunLock
from megatron_pixel.training.space import check_shared_folder


def take_folder(folder: Path, mesh: Mesh) -> RunLock | None:
    """Make the run's folder, have every rank write to it, and let rank 0 lock it; collective.

    Returns:
        The lock, on rank 0.

    Raises:
        UserError: on all ranks alike.
    """
    check_shared_folder(folder, mesh)
    lock: list[RunLock] = []

    def take() -> None:
        if mesh.is_main:
            lock.append(RunLock(folder))

    together(take)
    return lock[0] if lock else None


def look_at_machines(config: RunConfig, mesh: Mesh) -> list[str]:
    """A line on the health of all machines, and a warning for each that is not well; collective."""
    dist.barrier()  # clocks are compared
    ranks: list[Any] = [None] * mesh.world_size
    dist.all_gather_object(ranks, health.look(mesh.rank, mesh.device))
    warnings = [f"  warning     {line}" for line in health.warnings(ranks, config.data.workers)]
    return [f"  health      {health.health_line(ranks)}", *warnings]


def check_data(config: RunConfig, reader: MixtureReader, mesh: Mesh) -> None:
    """Look for damage in the data as ``guards.check_data`` asks, shared out to all ranks; collective.

    Raises:
        UserError: on all ranks alike; names the file or the row.
    """
    if config.data.synthetic or config.guards.check_data == "none":
        return
    if config.guards.check_data == "rows":
        together(lambda: reader.sample(mesh.rank, mesh.world_size))
    else:
        together(lambda: _compare_hashes(config, mesh.rank, mesh.world_size))


def compile_as_asked(config: RunConfig, stages: nn.Module) -> list[str]:
    """Compile the decoder layers where ``training.compile`` says so; collective.

    Args:
        config: of the run.
        stages: this rank's, as the engine trains them.

    Returns:
        A line on what it took; none where nothing is compiled.

    Raises:
        UserError: on all ranks alike; some cannot compile them. Names the first of these and its machine.
    """
    if config.training.compile == "none":
        return []
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    masked = config.pair.layout == "released" and parse_mixture(config.data.mixture).pair > 0
    seconds: list[float] = []

    def compile_here() -> None:
        try:
            seconds.append(compile_layers(stages, config.model, config.training.micro_rows, dtype, masked))
        except UserError as error:
            raise UserError(f"{_this_rank()}: {error}") from error

    together(compile_here)
    return [f"  compile     one code for all decoder layers, in {seconds[0]:.1f} s"]


def together(work: Callable[[], object]) -> None:
    """Do something on every rank; where it failed on any, all raise. Collective.

    Raises:
        UserError: on all ranks alike, that of the first rank that raised one. Of any other error, such as one of
            memory, the rank that met it raises it as it is, and the others tell which rank that was.
    """
    failure: Exception | None = None
    try:
        work()
    except Exception as error:  # whatever it is, the others would wait for this rank
        failure = error
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, None if failure is None else _told(failure))
    if failure is not None and not isinstance(failure, UserError):
        raise failure
    found = next((entry for entry in problems if entry is not None), None)
    if found is not None:
        raise UserError(found) from failure


def _told(failure: Exception) -> str:
    """What the other ranks say of a failure."""
    if isinstance(failure, UserError):
        return str(failure)
    return f"{_this_rank()}: {type(failure).__name__}: {failure}"


def _this_rank() -> str:
    return f"rank {dist.get_rank()} on {socket.gethostname()}"


def _compare_hashes(config: RunConfig, rank: int, world_size: int) -> None:
    prefixes = [
        parse_source(entry).prefix
        for kind in kinds_of(config.data)
        for entry in getattr(config.data, DATA_KEYS[kind].removeprefix("data."))
    ]
    files = [(prefix, name) for prefix in dict.fromkeys(prefixes) for name in sorted(Manifest.read(prefix).all_files())]
    for prefix, name in files[rank::world_size]:
        for outcome in run_here(prefix, Manifest.read(prefix), [Task("hash", name)], lambda read, pages: None):
            if outcome.findings:
                raise UserError(f"{outcome.findings[0].message}; python data_tools/verify.py {prefix} tells the rest")
    plan = f"train.packed{config.model.seq_length}"
    for prefix in list(dict.fromkeys(prefixes))[rank::world_size] if config.data.packing == "documents" else []:
        if plan in plans_of(prefix):
            for finding in examine_plan(prefix, plan, Manifest.read(prefix), full=True).findings:
                raise UserError(finding.message)
