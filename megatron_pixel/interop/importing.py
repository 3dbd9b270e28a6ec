"""A released checkpoint written as one of ours, in canonical form: any layout of processes resumes from it."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import save_config
from megatron_pixel.config.schema import ModelConfig, RunConfig
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.interop.exporting import Progress
from megatron_pixel.interop.names import SCORE, head_name, parameters
from megatron_pixel.interop.source import TOKENIZER, Released
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import CANONICAL, tensor_file
from megatron_pixel.training.resume import Layout

SEED = 1234
"""Of the weights that a plain Llama does not have."""


def from_hf(source: Released, out: Path, progress: Progress | None = None) -> tuple[Path, list[str]]:
    """Write a released checkpoint to ``out/step-00000000`` in canonical form; whole or not at all.

    A plain Llama becomes a TextGPT: its patch embedder and pixel head are drawn anew, as in a model that begins.

    Args:
        source: checked already.
        out: folder for the checkpoint, such as the ``checkpoints`` of a new run.
        progress: called with ``writing``, the bytes done and all bytes.

    Returns:
        The folder that was written, and lines that say what is in it.

    Raises:
        UserError: the result is there already, a tokenizer of another size, or a disk that is full.
    """
    final = out / files.folder_name(0)
    if final.exists():
        raise UserError(f"{final} is there already; nothing was written")
    _check_tokenizer(source)
    wanted = {p.name: p.shape for p in parameters(source.model, "released")}
    if head_name(source.model, SCORE) in source.shapes:
        wanted = source.shapes
    folder = files.writing_area(out) / final.name
    table: files.FileTable = {}
    total, done, fresh = sum(4 * torch.Size(shape).numel() for shape in wanted.values()), 0, []
    try:
        files.clear(folder)
        folder.mkdir(parents=True)
        for name, shape in wanted.items():
            known = name in source.shapes
            if not known:
                fresh.append(name)
            file = tensor_file(name, "fp32")
            (folder / file).parent.mkdir(parents=True)
            _save(source.read(name, "fp32") if known else draw(name, shape, source.model), folder / file)
            table |= files.describe_files(folder, [file])
            done += 4 * torch.Size(shape).numel()
            if progress is not None:
                progress("writing", done, total)
        _describe(source, wanted, folder)
        table |= files.describe_files(folder, set(files.files_below(folder)) - set(table))
        files.write_manifest(folder, 0, table)
        files.publish(folder, out)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        files.clear(folder)
        raise UserError(f"{final} could not be written: {error}") from error
    except BaseException:
        files.clear(folder)
        raise
    lines = [f"weights     {len(wanted)} parameters, {source.dtype} in {source.folder}, kept as fp32 bit for bit"]
    if fresh:
        lines.append(f"drawn anew  {', '.join(fresh)}: a plain Llama has none")
    if source.tokenizer is None:
        lines.append(f"tokenizer   none: there is no {TOKENIZER} in {source.folder}")
    return final, lines


def _check_tokenizer(source: Released) -> None:
    if source.tokenizer is None:
        return
    entries = Tokenizer(source.tokenizer).vocab_size
    if entries != source.model.vocab_size:
        raise UserError(
            f"{source.tokenizer} has {entries:,} entries, the model {source.model.vocab_size:,}: it is not this "
            "model's tokenizer; take it out of the folder to import without one"
        )


def _save(tensor: Tensor, path: Path) -> None:
    torch.save({"param": tensor}, path)


def draw(name: str, shape: tuple[int, ...], model: ModelConfig) -> Tensor:
    """Initial values of a parameter that a plain Llama does not have, of the distributions of a model that begins."""
    generator = torch.Generator().manual_seed(SEED)
    values = torch.zeros(shape)
    if name.endswith("projection.weight"):
        nn.init.xavier_uniform_(values, generator=generator)
    elif name.endswith("patch.linear.weight"):
        nn.init.normal_(values, 0.0, model.init_std, generator=generator)
    elif name.endswith("norm.weight"):
        values.fill_(1.0)
    return values


def _describe(source: Released, wanted: dict[str, tuple[int, ...]], folder: Path) -> None:
    """``state.json``, ``config.yaml`` and the tokenizer."""
    config = RunConfig(model=source.model, pair=source.pair)
    state = {
        "form": CANONICAL,
        "step": 0,
        "optimizer_steps": 0,
        "skipped_steps": 0,
        "samples": 0,
        "consumed": {},
        "layout": asdict(Layout(1, 1, 1, 1)),
        "data": {},
        # Of a run's settings, a released checkpoint knows these alone.
        "config": {"model": asdict(config.model), "pair": asdict(config.pair)},
        "parameters": {name: list(shape) for name, shape in wanted.items()},
        "imported": {
            "folder": source.folder.resolve().name,
            "layout": source.described.layout,
            "dtype": source.dtype,
            "rendering": source.described.extra.get("rendering", {}),
        },
        "labels": list(source.described.label_names),
        "created_by": f"megatron_pixel {megatron_pixel.__version__}",
    }
    files.write_durably(folder / files.STATE, json.dumps(state, indent=1) + "\n")
    save_config(config, folder / "config.yaml")
    if source.tokenizer is not None:
        shutil.copyfile(source.tokenizer, folder / TOKENIZER)
