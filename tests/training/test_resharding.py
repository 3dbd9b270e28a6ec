"""The canonical form from files made by hand: what each kind of optimizer file means, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.sharding import COLUMNS, GATE_AND_UP, MOMENTS, ROWS, WHOLE, Piece, Split
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training import resharding
from megatron_pixel.training.canonical import CANONICAL, TENSORS, load_weights, open_source, pieces_file
from megatron_pixel.training.resharding import reshard

ROOT = Path(__file__).resolve().parents[2]
SPLIT_OF = {"0.tokens": ROWS, "1.fc1": GATE_AND_UP, "1.fc2": COLUMNS, "2.norm": WHOLE}
SHAPES = {"0.tokens": (8, 6), "1.fc1": (8, 6), "1.fc2": (6, 8), "2.norm": (6,)}


def full_tensors(scale: int = 1) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    shapes = {name: (shape[0] * scale, *shape[1:]) for name, shape in SHAPES.items()}
    return {what: {n: torch.rand(s, generator=generator) for n, s in shapes.items()} for what in TENSORS}


def write_checkpoint(
    root: Path, full: dict[str, dict[str, torch.Tensor]], tensor: int, data: int, kind: str, steps: int = 3
) -> Path:
    """What ``tensor`` x ``data`` ranks would write: a tensor rank's shares in a flat buffer, cut in ``data`` pieces."""
    folder = files.writing_area(root) / "step-00000003"
    folder.mkdir(parents=True)
    names = list(full["fp32"])
    for rank in range(tensor * data):
        data_rank, tensor_rank = divmod(rank, tensor)
        flat = {
            what: torch.cat([SPLIT_OF[n].take(full[what][n], tensor, tensor_rank).flatten() for n in names])
            for what in TENSORS
        }
        length = -(-len(flat["fp32"]) // data)
        mine = {what: values[data_rank * length : (data_rank + 1) * length].clone() for what, values in flat.items()}
        moments = {0: {what: mine[what] for what in MOMENTS}} if steps else {}
        optimizer = {"state": moments, "param_groups": []}
        content: dict[str, Any] = {"single_partition_of_fp32_groups": [mine["fp32"]], "base_optimizer_state": optimizer}
        if kind == "stage3":
            content = {"fp32_flat_groups": [mine["fp32"]], "optimizer_state_dict": optimizer}
        torch.save({"optimizer_state_dict": content}, folder / f"optimizer-{rank}.pt")
        write_pieces(folder, rank, kind, tensor_rank, tensor, data_rank * length, length, full["fp32"])
    state = {"form": "partitioned", "step": 3, "optimizer_steps": steps, "config": {}}
    files.write_durably(folder / files.STATE, json.dumps(state))
    (folder / "config.yaml").write_text("run: {}\n")
    return seal(folder, root)


def write_pieces(
    folder: Path, rank: int, kind: str, tensor_rank: int, tensor: int, start: int, length: int, full: dict[str, Any]
) -> None:
    parameters, position = {}, 0
    for name, values in full.items():
        split: Split = SPLIT_OF[name]
        count = values.numel() // (1 if split.dim is None else tensor)
        low, high = max(position, start), min(position + count, start + length)
        piece = Piece(low - position, high - low, 0, low - start) if low < high else None
        parameters[name] = {
            "shape": list(values.shape),
            "split": asdict(split),
            "piece": None if piece is None else asdict(piece),
        }
        position += count
    told = {
        "rank": rank,
        "file": f"optimizer-{rank}.pt",
        "kind": kind,
        "tensor_rank": tensor_rank,
        "tensor_size": tensor,
        "parameters": parameters,
    }
    files.write_durably(folder / pieces_file(rank), json.dumps(told))


def seal(folder: Path, root: Path) -> Path:
    files.write_manifest(folder, 3, files.describe_files(folder, files.files_below(folder)))
    return files.publish(folder, root)


@pytest.mark.parametrize("kind", ["stage12", "bf16", "stage3"])
@pytest.mark.parametrize(("tensor", "data"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_full_tensors_of_every_cut(tmp_path: Path, kind: str, tensor: int, data: int) -> None:
    full = full_tensors()
    source = open_source(write_checkpoint(tmp_path / "checkpoints", full, tensor, data, kind))
    for what in TENSORS:
        for name, expected in full[what].items():
            assert torch.equal(source.read(name, what), expected), (what, name)


def test_before_the_first_step_moments_are_zero(tmp_path: Path) -> None:
    full = full_tensors()
    source = open_source(write_checkpoint(tmp_path / "checkpoints", full, 2, 1, "stage12", steps=0))
    assert torch.equal(source.read("1.fc1", "fp32"), full["fp32"]["1.fc1"])
    assert not source.read("1.fc1", "exp_avg").any()


def test_the_canonical_form_holds_the_same_tensors(tmp_path: Path) -> None:
    full = full_tensors()
    checkpoint = write_checkpoint(tmp_path / "checkpoints", full, 2, 2, "stage12")
    seen: list[tuple[str, int, int]] = []
    folder = reshard(checkpoint, tmp_path / "out", lambda *progress: seen.append(progress))
    assert folder == tmp_path / "out" / "step-00000003"
    table, problem = files.manifest_problem(folder)
    assert problem is None
    assert files.content_problem(folder, table, table) is None
    assert set(table) == set(files.files_below(folder))
    source = open_source(folder)
    assert (source.steps, source.shapes) == (3, SHAPES)
    for what in TENSORS:
        for name, expected in full[what].items():
            assert torch.equal(source.read(name, what), expected)
            stored = torch.load(folder / "zero" / name / f"{what}.pt", weights_only=True)["param"]
            assert torch.equal(stored, expected)
    assert json.loads((folder / files.STATE).read_text())["form"] == CANONICAL
    total = 4 * 3 * sum(tensor.numel() for tensor in full["fp32"].values())
    assert seen[-1] == ("writing", total, total)
    assert [path.name for path in tmp_path.iterdir()].count("out.writing") == 0


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: os.truncate(f / "optimizer-1.pt", 900), "optimizer-1.pt has 900 bytes instead of"),
        (lambda f: flip(f / "optimizer-0.pt"), "optimizer-0.pt does not match its sha256"),
        (lambda f: (f / "optimizer-1.pt").unlink(), "optimizer-1.pt is missing"),
        (lambda f: (f / pieces_file(1)).unlink(), "pieces-00001.json is missing"),
        (lambda f: (f / "manifest.json").unlink(), "it was never finished"),
        (lambda f: set_version(f, 3), "its format version is 3, of a newer program"),
        (lambda f: set_version(f, 1), "its format version is 1, of an older program"),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_nothing_written(
    tmp_path: Path, damage: Callable[[Path], object], reason: str
) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", full_tensors(), 2, 1, "stage12")
    damage(checkpoint)
    with pytest.raises(UserError, match="cannot be used") as error:
        reshard(checkpoint, tmp_path / "out")
    assert reason in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def set_version(folder: Path, version: int) -> None:
    content = json.loads((folder / files.MANIFEST).read_text())
    (folder / files.MANIFEST).write_text(json.dumps(content | {"format_version": version}))


def test_a_rank_that_nobody_lists_is_missed(tmp_path: Path) -> None:
    """A manifest that does not know of a rank's files either: the count of values tells."""
    checkpoint = write_checkpoint(tmp_path / "checkpoints", full_tensors(), 1, 2, "stage3")
    for name in ("manifest.json", "optimizer-1.pt", pieces_file(1)):
        (checkpoint / name).unlink()
    shutil.move(checkpoint, tmp_path / "step-00000003")
    checkpoint = seal(tmp_path / "step-00000003", tmp_path / "again")
    with pytest.raises(UserError, match=r"holds [\d,]+ of the 48 values of 1.fc"):
        reshard(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", full_tensors(), 1, 1, "stage12")
    (tmp_path / "out" / checkpoint.name).mkdir(parents=True)
    with pytest.raises(UserError, match="is there already; nothing was written"):
        reshard(checkpoint, tmp_path / "out")
    assert list((tmp_path / "out" / checkpoint.name).iterdir()) == []
    folder = reshard(checkpoint, tmp_path / "other")
    with pytest.raises(UserError, match="is in canonical form already"):
        reshard(folder, tmp_path / "third")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", full_tensors(), 1, 1, "stage12")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resharding.files, "write_manifest", refuse)
    with pytest.raises(UserError, match=r"could not be written: .*No space left"):
        reshard(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert list(files.writing_area(tmp_path / "out").iterdir()) == []


def test_another_architecture_is_named(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoints", full_tensors(), 1, 1, "stage12")

    class Other(torch.nn.Module):
        def named_parameters(self, *_: Any, **__: Any) -> Any:
            shapes = SHAPES | {"1.fc1": (8, 4), "3.more": (2,)}
            del shapes["2.norm"]
            return iter((name, torch.nn.Parameter(torch.zeros(shape))) for name, shape in shapes.items())

    with pytest.raises(UserError, match="another architecture") as error:
        load_weights(Other(), open_source(checkpoint))
    assert "3.more: not in the checkpoint" in str(error.value)
    assert "2.norm: not in the run's config.yaml" in str(error.value)
    assert "1.fc1: [8, 6] in the checkpoint, [8, 4] in the run's config.yaml" in str(error.value)


def convert(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "megatron_pixel/convert.py", "reshard", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)


def test_the_program_takes_a_run_for_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "run" / "checkpoints", full_tensors(), 1, 2, "stage12")
    torn = checkpoint.with_name("step-00000009")
    torn.mkdir()
    done = convert(tmp_path / "run", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{checkpoint} -> {tmp_path / 'out' / 'step-00000003'}\n"
    assert "checking" in done.stderr
    assert "MB/s" in done.stderr
    assert open_source(tmp_path / "out" / "step-00000003").shapes == SHAPES
    done = convert(tmp_path / "run", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'out' / 'step-00000003'} is there already; nothing was written\n"


MEASURE = """
import sys
from pathlib import Path
import torch
from megatron_pixel.training.resharding import reshard

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

seen = [private()]
original = torch.save

def save(*arguments):
    original(*arguments)
    seen.append(private())

torch.save = save
reshard(Path(sys.argv[1]), Path(sys.argv[2]))
print(max(seen) - seen[0])
"""
"""A process of its own: this one has memory to spare from what it did before. Pages of mapped files do not count."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell private memory")
def test_memory_is_that_of_a_tensor(tmp_path: Path) -> None:
    full = full_tensors(scale=100_000)
    checkpoint = write_checkpoint(tmp_path / "checkpoints", full, 2, 2, "stage12")
    command = [sys.executable, "-c", MEASURE, checkpoint, tmp_path / "out"]
    # Blocks that are freed go back to the system at once instead of staying with the process.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    taken, largest = int(done.stdout), max(tensor.nbytes for tensor in full["fp32"].values())
    total = 3 * sum(tensor.nbytes for tensor in full["fp32"].values())
    print(f"{taken / 1e6:.1f} MB for tensors of at most {largest / 1e6:.1f} MB, {total / 1e6:.1f} MB in all")
    # The tensor and a share of it.
    assert largest / 2 < taken < 2.5 * largest < total / 2
