"""Checkpoints that are written behind the training: what is in them, how long training waits, what goes wrong."""

import os
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training import saving
from megatron_pixel.training.canonical import TENSORS, open_source
from megatron_pixel.training.run import Run
from tests.distributed.harness import ROOT, run_ranks
from tests.distributed.tiny_run import lines, tiny, train

WORDS = """
    --training.steps=4 --checkpoint.every=2 --training.micro_batch_rows=2 --evaluation.rows=0
    --deepspeed_config=ds_configs/zero2.json
""".split()
BEHIND = [*WORDS, "--checkpoint.asynchronous=true"]
PATIENCE = 30.0


@contextmanager
def writing(before: Callable[[Path], object]) -> Iterator[None]:
    """``before`` is called with the path of each file that a checkpoint is about to write."""
    original = saving.torch.save

    def save(content: Any, path: Any, **options: Any) -> None:
        before(Path(path))
        original(content, path, **options)

    saving.torch.save = save
    try:
        yield
    finally:
        saving.torch.save = original


def behind(folder: Path, here: Mesh) -> dict[str, Any]:
    """The files of step 2 are held back until step 3 is done; what ``checkpoints`` holds after each step and save."""
    released, seen, waited = threading.Event(), {}, []

    def hold(path: Path) -> None:
        if "step-00000002" in str(path):
            waited.append(released.wait(PATIENCE))

    class Watched(Run):
        def _record(self, record: Any, last: bool) -> None:
            super()._record(record, last)
            seen[f"step {record['step']}"] = names(folder)
            if record["step"] == 3:
                dist.barrier()  # no rank has published before the other one has looked
                released.set()

        def _save(self, step: int) -> None:
            super()._save(step)
            seen[f"save {step}"] = names(folder)

    with writing(hold), Watched(tiny(folder, *BEHIND), here) as run:
        run.train()
    return {"seen": seen, "waited": waited}


def names(folder: Path) -> list[str]:
    return [path.name for _, path in reversed(files.list_checkpoints(folder / "checkpoints"))]


def failing(folder: Path, here: Mesh, words: list[str]) -> dict[str, Any]:
    """Rank 1 cannot write its files of step 4; a checkpoint of step 2 is there. Six steps are asked for."""

    def refuse(path: Path) -> None:
        if "step-00000004" in str(path) and here.rank == 1:
            raise RuntimeError("the disk is full")

    with writing(refuse):
        try:
            train(tiny(folder, *words, "--training.steps=6"), here)
        except UserError as error:
            return {"error": str(error), "names": names(folder)}
    return {"error": None, "names": names(folder)}


def everything(folder: str) -> dict[str, Any]:
    silence_libraries()
    root = Path(folder)
    with mesh(tiny(folder).parallel) as here:
        return {
            "foreground": train(tiny(root / "foreground", *WORDS), here),
            "behind": behind(root / "behind", here),
            "failing": failing(root / "failing", here, WORDS),
            "failing behind": failing(root / "failing-behind", here, BEHIND),
        }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    root = tmp_path_factory.mktemp("saving")
    return root, run_ranks(everything, 2, (str(root),), timeout=180)


def test_training_goes_on_while_a_checkpoint_is_written(found: tuple[Path, list[dict[str, Any]]]) -> None:
    for result in found[1]:
        assert result["behind"]["waited"]
        assert all(result["behind"]["waited"]), "step 3 did not come before the files of step 2 were written"
        assert result["behind"]["seen"]["save 2"] == []
        assert result["behind"]["seen"]["step 3"] == []


def test_one_save_is_under_way_at_a_time(found: tuple[Path, list[dict[str, Any]]]) -> None:
    for result in found[1]:
        assert result["behind"]["seen"]["save 4"][:1] == ["step-00000002"]
    assert names(found[0] / "behind") == ["step-00000002", "step-00000004"], "the run's end waits for the last one"


@pytest.mark.parametrize("step", [2, 4])
def test_a_checkpoint_holds_its_step_and_nothing_later(found: tuple[Path, list[dict[str, Any]]], step: int) -> None:
    root, _ = found
    one, other = (root / name / "checkpoints" / files.folder_name(step) for name in ("foreground", "behind"))
    table, problem = files.manifest_problem(other)
    assert problem is None
    assert files.content_problem(other, table, table) is None
    assert sorted(table) == files.files_below(other) == files.files_below(one)
    a, b = open_source(one), open_source(other)
    for name in a.shapes:
        for what in TENSORS:
            assert torch.equal(a.read(name, what), b.read(name, what)), (name, what)
    (weights,) = (torch.load(f / "mp_rank_00_model_states.pt", weights_only=False)["module"] for f in [other])
    for name, weight in weights.items():
        assert torch.equal(weight, a.read(name, "fp32")), name


def test_the_stall_is_reported(found: tuple[Path, list[dict[str, Any]]]) -> None:
    for name in ("foreground", "behind"):
        stalls = [line["checkpoint_stall_seconds"] or 0.0 for line in lines(found[0] / name)]
        assert [stall > 0 for stall in stalls] == [False, False, True, False], name
        assert "training stood still for" in (found[0] / name / "logs" / "pretrain.log").read_text()


@pytest.mark.parametrize("name", ["failing", "failing behind"])
def test_a_save_that_fails_on_one_rank_ends_all_and_leaves_what_stood(
    found: tuple[Path, list[dict[str, Any]]], name: str
) -> None:
    for result in found[1]:
        assert "the checkpoint of step 4 could not be written" in result[name]["error"]
        assert result[name]["error"].endswith("rank 1: the disk is full")
        assert result[name]["names"] == ["step-00000002"]
    folder = name.replace(" ", "-")
    steps = [line["step"] for line in lines(found[0] / folder)]
    assert steps == ([1, 2, 3, 4] if name == "failing" else [1, 2, 3, 4, 5, 6]), "behind, it shows at the next save"


KILLED = """
import os, signal, sys
from megatron_pixel.parallel.quiet import silence_libraries
silence_libraries()
from megatron_pixel.parallel.mesh import mesh
from tests.distributed.test_saving import BEHIND, writing
from tests.distributed.tiny_run import tiny, train

def kill(path):
    if "step-00000004" in str(path) and "optim" in str(path):
        path.write_bytes(b"the beginning of a file")
        os.kill(os.getpid(), signal.SIGKILL)

config = tiny(sys.argv[1], *BEHIND, "--training.steps=6")
with mesh(config.parallel) as here, writing(kill):
    train(config, here)
"""


def test_a_kill_in_the_middle_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert names(tmp_path) == ["step-00000002"]
    folder = tmp_path / "checkpoints" / "step-00000002"
    table, problem = files.manifest_problem(folder)
    assert problem is None
    assert files.content_problem(folder, table, table) is None
    assert (tmp_path / "checkpoints.writing" / "step-00000004").is_dir(), "the kill came too early or too late"


def test_a_snapshot_shares_nothing() -> None:
    weights = OrderedDict(a=torch.ones(3))
    weights._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    content = {"module": weights, "list": [torch.zeros(2), (1, torch.ones(1))], "text": "x"}
    copied = saving.snapshot(content)
    weights["a"] += 1
    content["list"][0] += 1  # type: ignore[index]
    weights["b"] = torch.ones(1)
    assert copied["module"]._metadata == {"": {"version": 1}}
    assert list(copied["module"]) == ["a"]
    assert copied["module"]["a"].tolist() == [1, 1, 1]
    assert copied["list"][0].tolist() == [0, 0]
    assert copied["list"][1][0] == 1
    assert copied["text"] == "x"
