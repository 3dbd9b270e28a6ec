"""What can be refused before a run starts, or before a queue is waited for: without torch, in a moment."""

import json
import os
from pathlib import Path

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training import run_lock
from megatron_pixel.training.resume import refuse_changes


def preflight(config: RunConfig) -> None:
    """Refuse a run that could not begin: its folder in use or closed to writing, or other settings than before.

    Looks, and changes nothing. For programs that submit jobs; the run itself looks again.

    Raises:
        UserError: see :func:`check_folder` and :func:`check_settings`, or another run uses the folder.
    """
    folder = Path(config.run.dir)
    check_folder(folder)
    user = run_lock.holder(folder) if folder.is_dir() else None
    if user is not None:
        raise UserError(f"run.dir: {folder} is in use by {user}; end that run, or give this one a folder of its own")
    check_settings(config)


def check_folder(folder: Path) -> None:
    """Refuse a run's folder that cannot be made or written to, as far as permissions tell.

    Raises:
        UserError: names the part of the path that is in the way.
    """
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"run.dir: {folder} cannot be made: {existing} is a file; choose another with --run.dir")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"run.dir: {folder} cannot be written: no permission in {existing}, or it is mounted read-only; choose "
            "another with --run.dir"
        )


def check_settings(config: RunConfig) -> None:
    """Refuse settings that differ from those of the checkpoint that the run would resume from.

    The checkpoint's files are not read through, so where the newest turns out to be damaged an older one decides later.

    Raises:
        UserError: see :func:`megatron_pixel.training.resume.refuse_changes`.
    """
    checkpoint = _checkpoint(config)
    if checkpoint is None:
        return
    try:
        state = json.loads((checkpoint / files.STATE).read_text(encoding="utf-8"))
        saved = state["config"]
    except (OSError, ValueError, KeyError):
        return  # what is wrong with it is said where checkpoints are checked
    refuse_changes(saved, config, checkpoint, sections=("model",) if "released" in state else None)


def _checkpoint(config: RunConfig) -> Path | None:
    resume = config.checkpoint.resume
    if resume == "none":
        return None
    if resume != "auto":
        return Path(resume)
    found = files.list_checkpoints(Path(config.run.dir) / "checkpoints")
    return next((folder for _, folder in found if files.manifest_problem(folder)[1] is None), None)
