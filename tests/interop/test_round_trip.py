"""Into the released layout and back, bit for bit, from whatever layout of processes wrote the checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_pixel.config.errors import UserError
from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.importing import from_hf
from megatron_pixel.interop.open import open_any
from megatron_pixel.interop.safetensors import DTYPES
from megatron_pixel.interop.source import INDEX, open_released
from tests.interop.helpers import SMALL, full_tensors, write_canonical, write_partitioned


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for path in sorted(folder.glob("*.safetensors")) for name, t in load_file(path).items()}


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(dtype: str, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    generator = torch.Generator().manual_seed(1)
    shapes = {name: t.shape for name, t in tensors(exported).items()}
    size = DTYPES[dtype].itemsize
    integer = torch.int32 if size == 4 else torch.int16
    theirs = {}
    for name, shape in shapes.items():
        raw = torch.randint(-(2 ** (8 * size - 1)), 2 ** (8 * size - 1), shape, generator=generator)
        values = raw.to(integer).view(DTYPES[dtype])
        # All finite numbers, the smallest too, and infinities; what is not a number has no bits to keep.
        theirs[name] = torch.where(values.isnan(), torch.tensor(float("inf"), dtype=values.dtype), values)
    save_file(theirs, folder / "model.safetensors")
    (folder / "config.json").write_text((exported / "config.json").read_text())
    checkpoint, _ = from_hf(open_released(folder), tmp_path / "ours")
    to_hf(open_any(checkpoint), tmp_path / "back", ExportOptions())
    back = tensors(tmp_path / "back")
    assert set(back) == set(theirs)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == str(DTYPES[dtype])[6:]
    for name, tensor in theirs.items():
        assert back[name].dtype == DTYPES[dtype]
        assert torch.equal(bits(back[name]), bits(tensor)), name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_another_precision_on_request(dtype: str, run: Path, tmp_path: Path) -> None:
    to_hf(open_any(run), tmp_path / "out", ExportOptions(dtype=dtype, shard_bytes=40_000))
    found, full = tensors(tmp_path / "out"), full_tensors(SMALL)["fp32"]
    assert {t.dtype for t in found.values()} == {DTYPES[dtype]}
    assert torch.equal(found["model.embed_tokens.weight"], full["0.tokens.weight"].to(DTYPES[dtype]))
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in found.values())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == {"bf16": "bfloat16", "fp16": "float16"}[dtype]


def test_the_way_back_gives_our_own_tensors(exported: Path, tmp_path: Path) -> None:
    checkpoint, _ = from_hf(open_released(exported), tmp_path)
    source, full = open_any(checkpoint).source, full_tensors(SMALL)["fp32"]
    assert set(source.shapes) == set(full)
    for name, tensor in full.items():
        assert torch.equal(source.read(name, "fp32"), tensor), name
    told = open_any(checkpoint)
    assert told.model == SMALL
    assert told.pair.layout == "released"
    assert told.tokenizer is not None


@pytest.mark.parametrize(("tensor", "data", "kind"), [(2, 1, "stage12"), (1, 2, "stage12"), (2, 2, "stage3")])
def test_every_layout_exports_the_same(tensor: int, data: int, kind: str, exported: Path, tmp_path: Path) -> None:
    checkpoint = write_partitioned(tmp_path / "run", SMALL, full_tensors(SMALL), tensor, data, kind)
    to_hf(open_any(checkpoint), tmp_path / "out", ExportOptions())
    expected, found = tensors(exported), tensors(tmp_path / "out")
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_shards_and_their_index(exported: Path) -> None:
    index = json.loads((exported / INDEX).read_text())
    files = sorted(exported.glob("*.safetensors"))
    assert len(files) > 2
    assert [path.name for path in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    held = {}
    for path in files:
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            held |= dict.fromkeys(file.keys(), path.name)
        assert path.stat().st_size < 60_000
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(exported).values())


def test_released_names_and_shapes(exported: Path) -> None:
    found = {name: list(t.shape) for name, t in tensors(exported).items()}
    hidden, ffn, vocabulary = SMALL.hidden, SMALL.ffn, SMALL.vocab_size
    expected = {
        "model.embed_patches.patch_embeddings.projection.weight": [hidden, 3, 8, 8],
        "model.embed_patches.patch_embeddings.projection.bias": [hidden],
        "model.embed_patches.patch_embeddings.norm.weight": [hidden],
        "model.embed_patches.patch_embeddings.norm.bias": [hidden],
        "model.embed_tokens.weight": [vocabulary, hidden],
        "model.norm.weight": [hidden],
        "lm_token_head.weight": [vocabulary, hidden],
        "lm_pixel_head.weight": [192, hidden],
    }
    for layer in range(SMALL.layers):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            expected[f"{prefix}{norm}.weight"] = [hidden]
        for part, shape in (("q", [hidden, hidden]), ("k", [16, hidden]), ("v", [16, hidden]), ("o", [hidden, hidden])):
            expected[f"{prefix}self_attn.{part}_proj.weight"] = shape
        for part, shape in (("gate", [ffn, hidden]), ("up", [ffn, hidden]), ("down", [hidden, ffn])):
            expected[f"{prefix}mlp.{part}_proj.weight"] = shape
    assert found == expected
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "ernie-pixel"
    assert config["norm_pix_loss"] is True
    assert (config["patch_size"], config["num_channels"]) == (8, 3)


def test_classifiers_go_out_and_come_back(tmp_path: Path) -> None:
    full = full_tensors(SMALL, labels=3)
    write_canonical(tmp_path / "run", SMALL, full, labels=["no", "maybe", "yes"], task="a test", released=False)
    to_hf(open_any(tmp_path / "run"), tmp_path / "out", ExportOptions())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["ErniePixelForSequenceClassification"]
    assert config["id2label"] == {"0": "no", "1": "maybe", "2": "yes"}
    found = tensors(tmp_path / "out")
    assert list(found["score.weight"].shape) == [3, SMALL.hidden]
    assert not [name for name in found if name.startswith("lm_")]
    released = open_released(tmp_path / "out")
    assert released.score is not None
    assert torch.equal(released.score, full["fp32"]["4.heads.score.linear.weight"])
    checkpoint, _ = from_hf(released, tmp_path / "ours")
    back = open_any(checkpoint)
    assert back.labels == ("no", "maybe", "yes")
    assert all(torch.equal(back.source.read(name, "fp32"), tensor) for name, tensor in full["fp32"].items())


def test_nothing_is_overwritten_and_nothing_half_written_is_left(
    run: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="there already"):
        to_hf(open_any(run), exported, ExportOptions())
    from_hf(open_released(exported), tmp_path / "ours")
    with pytest.raises(UserError, match="there already"):
        from_hf(open_released(exported), tmp_path / "ours")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megatron_pixel.interop.exporting.write_card", full_disk)
    with pytest.raises(UserError, match="No space left"):
        to_hf(open_any(run), tmp_path / "torn", ExportOptions())
    monkeypatch.setattr("megatron_pixel.interop.importing._describe", full_disk)
    with pytest.raises(UserError, match="No space left"):
        from_hf(open_released(exported), tmp_path / "torn-too")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "torn-too.writing"]
    assert not list((tmp_path / "torn-too.writing").iterdir())
