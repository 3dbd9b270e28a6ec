"""The weights of a checkpoint without an optimizer or an engine: for evaluation, on one process."""

import json
from pathlib import Path

import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.checkpoint import STATE

MODEL_STATES = "mp_rank_00_model_states.pt"


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


def load_weights(module: torch.nn.Module, checkpoint: Path) -> None:
    """Put a checkpoint's weights into a model that holds all of them.

    Raises:
        UserError: the checkpoint's weights are spread over several files, or belong to a model of another shape.
    """
    layout = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["layout"]
    if layout["tensor"] > 1 or layout["pipeline"] > 1 or layout["zero_stage"] == 3:
        raise UserError(
            f"{checkpoint} was written with its weights split ({layout}); evaluating such a checkpoint on one process "
            "is not supported yet"
        )
    # DeepSpeed stores argument objects beside the tensors, so torch's weights-only reader refuses the file.
    states = torch.load(checkpoint / MODEL_STATES, map_location="cpu", weights_only=False)
    try:
        module.load_state_dict(states["module"])
    except RuntimeError as error:
        raise UserError(f"{checkpoint} does not fit the model of its run's config.yaml: {error}") from error
