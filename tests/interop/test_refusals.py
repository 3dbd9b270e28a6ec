"""One clear line for everything that does not fit, and nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_pixel.config.errors import UserError
from megatron_pixel.generation.model import open_model
from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.importing import from_hf
from megatron_pixel.interop.open import open_any
from megatron_pixel.interop.source import open_released
from tests.interop.helpers import SMALL, TEXT, full_tensors, write_canonical


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def first_file(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    save_file(change(load_file(path)), path)


def without_embedding(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != "model.embed_tokens.weight"}


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder of a model": (lambda f: (f / "config.json").unlink(), "is no checkpoint: it has no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "describes no model"),
    "another architecture": (lambda f: edited(f, model_type="gpt2"), "model_type 'gpt2' is none of ernie-pixel, llama"),
    "a key is not there": (lambda f: edited(f, hidden_size=None), "hidden_size: not there"),
    "a size that is none": (lambda f: edited(f, num_hidden_layers="two"), "num_hidden_layers: 'two' is no size"),
    "biases": (lambda f: edited(f, attention_bias=True), "attention_bias: True, where only False is possible"),
    "another activation": (lambda f: edited(f, hidden_act="gelu"), "hidden_act: 'gelu', where only 'silu'"),
    "stretched positions": (
        lambda f: edited(f, rope_parameters={"rope_type": "yarn", "rope_theta": 1e4}),
        "rope_parameters: type 'yarn'",
    ),
    "heads that do not divide": (lambda f: edited(f, num_key_value_heads=3), "do not divide"),
    "no weights": (lambda f: [path.unlink() for path in f.glob("*.safetensors*")], "neither model.safetensors nor"),
    "a missing shard": (
        lambda f: (f / "model-00002-of-00006.safetensors").unlink(),
        "model-00002-of-00006.*is missing",
    ),
    "a shard cut short": (
        lambda f: (f / "model-00001-of-00006.safetensors").write_bytes(
            (f / "model-00001-of-00006.safetensors").read_bytes()[:-4]
        ),
        "model-00001-of-00006.safetensors is cut short",
    ),
    "an unknown dtype": (
        lambda f: first_file(f, lambda tensors: {n: t.double() for n, t in tensors.items()}),
        "has the dtype F64; weights are F32, BF16, F16",
    ),
    "an index that cannot be read": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"),
        "index.json cannot be used",
    ),
    "a shard outside the folder": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}'),
        "must name files of the folder",
    ),
    "a tensor that its shard does not hold": (
        lambda f: first_file(f, without_embedding),
        "names model.embed_tokens.weight, which model-00001",
    ),
    "tensors of another shape": (
        lambda f: edited(f, vocab_size=301),
        r"(?s)does not fit its config.json:\n  model.embed_tokens.weight: \[300, 32\] where config.json makes it "
        r"\[301, 32\]\n  lm_token_head",
    ),
    "tensors that are missing": (
        lambda f: edited(f, num_hidden_layers=3),
        r"(?s)model.layers.2.input_layernorm.weight \[32\]: missing.*and 4 more",
    ),
    "tensors that are left over": (
        lambda f: edited(f, num_hidden_layers=1),
        r"model.layers.1.\S+ \[\d+(, \d+)?\]: no part of this architecture",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(exported, folder)
    assert len(list(folder.glob("*.safetensors"))) == 6
    open_released(folder)
    breaking, message = BROKEN[name]
    breaking(folder)
    with pytest.raises(UserError, match=message):
        open_released(folder)


def test_folders_that_are_no_checkpoint(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        open_any(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is no checkpoint: neither a run, nor a folder step-"):
        open_any(tmp_path)
    torn = tmp_path / "step-00000003"
    shutil.copytree(open_any(run).folder, torn)
    (torn / "zero" / "0.tokens.weight" / "fp32.pt").unlink()
    with pytest.raises(UserError, match=r"0\.tokens\.weight/fp32\.pt is missing"):
        open_any(torn)
    (torn / "manifest.json").unlink()
    with pytest.raises(UserError, match="never finished"):
        open_any(torn)


def test_a_tokenizer_of_another_size(run: Path, tmp_path: Path) -> None:
    from megatron_pixel.data.tokenizer import train_tokenizer

    other = tmp_path / "other.model"
    train_tokenizer([TEXT], other, 310, 1000)
    message = "other.model has 310 entries, the model 300: it is not the tokenizer of this model"
    with pytest.raises(UserError, match=message):
        to_hf(open_any(run), tmp_path / "out", ExportOptions(tokenizer=other))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=message):
        _ = open_model(run, tokenizer=other).tokenizer
    to_hf(open_any(run), tmp_path / "out", ExportOptions())
    shutil.copyfile(other, tmp_path / "out" / "tokenizer.model")
    with pytest.raises(UserError, match=r"tokenizer\.model has 310 entries, the model 300"):
        from_hf(open_released(tmp_path / "out"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_a_tokenizer_that_is_not_the_run_s_is_not_taken(tmp_path: Path, tokenizer: Path) -> None:
    run = tmp_path / "run"
    write_canonical(run, SMALL, full_tensors(SMALL), tokenizer)
    assert open_any(run).tokenizer == run / "tokenizer.model"
    (run / "tokenizer.model").write_bytes(b"another")
    assert open_any(run).tokenizer is None
    lines = to_hf(open_any(run), tmp_path / "out", ExportOptions())
    assert any("tokenizer   none" in line and "--tokenizer" in line for line in lines)
    with pytest.raises(UserError, match="not to be found: name it with --tokenizer"):
        _ = open_model(run).tokenizer


def test_a_checkpoint_that_does_not_fit_the_layout(tmp_path: Path) -> None:
    full = full_tensors(SMALL)
    for tensors in full.values():
        del tensors["4.heads.patch.linear.weight"]
    write_canonical(tmp_path / "run", SMALL, full)
    with pytest.raises(UserError, match=r"4.heads.patch.linear.weight \[192, 32\]: not in the checkpoint"):
        to_hf(open_any(tmp_path / "run"), tmp_path / "out", ExportOptions())
    to_hf(open_any(tmp_path / "run"), tmp_path / "out", ExportOptions(layout="llama"))
    write_canonical(tmp_path / "classifier", SMALL, full_tensors(SMALL, labels=2))
    with pytest.raises(UserError, match="is a classifier"):
        to_hf(open_any(tmp_path / "classifier"), tmp_path / "x", ExportOptions(layout="llama"))
