"""A fine-tuned model on disk: a checkpoint in canonical form (docs/checkpoints.md) that says what it is for.

Beside ``parameters`` its ``state.json`` holds the task, the classes, the modality, and how its texts become rows.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.values import ConfigDumper
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import CANONICAL, Source, open_source, tensor_file

KIND = "classifier"
"""``kind`` in the ``state.json`` of a fine-tuned model."""


@dataclass(frozen=True)
class SavedModel:
    """A folder with a fine-tuned model."""

    folder: Path
    facts: dict[str, Any]

    @classmethod
    def find(cls, folder: Path) -> "SavedModel | None":
        """The fine-tuned model in a folder; None where there is none.

        Raises:
            UserError: there is one, and it is not whole.
        """
        path = folder / files.STATE
        if not path.is_file():
            return None
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not JSON: {error}") from None
        if not isinstance(facts, dict) or facts.get("kind") != KIND:
            return None
        table, problem = files.manifest_problem(folder)
        problem = problem or files.content_problem(folder, table, list(table))
        if problem is not None:
            raise UserError(f"{folder} cannot be used: {problem}; fine-tune again")
        return cls(folder, facts)

    def source(self) -> Source:
        """Its tensors."""
        return open_source(self.folder)


def save_model(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a model, in place of the one that ``folder`` may hold; until the new one is whole the old one stays.

    Args:
        folder: of the model alone.
        tensors: full, by name.
        facts: JSON-able; ``model`` is its architecture, ``step`` the one it was best at.
    """
    writing = folder.with_name(folder.name + ".writing")
    shutil.rmtree(writing, ignore_errors=True)
    writing.mkdir(parents=True)
    for name, tensor in tensors.items():
        path = writing / tensor_file(name, "fp32")
        path.parent.mkdir(parents=True)
        torch.save({"param": tensor.to(torch.float32)}, path)
    state = {
        "form": CANONICAL,
        "kind": KIND,
        "optimizer_steps": 0,
        "parameters": {name: list(tensor.shape) for name, tensor in tensors.items()},
        **facts,
    }
    files.write_durably(writing / files.STATE, json.dumps(state, indent=1, ensure_ascii=False) + "\n")
    config = yaml.dump({"model": facts["model"]}, Dumper=ConfigDumper, sort_keys=False)
    files.write_durably(writing / "config.yaml", config)
    files.write_manifest(writing, facts["step"], files.describe_files(writing, files.files_below(writing)))
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    writing.rename(folder)
    files.sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
