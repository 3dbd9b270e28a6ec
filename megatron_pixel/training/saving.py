"""Saving checkpoints over all ranks, in the foreground or behind the training.

In the background a save stops training only while the state is copied to host memory; a thread of each rank then
writes, hashes and agrees with the other ranks over a process group of its own. One save at a time is under way: the
next one waits for it. A checkpoint gets its name at the very end, so one that is cut short is not there.
"""

import contextlib
import copy
import dataclasses
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import save_config, to_dict
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.parallel.partitions import Partitions
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import PARTITIONED, pieces_file
from megatron_pixel.training.resume import Layout
from megatron_pixel.training.rng import rng_file, rng_state

WRITING_TIMEOUT = timedelta(hours=1)
"""How long ranks that write in the background wait for the slowest one."""


@dataclasses.dataclass(frozen=True)
class Saved:
    """A checkpoint that is written, or in the background is being written."""

    folder: Path
    stall: float
    """Seconds that training stood still."""


class Saver:
    """Writes the checkpoints of a run. Every method is collective: all ranks call it, with the same arguments.

    Args:
        engine: the DeepSpeed engine.
        root: the run's folder of checkpoints.
        config: of the run; kept in each checkpoint.
        layout: how the run is spread over processes.
        data: what its datasets were made with, kept for the resume.
        background: whether training goes on while a checkpoint is written.
    """

    def __init__(
        self,
        engine: Any,
        root: Path,
        config: RunConfig,
        layout: Layout,
        data: Mapping[str, Any],
        background: bool = False,
    ) -> None:
        self._engine, self._root, self._config = engine, root, config
        self._partitions = Partitions(engine)
        self._constants = {"layout": dataclasses.asdict(layout), "data": dict(data), "config": to_dict(config)}
        self.background = background
        """Whether training goes on while a checkpoint is written."""
        # Collective operations of the training thread and of the writing one must not meet in one group.
        self._group = dist.new_group(backend="gloo", timeout=WRITING_TIMEOUT) if background else None
        self._writing: _Behind | None = None
        self.seconds = 0.0
        """Of the last save, from its beginning until the checkpoint was whole on disk."""

    def save(self, step: int, consumed: Mapping[str, int], passed_over: Sequence[tuple[int, int]] = ()) -> Saved:
        """Write ``root/step-…`` for the engine after ``step``; it appears whole or not at all. Then prune older ones.

        Args:
            consumed: rows taken from each source so far, compared at resume.
            passed_over: first and last batch of each stretch that the run takes no rows from.

        Raises:
            UserError: the files cannot be written, now or in the background save before; checkpoints that stood before
                still stand.
        """
        begin = time.perf_counter()
        self.wait()
        folder = files.writing_area(self._root) / files.folder_name(step)
        self._together(step, lambda: _fresh(folder) if dist.get_rank() == 0 else None, None)
        with _captured(self._engine.checkpoint_engine, copied=self.background) as contents:
            self._engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False)
        contents[folder / rng_file(dist.get_rank())] = rng_state()
        own = next(path for path in contents if path.name.endswith("optim_states.pt"))
        pieces = {"rank": dist.get_rank(), "file": own.name, **self._partitions.describe()}
        state = {
            "form": PARTITIONED,
            "step": step,
            "optimizer_steps": self._partitions.steps,
            "skipped_steps": int(self._engine.skipped_steps),
            "samples": int(self._engine.global_samples),
            "consumed": dict(consumed),
            "passed_over": [list(stretch) for stretch in passed_over],
            **self._constants,
            "created_by": f"megatron_pixel {megatron_pixel.__version__}",
        }
        if self.background:
            self._writing = _Behind(lambda: self._write(step, folder, contents, pieces, state, begin))
        else:
            self._write(step, folder, contents, pieces, state, begin)
        return Saved(self._root / folder.name, time.perf_counter() - begin)

    def wait(self, timeout: float | None = None) -> None:
        """Until the save in the background is done, or ``timeout`` seconds are up.

        Raises:
            UserError: it has failed.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.join(timeout)

    def _write(
        self,
        step: int,
        folder: Path,
        contents: dict[Path, Any],
        pieces: dict[str, Any],
        state: dict[str, Any],
        begin: float,
    ) -> None:
        """Write this rank's files; when all ranks have, rank 0 lists them, names the checkpoint and prunes."""
        rank = dist.get_rank()

        def own_files() -> files.FileTable:
            names = {path.relative_to(folder).as_posix() for path in contents}
            while contents:
                path, content = contents.popitem()
                torch.save(content, path)
            files.write_durably(folder / pieces_file(rank), json.dumps(pieces) + "\n")
            return files.describe_files(folder, names | {pieces_file(rank)})

        def publish() -> None:
            table = {name: entry for part in tables for name, entry in part.items()}
            files.write_durably(folder / files.STATE, json.dumps(state, indent=1) + "\n")
            save_config(self._config, folder / "config.yaml")
            # What no rank claims (DeepSpeed's recovery scripts, ours) falls to rank 0.
            table |= files.describe_files(folder, set(files.files_below(folder)) - set(table))
            files.write_manifest(folder, step, table)
            files.publish(folder, self._root)
            files.prune(self._root, self._config.checkpoint.keep, self._config.checkpoint.milestones)

        tables = self._together(step, own_files, self._group)
        self._together(step, lambda: publish() if rank == 0 else None, self._group)
        self.seconds = time.perf_counter() - begin

    def _together(self, step: int, work: Callable[[], Any], group: Any) -> list[Any]:
        """What ``work`` returned on each rank; where it failed on one, all raise the same error."""
        result, problem = None, None
        try:
            result = work()
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            problem = f"rank {dist.get_rank()}: {error}"
        outcomes: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(outcomes, (result, problem), group=group)
        problems = [problem for _, problem in outcomes if problem is not None]
        if problems:
            raise UserError(
                f"the checkpoint of step {step} could not be written below {self._root}: {'; '.join(problems)}"
            )
        return [result for result, _ in outcomes]


