"""Small checkpoints made by hand: in our forms, whatever layout wrote them, and in the released layout."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_pixel.config.loader import save_config, to_dict
from megatron_pixel.config.schema import ModelConfig, PairConfig, RunConfig
from megatron_pixel.data.tokenizer import Tokenizer, train_tokenizer
from megatron_pixel.interop.names import parameters
from megatron_pixel.parallel.sharding import MOMENTS, Piece, split_of
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import CANONICAL, PARTITIONED, TENSORS, pieces_file, tensor_file

SMALL = ModelConfig(
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    ffn=48,
    vocab_size=300,
    seq_length=32,
    patch_size=8,
    num_channels=3,
    rope_theta=1000.0,
)
"""4 heads over 2 key-value heads: nothing that is square or equal by accident, but for what must be."""
PAIR = PairConfig("released", 16, 16)
TEXT = """the congress of the united states met in december and a report of the secretary was laid before the senate
we the people of the states in order to form a more perfect union establish justice and secure the blessings of liberty
it is a duty to report to congress what has been done since the last session and what is still to be done 0123456789"""

Full = dict[str, dict[str, Tensor]]


def make_tokenizer(folder: Path) -> Path:
    """A sentencepiece model of as many entries as ``SMALL`` has."""
    path = folder / "tokenizer.model"
    train_tokenizer([TEXT] * 2, path, SMALL.vocab_size, 1000)
    assert Tokenizer(path).vocab_size == SMALL.vocab_size
    return path


def full_tensors(model: ModelConfig, seed: int = 3, labels: int = 0) -> Full:
    """Weights large enough that attention is far from uniform, norms that are not 1, and moments."""
    generator = torch.Generator().manual_seed(seed)
    full: Full = {what: {} for what in TENSORS}
    for parameter in parameters(model, "released", labels):
        for what in TENSORS:
            values = torch.randn(parameter.shape, generator=generator) * 0.2
            full[what][parameter.name] = values + 1 if "norm.weight" in parameter.name else values
    return full


def state_of(model: ModelConfig, tokenizer: Path | None, **more: Any) -> dict[str, Any]:
    """``state.json`` of a checkpoint whose run had one dataset of each kind."""
    data: dict[str, dict[str, Any]] = {}
    if tokenizer is not None:
        data["data.text[0]"] = {"tokenizer": f"tokenizer.model (sha256 {Tokenizer(tokenizer).sha256[:12]})"}
    data["data.pixels[0]"] = {"preset": "default", "mode": "rgb", "patch_size": model.patch_size, "dpi": 120} | {
        "font_size": model.patch_size / 2,
        "binary_threshold": 128,
        "fonts": ["Nowhere.ttf (sha256 0123456789ab)"],
    }
    config = to_dict(replace(RunConfig(), model=model, pair=PAIR))
    state = {"form": CANONICAL, "step": 3, "optimizer_steps": 3, "skipped_steps": 0, "samples": 0, "consumed": {}}
    return state | {"layout": {}, "data": data, "config": config} | more


def write_canonical(run: Path, model: ModelConfig, full: Full, tokenizer: Path | None = None, **more: Any) -> Path:
    """``run/checkpoints/step-00000003`` in canonical form, and the run's tokenizer."""
    folder = _begin(run, tokenizer)
    for name in full["fp32"]:
        for what in TENSORS:
            path = folder / tensor_file(name, what)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"param": full[what][name]}, path)
    shapes = {name: list(tensor.shape) for name, tensor in full["fp32"].items()}
    return _seal(run, folder, model, state_of(model, tokenizer, parameters=shapes, **more))


def write_partitioned(
    run: Path, model: ModelConfig, full: Full, tensor: int, data: int, kind: str, tokenizer: Path | None = None
) -> Path:
    """What ``tensor`` x ``data`` ranks would write: a tensor rank's shares in a flat buffer, cut in ``data`` pieces."""
    folder = _begin(run, tokenizer)
    for rank in range(tensor * data):
        data_rank, tensor_rank = divmod(rank, tensor)
        flat = {
            what: torch.cat([split_of(n).take(v, tensor, tensor_rank).flatten() for n, v in full[what].items()])
            for what in TENSORS
        }
        length = -(-len(flat["fp32"]) // data)
        mine = {what: values[data_rank * length : (data_rank + 1) * length].clone() for what, values in flat.items()}
        optimizer = {"state": {0: {what: mine[what] for what in MOMENTS}}, "param_groups": []}
        content: dict[str, Any] = {"single_partition_of_fp32_groups": [mine["fp32"]], "base_optimizer_state": optimizer}
        if kind == "stage3":
            content = {"fp32_flat_groups": [mine["fp32"]], "optimizer_state_dict": optimizer}
        torch.save({"optimizer_state_dict": content}, folder / f"optimizer-{rank}.pt")
        told = {"rank": rank, "file": f"optimizer-{rank}.pt", "kind": kind, "tensor_rank": tensor_rank}
        pieces = _pieces(full["fp32"], tensor, data_rank * length, length)
        (folder / pieces_file(rank)).write_text(json.dumps(told | {"tensor_size": tensor, "parameters": pieces}))
    return _seal(run, folder, model, state_of(model, tokenizer, form=PARTITIONED))


def _pieces(full: dict[str, Tensor], tensor: int, start: int, length: int) -> dict[str, Any]:
    found, position = {}, 0
    for name, values in full.items():
        split = split_of(name)
        count = values.numel() // (1 if split.dim is None else tensor)
        low, high = max(position, start), min(position + count, start + length)
        piece = asdict(Piece(low - position, high - low, 0, low - start)) if low < high else None
        found[name] = {"shape": list(values.shape), "split": asdict(split), "piece": piece}
        position += count
    return found


def _begin(run: Path, tokenizer: Path | None) -> Path:
    folder = files.writing_area(run / "checkpoints") / "step-00000003"
    folder.mkdir(parents=True)
    if tokenizer is not None:
        (run / tokenizer.name).write_bytes(tokenizer.read_bytes())
    return folder


def _seal(run: Path, folder: Path, model: ModelConfig, state: dict[str, Any]) -> Path:
    files.write_durably(folder / files.STATE, json.dumps(state))
    save_config(RunConfig(model=model), folder / "config.yaml")
    save_config(RunConfig(model=model), run / "config.yaml")
    files.write_manifest(folder, 3, files.describe_files(folder, files.files_below(folder)))
    return files.publish(folder, run / "checkpoints")
