"""A checkpoint of ours written as a released one, tensor by tensor."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.interop import safetensors
from megatron_pixel.interop.card import write_card
from megatron_pixel.interop.config_json import CONFIG, MODELLING, config_json
from megatron_pixel.interop.names import Layout, Parameter, parameters
from megatron_pixel.interop.open import Opened
from megatron_pixel.interop.safetensors import Planned
from megatron_pixel.interop.source import INDEX, SINGLE, TOKENIZER
from megatron_pixel.training.checkpoint_files import sync_folder
from megatron_pixel.training.resharding import check_content

Progress = Callable[[str, int, int], None]
SHARD_BYTES = 5_000_000_000
"""Largest file, as the hub likes it."""


@dataclass(frozen=True)
class ExportOptions:
    """How to export."""

    layout: Layout = "released"
    dtype: str = ""
    """fp32, bf16 or fp16; empty is the precision that an imported checkpoint came in, else fp32, as trained."""
    shard_bytes: int = SHARD_BYTES
    tokenizer: Path | None = None
    """Instead of the one that is found."""


def to_hf(checkpoint: Opened, out: Path, options: ExportOptions, progress: Progress | None = None) -> list[str]:
    """Write ``checkpoint`` to ``out``, which appears whole or not at all.

    Returns:
        Lines that say what was written, and what is missing.

    Raises:
        UserError: the checkpoint is damaged or does not fit the layout, ``out`` is there already, a tokenizer of
            another size, or a disk that is full.
    """
    if out.exists():
        raise UserError(f"{out} is there already; nothing was written")
    wanted = _wanted(checkpoint, options.layout)
    dtype = options.dtype or checkpoint.state.get("imported", {}).get("dtype", "fp32")
    tokenizer = _tokenizer(checkpoint, options)
    if checkpoint.state:
        check_content(checkpoint.folder, progress)
    folder = out.with_name(out.name + ".writing")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        lines = [_write_weights(checkpoint, wanted, folder, dtype, options.shard_bytes, progress)]
        lines += _write_tokenizer(tokenizer, folder)
        if options.layout == "released":
            source = Path(__file__).with_name(f"{MODELLING}.py")
            (folder / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
        special = {} if tokenizer is None else {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        _write_json(folder / "generation_config.json", {"_from_model_config": True, **special})
        write_card(folder, checkpoint, options.layout, dtype, tokenizer)
        # What makes the folder a checkpoint comes last.
        _write_json(folder / CONFIG, _config(checkpoint, options.layout, dtype, special))
        _sync(folder)
        folder.rename(out)
        sync_folder(out.resolve().parent)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(f"{out} could not be written: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return lines


def _wanted(checkpoint: Opened, layout: Layout) -> list[Parameter]:
    """The parameters that go into the layout; the first that are missing or of another shape are named."""
    if checkpoint.labels and layout == "llama":
        raise UserError(f"{checkpoint.folder} is a classifier, which the layout llama has no place for")
    wanted = parameters(checkpoint.model, layout, len(checkpoint.labels))
    shapes = checkpoint.source.shapes
    problems = [f"{p.name} {list(p.shape)}: not in the checkpoint" for p in wanted if p.name not in shapes]
    problems += [
        f"{p.name}: {list(shapes[p.name])} instead of {list(p.shape)}"
        for p in wanted
        if p.name in shapes and tuple(shapes[p.name]) != p.shape
    ]
    if problems:
        more = [f"and {len(problems) - 5} more"] if len(problems) > 5 else []
        head = f"{checkpoint.folder} does not fit the layout {layout}:"
        raise UserError("\n  ".join([head, *problems[:5], *more]))
    return wanted


def _tokenizer(checkpoint: Opened, options: ExportOptions) -> Tokenizer | None:
    path = options.tokenizer or checkpoint.tokenizer
    if path is None:
        return None
    tokenizer = Tokenizer(path)
    if tokenizer.vocab_size != checkpoint.model.vocab_size:
        raise UserError(
            f"{path} has {tokenizer.vocab_size:,} entries, the model {checkpoint.model.vocab_size:,}: it is not the "
            "tokenizer of this model"
        )
    return tokenizer


def _write_weights(
    checkpoint: Opened, wanted: list[Parameter], folder: Path, dtype: str, shard_bytes: int, progress: Progress | None
) -> str:
    plan = [Planned(part.name, dtype, part.shape) for parameter in wanted for part in parameter.parts]
    files = safetensors.cut_into_files(plan, shard_bytes)
    names = [SINGLE]
    if len(files) > 1:
        names = [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    total, done = sum(tensor.bytes for tensor in plan), 0
    tensors = ((part, parameter) for parameter in wanted for part in parameter.parts)
    held, full = "", None
    for name, tensors_of_file in zip(names, files, strict=True):
        with safetensors.FileWriter(folder / name, tensors_of_file) as file:
            for planned in tensors_of_file:
                part, parameter = next(tensors)
                if parameter.name != held:
                    full = None  # let go before the next one is read
                    held, full = parameter.name, checkpoint.source.read(parameter.name, "fp32")
                assert full is not None
                file.write(part.name, part.view(full))
                done += planned.bytes
                if progress is not None:
                    progress("writing", done, total)
    if len(files) > 1:
        places = {tensor.name: name for name, part in zip(names, files, strict=True) for tensor in part}
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    return f"weights     {len(plan)} tensors, {total / 1e6:,.0f} MB in {dtype}, {len(files)} file(s)"


def _write_tokenizer(tokenizer: Tokenizer | None, folder: Path) -> list[str]:
    if tokenizer is None:
        return ["tokenizer   none: the one it was trained with is not to be found; name it with --tokenizer"]
    shutil.copyfile(tokenizer.path, folder / TOKENIZER)
    special = {
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "unk_token": tokenizer.piece(tokenizer.unk_id),
    }
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        **special,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    _write_json(folder / "special_tokens_map.json", special)
    return [f"tokenizer   {tokenizer.path}, {tokenizer.vocab_size:,} entries"]


def _config(checkpoint: Opened, layout: Layout, dtype: str, special: dict[str, int]) -> dict[str, Any]:
    extra: dict[str, Any] = {"rendering": checkpoint.rendering, "exported_by": megatron_pixel.__version__}
    if checkpoint.step is not None:
        extra["step"] = checkpoint.step
    torch_name = str(safetensors.DTYPES[dtype]).removeprefix("torch.")
    labels = checkpoint.labels or None
    problem = None
    if labels:
        problem = "regression" if len(labels) == 1 else "single_label_classification"
    return config_json(layout, checkpoint.model, checkpoint.pair, torch_name, special, labels, problem, extra)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