class _Behind(threading.Thread):
    """Work in a thread whose error is raised where it is joined."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(name="checkpoint", daemon=True)
        self._work = work
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def join(self, timeout: float | None = None) -> None:
        super().join(timeout)
        if self._error is not None:
            raise self._error


def _fresh(folder: Path) -> None:
    files.clear(folder)
    folder.mkdir(parents=True)


@contextlib.contextmanager
def _captured(checkpoint_engine: Any, copied: bool) -> Iterator[dict[Path, Any]]:
    """What DeepSpeed would write on this rank, by path: it is written later, by whoever hashes it.

    Args:
        copied: copies in host memory, that the steps to come do not change.
    """
    contents: dict[Path, Any] = {}

    def capture(state_dict: Any, path: str) -> None:
        contents[Path(path)] = snapshot(state_dict) if copied else state_dict

    checkpoint_engine.save = capture
    try:
        yield contents
    finally:
        del checkpoint_engine.save
    if copied and torch.cuda.is_available():
        torch.cuda.synchronize()


def snapshot(value: Any) -> Any:
    """``value`` with its tensors copied to host memory and its containers built anew; everything else as it is.

    Copies from a CUDA device run on its current stream: synchronize before they are used.
    """
    if isinstance(value, torch.Tensor):
        # PyTorch keeps pinned memory for the next save, and copies to it at the full speed of the bus.
        host = torch.empty(value.shape, dtype=value.dtype, device="cpu", pin_memory=value.is_cuda)
        return host.copy_(value.detach(), non_blocking=True)
    if isinstance(value, dict):
        built = copy.copy(value)  # keeps the class, and the attributes of a module's state dict
        for key, entry in value.items():
            built[key] = snapshot(entry)
        return built
    if type(value) in (list, tuple):
        return type(value)(snapshot(entry) for entry in value)
    return value
