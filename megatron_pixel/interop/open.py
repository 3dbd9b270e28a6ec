"""One way to open any checkpoint: a run, one of its checkpoints in either form, or a released folder."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig, PairConfig
from megatron_pixel.data.files import hash_file
from megatron_pixel.interop.companions import find_tokenizer, recorded_rendering
from megatron_pixel.interop.names import SCORE, head_name
from megatron_pixel.interop.source import CONFIG, Released, is_released, open_released
from megatron_pixel.training.canonical import Source, open_source
from megatron_pixel.training.checkpoint_files import MANIFEST, STATE, manifest_problem, step_of
from megatron_pixel.training.weights import newest_whole

BEST = "best"
"""Folder of the checkpoint that a fine-tuning run keeps."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose tensors can be read, and what is known of it."""

    folder: Path
    """Of the checkpoint itself."""
    run: Path | None
    """Folder of the run that wrote it, where it still lies in one."""
    source: Source
    model: ModelConfig
    pair: PairConfig
    step: int | None
    """Steps that it was trained for; None where nobody tells."""
    state: dict[str, Any]
    """``state.json``; empty for a released folder."""
    labels: tuple[str, ...]
    """Names of the classes of a classifier; () for a pretraining model."""
    tokenizer: Path | None
    """The sentencepiece model that it was trained with; None where it is not to be found."""
    rendering: dict[str, Any]
    """Rendering settings that its pages were made with, fonts as ``name (sha256 ...)``; empty where nobody tells."""


def open_any(folder: Path) -> Opened:
    """Open ``folder``: a run (its newest whole checkpoint), a checkpoint ``step-...`` of either form, or a folder in
    the released layout or plain Llama's.

    Raises:
        UserError: it is none of these, or not whole.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if is_released(folder) or (folder / CONFIG).is_file():
        return _released(open_released(folder))
    if (folder / MANIFEST).is_file() or step_of(folder.resolve()) is not None:
        checkpoint = folder
    elif (folder / BEST / MANIFEST).is_file():
        checkpoint = folder / BEST
    else:
        inner = folder / "checkpoints"
        if not inner.is_dir() and not any(step_of(path) is not None for path in folder.iterdir()):
            raise UserError(
                f"{folder} is no checkpoint: neither a run, nor a folder step-..., nor a released model with {CONFIG}"
            )
        _, checkpoint = newest_whole(inner if inner.is_dir() else folder)
    _, problem = manifest_problem(checkpoint)
    if problem is not None:
        raise UserError(f"{checkpoint} cannot be used: {problem}")
    return _trained(checkpoint.resolve())


def _released(source: Released) -> Opened:
    told = source.described
    labels = _labels(list(told.label_names), source.shapes.get(head_name(source.model, SCORE)))
    return Opened(
        source.folder,
        None,
        source,
        source.model,
        source.pair,
        told.extra.get("step"),
        {},
        labels,
        source.tokenizer,
        told.extra.get("rendering", {}),
    )


def _trained(folder: Path) -> Opened:
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        source = open_source(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} is no checkpoint: {STATE} cannot be used ({type(error).__name__} {error})") from None
    config = state.get("config") or {}
    model = _section(ModelConfig, state.get("model") or config["model"])
    run = folder.parent.parent if folder.parent.name == "checkpoints" else folder.parent
    found_run = run if (run / "config.yaml").is_file() else None
    rendering = state.get("rendering") or state.get("imported", {}).get("rendering") or {}
    return Opened(
        folder,
        found_run,
        source,
        model,
        _section(PairConfig, config.get("pair", {})),
        state.get("step"),
        state,
        _labels(state.get("labels"), source.shapes.get(head_name(model, SCORE))),
        _told_tokenizer(state) or find_tokenizer(state, folder, found_run),
        rendering or recorded_rendering(state.get("data") or {}),
    )


def _told_tokenizer(state: dict[str, Any]) -> Path | None:
    """The file that a classifier's checkpoint names, if it is still the one that it was trained with."""
    told, sha256 = state.get("tokenizer"), state.get("tokenizer_sha256") or ""
    if told and Path(told).is_file() and hash_file(told).startswith(sha256):
        return Path(told)
    return None


def _labels(names: list[str] | None, score: tuple[int, ...] | None) -> tuple[str, ...]:
    """Names of the classes, made up where nobody has named them; () for a model without a score."""
    if score is None:
        return ()
    if names and len(names) == score[0]:
        return tuple(str(name) for name in names)
    return tuple(f"LABEL_{number}" for number in range(score[0]))


def _section(schema: Any, values: dict[str, Any]) -> Any:
    """A section of the settings; keys that this version does not know are those of another one's, and left out."""
    known = {field.name for field in dataclasses.fields(schema)}
    return schema(**{key: value for key, value in values.items() if key in known})
