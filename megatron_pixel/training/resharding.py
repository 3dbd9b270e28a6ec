"""A checkpoint of any layout, written anew in canonical form, by one process and one tensor at a time."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import CANONICAL, TENSORS, open_source, write_tensors


def reshard(checkpoint: Path, out: Path, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Write the canonical form of ``checkpoint`` to a folder of the same name in ``out``; whole or not at all.

    Args:
        checkpoint: folder of a checkpoint; it is checked against its hashes and stays as it is.
        out: folder for the result, such as the ``checkpoints`` of a new run.
        progress: called with ``checking`` or ``writing``, the bytes done and all bytes.

    Returns:
        The folder that was written.

    Raises:
        UserError: the checkpoint is not whole or is in canonical form already, the result is there already, or the disk
            is full.
    """
    step = files.step_of(checkpoint)
    if step is None or not checkpoint.is_dir():
        raise UserError(f"{checkpoint} is no checkpoint folder (step-00000120 and the like)")
    final = out / checkpoint.name
    if final.exists():
        raise UserError(f"{final} is there already; nothing was written")
    check_content(checkpoint, progress)
    state = json.loads((checkpoint / files.STATE).read_text(encoding="utf-8"))
    if state["form"] == CANONICAL:
        raise UserError(f"{checkpoint} is in canonical form already: every layout can resume from it")
    folder = files.writing_area(out) / checkpoint.name
    try:
        files.clear(folder)
        folder.mkdir(parents=True)
        source = open_source(checkpoint)
        table: files.FileTable = {}
        total = 4 * len(TENSORS) * sum(math.prod(shape) for shape in source.shapes.values())
        counter = _counter(progress, "writing", total)
        for name in write_tensors(source, folder, counter):
            table |= files.describe_files(folder, [name])
        canonical = {
            **state,
            "form": CANONICAL,
            "parameters": {name: list(shape) for name, shape in source.shapes.items()},
            "created_by": f"megatron_pixel {megatron_pixel.__version__}",
        }
        files.write_durably(folder / files.STATE, json.dumps(canonical, indent=1) + "\n")
        shutil.copyfile(checkpoint / "config.yaml", folder / "config.yaml")
        table |= files.describe_files(folder, [files.STATE, "config.yaml"])
        files.write_manifest(folder, step, table)
        return files.publish(folder, out)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        files.clear(folder)
        raise UserError(f"{final} could not be written: {error}") from error


def check_content(checkpoint: Path, progress: Callable[[str, int, int], None] | None = None) -> None:
    """Hold every file of a checkpoint against its sha256.

    Args:
        progress: called with ``checking``, the bytes done and all bytes.

    Raises:
        UserError: a file is missing, cut short or damaged.
    """
    table, problem = files.manifest_problem(checkpoint)
    counter = _counter(progress, "checking", sum(int(entry["bytes"]) for entry in table.values()))
    for name in table:
        problem = problem or files.content_problem(checkpoint, table, [name])
        counter(int(table[name]["bytes"]))
    if problem is not None:
        raise UserError(f"{checkpoint} cannot be used: {problem}")


def _counter(progress: Callable[[str, int, int], None] | None, what: str, total: int) -> Callable[[int], None]:
    done = 0

    def count(amount: int) -> None:
        nonlocal done
        done += amount
        if progress is not None:
            progress(what, done, total)

    return count
