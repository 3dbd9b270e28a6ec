"""One process with a mesh of size one, a tiny pretrained model, and a task that can be learnt in seconds."""

import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml

from megatron_pixel.config.loader import load_config, to_dict
from megatron_pixel.config.schema import LossConfig, RunConfig
from megatron_pixel.data.tokenizer import train_tokenizer
from megatron_pixel.finetuning.arguments import load
from megatron_pixel.finetuning.run import FinetuningRun
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import CANONICAL, tensor_file
from tests.alone import alone

SENTENCES = {
    "good": ("a fine day", "the good song", "lovely weather", "what a nice place", "happy people sing"),
    "bad": ("AN AWFUL DAY", "THE BAD SONG", "NASTY WEATHER", "WHAT A POOR PLACE", "SAD PEOPLE WEEP"),
}


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[Mesh]:
    with alone() as here:
        yield here


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tokenizer.model``, labelled files, and checkpoints ``textgpt``, ``pixelgpt``, ``dualgpt``."""
    folder = tmp_path_factory.mktemp("finetuning")
    texts = [text for group in SENTENCES.values() for text in group]
    train_tokenizer(texts * 5, folder / "tokenizer.model", 300, 1000)
    for name in ("train", "validation"):
        rows = [{"text": text, "label": label} for label, group in SENTENCES.items() for text in group]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for system, mixture in (("textgpt", "1:0:0"), ("pixelgpt", "0:1:0"), ("dualgpt", "4:4:2")):
        write_checkpoint(folder / system, mixture)
    return folder


def tiny(mixture: str = "4:4:2") -> RunConfig:
    """Settings of a pretraining run of two layers."""
    recipe = Path(__file__).parents[2] / "megatron_pixel" / "config" / "recipes" / "dualgpt-debug.yaml"
    config = load_config(recipe)
    config.data.mixture = mixture
    config.model.layers, config.model.hidden, config.model.heads, config.model.kv_heads = 2, 32, 4, 2
    config.model.ffn, config.model.vocab_size, config.model.seq_length = 48, 300, 64
    config.model.patch_size, config.model.num_channels = 16, 3
    return config


def write_checkpoint(run: Path, mixture: str) -> None:
    """A run with one checkpoint in canonical form."""
    config = tiny(mixture)
    objectives = pretraining_objectives(config.model, LossConfig())
    with nullcontext() if torch.distributed.is_initialized() else alone():
        network = torch.nn.Sequential(*build_stages(config.model, objectives, seed=3))
    folder = run / "checkpoints" / files.folder_name(7)
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        path = folder / tensor_file(name, "fp32")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"param": parameter.detach()}, path)
    state = {
        "form": CANONICAL,
        "optimizer_steps": 0,
        "parameters": {name: list(parameter.shape) for name, parameter in parameters.items()},
        "config": to_dict(config),
        "data": {},
    }
    (folder / files.STATE).write_text(json.dumps(state), encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)), encoding="utf-8")
    files.write_manifest(folder, 7, files.describe_files(folder, files.files_below(folder)))


def settings(place: Path, system: str, modality: str, run: Path, *words: str) -> list[str]:
    """Words of a command line for a run of some seconds."""
    return [
        *("--checkpoint", str(place / system), "--examples.path", str(place), "--modality", modality),
        *("--input.tokenizer", str(place / "tokenizer.model"), "--input.cache", str(place / "cache")),
        *("--run.dir", str(run), "--training.steps", "40", "--training.global_batch_rows", "10"),
        *("--training.micro_batch_rows", "5", "--training.precision", "fp32", "--stopping.every", "8"),
        *("--optimizer.lr", "1e-2", "--optimizer.warmup_steps", "2", *words),
    ]


def finetune(words: list[str], here: Mesh) -> tuple[dict, list[str]]:
    """Run fine-tuning in this process; its result and what it said."""
    said: list[str] = []
    result = FinetuningRun(load(None, words), here, said.append).train()
    assert result is not None
    return result, said
