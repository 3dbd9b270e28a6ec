"""What a guard leaves behind when it stops a run: the rows of the step and the weights it met them with.

``dumps/step-00000012/`` in the run's folder holds ``report.json``; for each rank that computes losses
``rank-00003.npz`` and ``.json`` with its micro-batches; and ``checkpoint/step-00000012``, a whole checkpoint. As the
step was skipped, the weights in it are those of the step. ``megatron_pixel/reproduce.py`` computes it on one process.
"""

import json
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.rows import Kind, MicroBatch
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.checkpoint_files import folder_name, write_durably

REPORT = "report.json"
CHECKPOINT = "checkpoint"
MOST_BYTES = 1 << 28
"""Of rows that a rank keeps; those without a finite loss come first."""
_ARRAYS = ("tokens", "modality", "position_ids", "segment_ids", "patches")


def write_dump(
    root: Path,
    step: int,
    facts: Mapping[str, Any],
    batches: Sequence[MicroBatch],
    bad: Sequence[bool],
    mesh: Mesh,
    save: Callable[[Path], None],
) -> Path:
    """Write the dump of a step; collective.

    Args:
        root: the run's folder of dumps.
        step: its number.
        facts: for the report.
        batches: this rank's micro-batches.
        bad: which of them had a loss that is no finite number; empty on ranks that do not know.
        mesh: where this process stands.
        save: writes a checkpoint into a folder; collective.

    Returns:
        The folder of the dump.
    """
    folder = root / folder_name(step)
    if mesh.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    if mesh.is_last_stage and mesh.tensor_rank == 0:
        _write_rows(folder, mesh.rank, batches, bad)
    save(folder / CHECKPOINT)
    if mesh.is_main:
        write_durably(folder / REPORT, json.dumps({"step": step, **facts}, indent=1) + "\n")
    dist.barrier()
    return folder


@dataclass(frozen=True)
class DumpedBatch:
    """A micro-batch of a dump."""

    rank: int
    host: str
    bad: bool
    """Whether its loss was no finite number."""
    rows: MicroBatch


def read_report(folder: Path) -> dict[str, Any]:
    """The report of a dump.

    Raises:
        UserError: the folder is no dump.
    """
    if not (folder / REPORT).is_file():
        raise UserError(f"{folder} is no dump of a step: it has no {REPORT}; RUN/dumps/step-00000012 is one")
    return dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))


def read_batches(folder: Path) -> Iterator[DumpedBatch]:
    """The micro-batches that a dump holds, those without a finite loss first."""
    listed = []
    for path in sorted(folder.glob("rank-*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        listed += [(not entry["bad"], told["rank"], i, told["host"], entry) for i, entry in enumerate(told["batches"])]
    for fine, rank, number, host, entry in sorted(listed, key=lambda item: item[:3]):
        if not entry["kept"]:
            continue
        with np.load(folder / f"rank-{rank:05d}.npz") as arrays:
            found = {name: arrays[key] for name in _ARRAYS if (key := f"{number}.{name}") in arrays}
        rows = [(source, index) for source, index in entry["rows"]]
        batch = MicroBatch(kind=Kind[entry["kind"]], rows=rows, **({"patches": None} | found))
        yield DumpedBatch(rank, host, not fine, batch)


def _write_rows(folder: Path, rank: int, batches: Sequence[MicroBatch], bad: Sequence[bool]) -> None:
    flags = list(bad) or [False] * len(batches)
    arrays: dict[str, np.ndarray] = {}
    kept: set[int] = set()
    room = MOST_BYTES
    for number in sorted(range(len(batches)), key=lambda number: not flags[number]):
        found = {name: value for name in _ARRAYS if (value := getattr(batches[number], name)) is not None}
        room -= sum(value.nbytes for value in found.values())
        if room < 0 and kept:
            break
        kept.add(number)
        arrays |= {f"{number}.{name}": value for name, value in found.items()}
    np.savez_compressed(folder / f"rank-{rank:05d}.npz", **arrays)  # type: ignore[arg-type]
    entries = [
        {"kind": batch.kind.name, "rows": batch.rows, "bad": flags[number], "kept": number in kept}
        for number, batch in enumerate(batches)
    ]
    told = {"rank": rank, "host": socket.gethostname(), "batches": entries}
    write_durably(folder / f"rank-{rank:05d}.json", json.dumps(told) + "\n")
