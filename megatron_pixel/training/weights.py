"""Which checkpoint to read, for programs of one process that take no part in a run."""

from pathlib import Path

from megatron_pixel.config.errors import UserError
from megatron_pixel.training import checkpoint_files as files


def newest_whole(root: Path) -> tuple[int, Path]:
    """Step and folder of the newest checkpoint of a run whose files are all there at their sizes.

    Raises:
        UserError: there is none; the message says why each one was passed over.
    """
    reasons = []
    for step, folder in files.list_checkpoints(root):
        _, problem = files.manifest_problem(folder)
        if problem is None:
            return step, folder
        reasons.append(f"{folder.name}: {problem}")
    raise UserError("\n  ".join([f"no whole checkpoint in {root}; train first", *reasons]))


def named_checkpoint(folder: Path) -> tuple[int, Path]:
    """Step and folder of a checkpoint that the user names.

    Raises:
        UserError: it is not there or not whole.
    """
    step = files.step_of(folder.resolve())
    if step is None or not folder.is_dir():
        raise UserError(f"{folder} is no checkpoint folder (step-00000120 and the like)")
    _, problem = files.manifest_problem(folder)
    if problem is not None:
        raise UserError(f"{folder} cannot be used: {problem}")
    return step, folder
