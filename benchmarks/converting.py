#!/usr/bin/env python
"""How much memory does converting a large checkpoint take, and how long?

    python benchmarks/converting.py --folder /scratch/converting
    python benchmarks/converting.py --folder /scratch/converting --gb 1

A checkpoint as eight ranks write it (tensor parallel 2, data parallel 4, ZeRO 1; weights and both moments, ``--gb`` in
all) is made up in ``--folder``, exported with ``convert.py to-hf``, and imported again with ``convert.py from-hf``,
each in a process of its own. Memory is that process's largest resident set (mapped files count), less what it takes to
convert a checkpoint of a few kilobytes: interpreter and libraries. It is held against the largest tensor. The tensors
that come back are compared with those that were made up. The folder is removed at the end; about twice ``--gb`` is
needed.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from benchmarks import result_file
from megatron_pixel.config.loader import save_config, to_dict
from megatron_pixel.config.schema import ModelConfig, RunConfig
from megatron_pixel.interop.names import Parameter, parameters
from megatron_pixel.interop.open import open_any
from megatron_pixel.parallel.sharding import MOMENTS, Piece, split_of
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import PARTITIONED, TENSORS, pieces_file

TENSOR, DATA = 2, 4
WATCHED = """\
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
BYTES = 4 * len(TENSORS)
"""Of a parameter in a checkpoint."""


def model_of(gb: float) -> ModelConfig:
    """A model whose checkpoint takes about ``gb``; largest are the paper's vocabulary matrices at twice the width."""
    if gb < 0.5:
        return ModelConfig(2, 64, 4, 2, 128, 256, 64)
    model = ModelConfig(layers=1, hidden=2048, heads=16, kv_heads=8, ffn=5632)
    one = sum(p.size for p in parameters(model, "released"))
    two = sum(p.size for p in parameters(replace(model, layers=2), "released"))
    return replace(model, layers=max(1, 1 + round((gb * 1e9 / BYTES - one) / (two - one))))


