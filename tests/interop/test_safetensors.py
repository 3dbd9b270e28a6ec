"""Our files against the ``safetensors`` package, both ways."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_pixel.config.errors import UserError
from megatron_pixel.interop import safetensors as ours
from megatron_pixel.interop.safetensors import DTYPES, FileWriter, Planned, cut_into_files, read_header, read_into

TENSORS = {
    "a": torch.randn(7, 5),
    "b": torch.randn(3, 2, 4, 4).permute(0, 3, 1, 2),
    "scalar": torch.tensor(1.5),
    "empty": torch.empty(0, 4),
}


@pytest.fixture(params=[16, 1 << 20], ids=["in stretches", "at once"])
def stretch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "STRETCH", request.param)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_package_reads_what_we_write(dtype: str, stretch: None, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with FileWriter(path, [Planned(name, dtype, tuple(t.shape)) for name, t in TENSORS.items()]) as file:
        for name, tensor in TENSORS.items():
            file.write(name, tensor)
    found = load_file(path)
    assert set(found) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == DTYPES[dtype]
        assert torch.equal(found[name], tensor.to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_read_what_the_package_writes(dtype: str, stretch: None, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {name: tensor.to(DTYPES[dtype]).contiguous() for name, tensor in TENSORS.items()}
    save_file(tensors, path)
    entries = read_header(path)
    assert set(entries) == set(TENSORS)
    for name, tensor in tensors.items():
        target = torch.full(tensor.shape, 7.0)
        read_into(entries[name], target)
        assert torch.equal(target, tensor.float())


def test_reading_fills_strided_targets(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    kernel = torch.randn(6, 3, 2, 2)
    save_file({"kernel": kernel}, path)
    rows = torch.zeros(6, 12)
    read_into(read_header(path)["kernel"], rows.view(6, 2, 2, 3).permute(0, 3, 1, 2))
    assert torch.equal(rows.view(6, 2, 2, 3), kernel.permute(0, 2, 3, 1))


def test_files_are_cut_by_size() -> None:
    plan = [Planned(str(i), "fp32", (size,)) for i, size in enumerate((10, 10, 10, 100, 5))]
    assert [[t.name for t in file] for file in cut_into_files(plan, 80)] == [["0", "1"], ["2"], ["3"], ["4"]]
    assert len(cut_into_files(plan, 10_000)) == 1


def test_a_file_that_was_not_written_to_its_end_is_an_error(tmp_path: Path) -> None:
    plan = [Planned("a", "fp32", (2,)), Planned("b", "fp32", (2,))]
    with pytest.raises(ValueError, match="1 planned"), FileWriter(tmp_path / "x", plan) as file:
        file.write("a", torch.zeros(2))
    with pytest.raises(ValueError, match="was planned"), FileWriter(tmp_path / "y", plan) as file:
        file.write("b", torch.zeros(2))


def test_values_that_fp16_cannot_hold(tmp_path: Path) -> None:
    values = torch.tensor([1.0, float("inf"), 65504.0])
    with FileWriter(tmp_path / "x", [Planned("a", "fp16", (3,))]) as file:
        file.write("a", values)
    values[0] = 70_000
    with (
        pytest.raises(UserError, match="a holds values that fp16 has no room for"),
        FileWriter(tmp_path / "y", [Planned("a", "fp16", (3,))]) as file,
    ):
        file.write("a", values)


def header(content: object) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no safetensors file"),
        (b"PK\x03\x04 something else entirely", "no safetensors file"),
        (header([1, 2]), "no safetensors file"),
        (header({"w": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}) + b"8" * 8, "w has the dtype F64"),
        (header({"w": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}) + b"8", "w has the dtype I8"),
        (header({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}) + b"8" * 8, "does not fit its 8 bytes"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"8" * 7, "cut short"),
    ],
)
def test_damaged_files_are_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_header(path)