def values_of(number: int, parameter: Parameter, what: str) -> Tensor:
    """Made-up values, quick to make again: no two tensors, and no two rows, are alike."""
    start = (number * len(TENSORS) + TENSORS.index(what)) * 0.37
    rows = torch.arange(parameter.shape[0], dtype=torch.float32)[:, None] * 1e-3
    columns = torch.arange(parameter.size // parameter.shape[0], dtype=torch.float32) * 1e-6
    return (rows + columns + start).view(parameter.shape)


def write_checkpoint(model: ModelConfig, run: Path) -> Path:
    """What the ranks would write, one rank after the other."""
    folder = files.writing_area(run / "checkpoints") / "step-00000001"
    folder.mkdir(parents=True)
    wanted = parameters(model, "released")
    for tensor_rank in range(TENSOR):
        counts = [p.size // (1 if split_of(p.name).dim is None else TENSOR) for p in wanted]
        length = -(-sum(counts) // DATA)
        for data_rank in range(DATA):
            rank = data_rank * TENSOR + tensor_rank
            pieces = _pieces(wanted, counts, data_rank * length, length)
            held = {what: torch.zeros(length) for what in TENSORS}
            for number, (parameter, told) in enumerate(zip(wanted, pieces.values(), strict=True)):
                if (piece := told["piece"]) is not None:
                    for what in TENSORS:
                        share = split_of(parameter.name).take(values_of(number, parameter, what), TENSOR, tensor_rank)
                        stretch = share.reshape(-1)[piece["start"] :][: piece["count"]]
                        held[what][piece["offset"] :][: piece["count"]] = stretch
            adamw = {"state": {0: {what: held[what] for what in MOMENTS}}, "param_groups": []}
            content = {"single_partition_of_fp32_groups": [held["fp32"]], "base_optimizer_state": adamw}
            torch.save({"optimizer_state_dict": content}, folder / f"optimizer-{rank}.pt")
            told_rank = {"rank": rank, "file": f"optimizer-{rank}.pt", "kind": "stage12", "tensor_rank": tensor_rank}
            text = json.dumps(told_rank | {"tensor_size": TENSOR, "parameters": pieces})
            (folder / pieces_file(rank)).write_text(text, encoding="utf-8")
    config = replace(RunConfig(), model=model)
    state = {"form": PARTITIONED, "step": 1, "optimizer_steps": 1, "config": to_dict(config), "data": {}}
    files.write_durably(folder / files.STATE, json.dumps(state))
    save_config(config, folder / "config.yaml")
    files.write_manifest(folder, 1, files.describe_files(folder, files.files_below(folder)))
    return files.publish(folder, run / "checkpoints")


def _pieces(wanted: list[Parameter], counts: list[int], start: int, length: int) -> dict[str, Any]:
    found, position = {}, 0
    for parameter, count in zip(wanted, counts, strict=True):
        low, high = max(position, start), min(position + count, start + length)
        piece = asdict(Piece(low - position, high - low, 0, low - start)) if low < high else None
        entry = {"shape": list(parameter.shape), "split": asdict(split_of(parameter.name)), "piece": piece}
        found[parameter.name] = entry
        position += count
    return found


def converted(*words: str) -> tuple[float, int]:
    """Seconds and largest resident set in bytes of one call of ``convert.py``, which its process tells at its end."""
    started = time.monotonic()
    call = [sys.executable, "-c", WATCHED, str(ROOT / "megatron_pixel" / "convert.py"), *words]
    done = subprocess.run(call, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} failed: {done.stderr}")
    return time.monotonic() - started, int(done.stdout.split()[-2]) * 1024


def differing(checkpoint: Path, model: ModelConfig) -> Iterator[str]:
    """Names of parameters that are not what was made up."""
    source = open_any(checkpoint).source
    for number, parameter in enumerate(parameters(model, "released")):
        if not torch.equal(source.read(parameter.name, "fp32"), values_of(number, parameter, "fp32")):
            yield parameter.name


def both_ways(model: ModelConfig, folder: Path) -> dict[str, Any]:
    """Out and in again; removes the folder."""
    try:
        run = folder / "run"
        checkpoint = write_checkpoint(model, run)
        size = sum(path.stat().st_size for path in checkpoint.iterdir())
        out = converted("to-hf", str(checkpoint), str(folder / "out"))
        shutil.rmtree(run)  # room for what comes back
        back = converted("from-hf", str(folder / "out"), str(folder / "back"))
        wrong = list(differing(folder / "back" / "step-00000000", model))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"checkpoint_bytes": size, "to_hf": out, "from_hf": back, "wrong": wrong}


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder to make and remove")
    parser.add_argument("--gb", type=float, default=10.0, help="of the checkpoint (default: %(default)s)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise SystemExit(f"{arguments.folder} is there already")
    nothing = both_ways(model_of(0), arguments.folder)
    model = model_of(arguments.gb)
    found = both_ways(model, arguments.folder)
    largest = 4 * max(parameter.size for parameter in parameters(model, "released"))
    figures: dict[str, Any] = {
        "checkpoint_gb": found["checkpoint_bytes"] / 1e9,
        "parameters": sum(parameter.size for parameter in parameters(model, "released")),
        "largest_tensor_mb": largest / 1e6,
        "wrong_tensors": len(found["wrong"]),
    }
    print(f"{figures['checkpoint_gb']:.1f} GB checkpoint, largest tensor {largest / 1e6:,.0f} MB")
    for name in ("to_hf", "from_hf"):
        seconds, peak = found[name]
        taken = peak - nothing[name][1]
        figures[name] = {"seconds": seconds, "peak_mb": taken / 1e6, "peak_over_largest_tensor": taken / largest}
        print(f"{name:8} {seconds:6.0f} s, {taken / 1e6:,.0f} MB more than for nothing: {taken / largest:.2f} of it")
    print(f"{len(found['wrong'])} tensors differ from what was made up")
    result_file.write(arguments.json, figures, ("torch",))


if __name__ == "__main__":
    main()
