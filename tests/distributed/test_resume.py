"""Stopping and going on: bitwise the curve of a run that never stopped, from the newest whole checkpoint only."""

import contextlib
import io
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.mixture import MixtureReader, open_training
from megatron_pixel.data.packing import Content, PackedWindow, forget_plan, read_facts, write_plan
from megatron_pixel.data.rows import Origin
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training import run as run_module
from megatron_pixel.training.canonical import TENSORS, open_source
from megatron_pixel.training.feeding import Prepared
from megatron_pixel.training.loop import Trainer
from tests.distributed.harness import run_ranks, side_by_side
from tests.distributed.packed_data import make_packed
from tests.distributed.tiny_run import Line, lines, tiny, train

PROCESSES = (1, 2)
STEPS = ["--training.steps=6", "--training.micro_batch_rows=2"]
TIMES = (
    "time",
    "seconds",
    "data_seconds",
    "forward_seconds",
    "backward_seconds",
    "optimizer_seconds",
    "pipeline_seconds",
    "evaluation_seconds",
    "tokens_per_second",
    "patches_per_second",
    "tflops_per_device",
    "memory_gb",
    "checkpoint_stall_seconds",
)


def told(config: Any, here: Mesh) -> str:
    """What a run prints, and the error that ends it."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            train(config, here)
        except UserError as error:
            print(f"error: {error}")
    return output.getvalue()


def curve(folder: Path) -> list[Line]:
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines(folder)]


class rows_to:  # noqa: N801 (reads as the function that it would be)
    """Collects the rows of each step, of all ranks and in order."""

    def __init__(self, rows: dict[int, list[Origin]]) -> None:
        self.rows, self.original = rows, Trainer.step

    def __enter__(self) -> None:
        def step(trainer: Trainer, number: int, batches: Sequence[Prepared]) -> Any:
            mine = [row for item in batches for row in item.batch.rows.rows]
            self.rows[number] = sorted(row for part in trainer.mesh.gather(mine) for row in part)
            return self.original(trainer, number, batches)

        Trainer.step = step  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Trainer.step = self.original  # type: ignore[method-assign]


def exact_resume(root: Path, here: Mesh, *more: str) -> dict[str, Any]:
    """8 steps; 4, then 4 more; from there also the last 4 in another layout and other micro-batches."""
    words = [*STEPS, "--training.steps=8", "--checkpoint.every=4", *more]
    other = ["--deepspeed_config=ds_configs/zero3.json", "--training.micro_batch_rows=1", "--evaluation.rows=0"]
    rows: dict[str, dict[int, list[Origin]]] = {"whole": {}, "parts": {}, "other": {}}
    with rows_to(rows["whole"]):
        train(tiny(root / "whole", *words), here)
    torch.manual_seed(here.rank + 99)  # a resumed process starts with random states of its own
    with rows_to(rows["parts"]):
        train(tiny(root / "parts", *words, "--training.stop_after=4"), here)
        torch.manual_seed(here.rank + 98)
        stopped = root / "parts" / "checkpoints" / "step-00000004"
        train(tiny(root / "parts", *words), here)
    with rows_to(rows["other"]):
        train(tiny(root / "other", *words, *other, f"--checkpoint.resume={stopped}"), here)
    here_folders = {
        name: sorted(p.name for p in (root / name / "checkpoints").iterdir()) for name in ("whole", "parts")
    }
    return {"whole": curve(root / "whole"), "parts": curve(root / "parts"), "checkpoints": here_folders, "rows": rows}


def damaged_checkpoints(root: Path, here: Mesh) -> dict[str, str]:
    """What a run of two whole checkpoints says when it resumes after each kind of damage to the newer one."""
    words = [*STEPS, "--training.stop_after=4", "--checkpoint.every=2"]
    train(tiny(root / "sound", *words), here)
    shard = f"zero_pp_rank_{here.world_size - 1}_mp_rank_00_optim_states.pt"
    damages: dict[str, Callable[[Path], object]] = {
        "truncated": lambda folder: os.truncate(folder / shard, 1000),
        "flipped": lambda folder: flip(folder / "mp_rank_00_model_states.pt"),
        "missing": lambda folder: (folder / shard).unlink(),
        "unfinished": lambda folder: (folder / "manifest.json").unlink(),
        "leftover": lambda folder: folder.rename(folder.with_name(".tmp-step-00000004")),
    }
    said = {}
    for name, damage in damages.items():
        if here.is_main:
            shutil.copytree(root / "sound", root / name)
            damage(root / name / "checkpoints" / "step-00000004")
        torch.distributed.barrier()
        said[name] = told(tiny(root / name, *STEPS, "--training.stop_after=5"), here)
    if here.is_main:
        shutil.copytree(root / "missing", root / "none-whole")
        for folder in (root / "none-whole" / "checkpoints").iterdir():
            (folder / "state.json").unlink()
    torch.distributed.barrier()
    said["none whole"] = told(tiny(root / "none-whole", *STEPS), here)
    said["begun anew"] = told(tiny(root / "none-whole", *STEPS, "--checkpoint.resume=none"), here)
    return said


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def on_other_data(config: Any, here: Mesh) -> str:
    """The run meets datasets that give other numbers of rows."""
    original = MixtureReader.consumed
    MixtureReader.consumed = lambda self, steps: {"text:synthetic": 8 * steps - 1}  # type: ignore[method-assign]
    try:
        return told(config, here)
    finally:
        MixtureReader.consumed = original  # type: ignore[method-assign]


def refusals(root: Path, here: Mesh) -> dict[str, str]:
    words = [*STEPS, "--training.stop_after=2"]
    train(tiny(root, *words), here)
    go_on = [*STEPS, "--training.stop_after=3"]
    step_2 = root / "checkpoints" / "step-00000002"
    return {
        "lr": told(tiny(root, *go_on, "--optimizer.lr=0.5", "--training.seed=7"), here),
        "zero": told(
            tiny(root / "zero", *go_on, "--deepspeed_config=ds_configs/zero3.json", f"--checkpoint.resume={step_2}"),
            here,
        ),
        "folder": told(tiny(root, *go_on, "--checkpoint.resume=/nowhere"), here),
        "elsewhere": told(tiny(root / "copy", *go_on, f"--checkpoint.resume={step_2}"), here),
        "data": on_other_data(tiny(root, *go_on), here),
        "done": told(tiny(root, *words), here),
        "free": told(tiny(root, *go_on, "--training.micro_batch_rows=1"), here),
        "allowed": told(tiny(root, *STEPS, "--optimizer.lr=0.5", "--checkpoint.allow_changes=optimizer.lr"), here),
    }


def signalled(root: Path, here: Mesh) -> dict[str, Any]:
    """A signal to the last rank alone, in the middle of step 2, ends all of them after that step."""
    original = run_module.Run._record

    def record_and_signal(self: Any, record: Any, last: bool) -> None:
        original(self, record, last)
        if record["step"] == 1 and here.rank == here.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    run_module.Run._record = record_and_signal  # type: ignore[method-assign]
    try:
        said = told(tiny(root, *STEPS), here)
    finally:
        run_module.Run._record = original  # type: ignore[method-assign]
    return {"said": said, "steps": [line["step"] for line in lines(root)], "then": told(tiny(root, *STEPS), here)}


def not_finite(root: Path, here: Mesh) -> str:
    """A model that is broken from the third step on."""
    original = run_module.Run._record

    def record_and_break(self: Any, record: Any, last: bool) -> None:
        original(self, record, last)
        if record["step"] == 2 and here.rank == here.world_size - 1:
            with torch.no_grad():
                next(self._engine.module.parameters()).fill_(float("nan"))

    run_module.Run._record = record_and_break  # type: ignore[method-assign]
    try:
        return told(tiny(root, *STEPS, "--training.steps=20"), here)
    finally:
        run_module.Run._record = original  # type: ignore[method-assign]


def packed_anew(root: Path, here: Mesh, words: Sequence[str]) -> dict[str, str]:
    """A packed run that resumes where a plan was made anew: with other rows, for rows of another length, not at all."""
    step_4 = root / "parts" / "checkpoints" / "step-00000004"
    plan = Path(next(word for word in words if word.startswith("--data.pairs=")).partition("=")[2] + ".train.packed32")
    kept = {path: path.read_bytes() for ending in ("json", "bin", "idx") for path in [Path(f"{plan}.{ending}")]}
    go_on = tiny(root / "anew", *STEPS, "--training.steps=8", *words, f"--checkpoint.resume={step_4}")
    facts = read_facts(str(plan))
    alone = PackedWindow(np.arange(facts.pages, dtype=np.uint16), np.ones(facts.pages, np.int32), facts.positions)
    said = {}
    write_plan(str(plan), Content(facts.fingerprint, facts.pages), facts.seq_length, [alone])
    said["other rows"] = told(go_on, here)
    write_plan(str(plan), Content(facts.fingerprint, facts.pages), 16, [alone])
    said["other length"] = told(go_on, here)
    forget_plan(str(plan))
    said["no plan"] = told(go_on, here)
    for path, content in kept.items():
        path.write_bytes(content)
    said["the same plan"] = told(go_on, here)
    apart = tiny(root / "apart", *words, "--data.packing=none", f"--checkpoint.resume={step_4}")
    return said | {"not packed": told(apart, here)}


def everything(folder: str, packed: Sequence[str]) -> dict[str, Any]:
    silence_libraries()
    root = Path(folder)
    with mesh(tiny(folder).parallel) as here:
        return {
            "fp32": exact_resume(root / "fp32", here, "--training.precision=fp32"),
            "bf16": exact_resume(root / "bf16", here, "--training.precision=bf16"),
            "packed": exact_resume(root / "packed", here, *packed),
            "packed anew": packed_anew(root / "packed", here, packed) if here.world_size == 1 else {},
            "damaged": damaged_checkpoints(root / "damaged", here),
            "refused": refusals(root / "refused", here),
            "signalled": signalled(root / "signalled", here),
            "not finite": not_finite(root / "not-finite", here),
        }


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words of a run on packed pages, strings, pairs and text."""
    return make_packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def both(packed: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What rank 0 of each count of processes found; the counts side by side."""
    folders = [tmp_path_factory.mktemp("resume") for _ in PROCESSES]
    work = [(str(folder), packed) for folder in folders]
    starts = zip(PROCESSES, work, strict=True)
    ranks = side_by_side(*(partial(run_ranks, everything, count, args, timeout=300) for count, args in starts))
    return [first | {"folder": folder} for (first, *_), folder in zip(ranks, folders, strict=True)]


@pytest.fixture(params=PROCESSES, ids=["1-process", "2-processes"])
def found(request: pytest.FixtureRequest, both: list[dict[str, Any]]) -> dict[str, Any]:
    return both[PROCESSES.index(request.param)]


RUNS = ["fp32", "bf16", "packed"]


@pytest.mark.parametrize("run", RUNS)
def test_four_steps_and_four_more_are_eight(found: dict[str, Any], run: str) -> None:
    result = found[run]
    assert [line["step"] for line in result["whole"]] == [*range(1, 9), 8]
    assert result["parts"] == result["whole"]
    assert result["checkpoints"]["whole"] == ["step-00000004", "step-00000008"], "keep is 2"
    assert result["checkpoints"]["parts"] == ["step-00000004", "step-00000008"]


@pytest.mark.parametrize("run", RUNS)
def test_weights_and_moments_are_bitwise_those_of_a_run_that_never_stopped(found: dict[str, Any], run: str) -> None:
    root = found["folder"] / run
    four, whole, parts = (
        open_source(root / name / "checkpoints" / f"step-{step:08d}")
        for name, step in (("parts", 4), ("whole", 8), ("parts", 8))
    )
    for name in whole.shapes:
        for what in TENSORS:
            expected = whole.read(name, what)
            assert torch.equal(parts.read(name, what), expected), (name, what)
            assert not torch.equal(four.read(name, what), expected), "the last four steps changed nothing"


@pytest.mark.parametrize("run", RUNS)
def test_a_resumed_run_reads_the_same_rows_in_any_layout(found: dict[str, Any], packed: list[str], run: str) -> None:
    """Those that one process reads which never stops, worked out here without a run."""
    config = tiny("unused", *STEPS, "--training.steps=8", *(packed if run == "packed" else []))
    reader = open_training(config.data, config.model, config.pair, config.training, dp_size=1)
    one = {
        step + 1: sorted(
            row
            for index in range(reader.num_micro_batches(1))
            for row in reader.micro_batch(step, index, dp_rank=0, dp_size=1).rows
        )
        for step in range(8)
    }
    rows = found[run]["rows"]
    assert rows["whole"] == one
    assert rows["parts"] == one
    assert rows["other"] == {step: one[step] for step in range(5, 9)}


@pytest.mark.parametrize("found", [1], indirect=True, ids=["1-process"])
def test_a_resume_with_another_packing_plan_is_refused(found: dict[str, Any]) -> None:
    said = found["packed anew"]
    assert re.fullmatch(
        r"(?s).*error: \S+ had taken other rows by step 4 \((16) of pair:pairs@(\w+) packed (\w+)\) than this run's "
        r"data would have given \(\1 of pair:pairs@\2 packed (?!\3)\w+\): the datasets are not those that the "
        r"checkpoint was trained on, or were packed anew\n",
        said["other rows"],
    ), said["other rows"]
    again = r"python data_tools/pack\.py \S+/pairs --seq-length 32 makes"
    assert re.fullmatch(rf"error: \S+ is a plan for rows of 16 positions: {again} another\n", said["other length"])
    assert re.fullmatch(rf"error: data\.packing: .* which does not exist: {again} it\n", said["no plan"])
    assert "done: 8 steps" in said["the same plan"]
    assert "data.packing: documents in the checkpoint, none now" in said["not packed"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("truncated", r"optim_states\.pt has 1,000 bytes instead of"),
        ("flipped", r"mp_rank_00_model_states\.pt does not match its sha256"),
        ("missing", r"optim_states\.pt is missing"),
        ("unfinished", r"it has no manifest\.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(found: dict[str, Any], damage: str, reason: str) -> None:
    said = found["damaged"][damage]
    assert "step-00000002, 2 of 6 steps done" in said
    assert re.search(rf"passed over step-00000004: .*{reason}", said), said
    assert "stopped by training.stop_after after step 5 of 6" in said
    folder = found["folder"] / "damaged" / damage
    assert [line["step"] for line in lines(folder)] == [1, 2, 3, 4, 5]
    assert curve(folder)[:4] == curve(found["folder"] / "damaged" / "sound")
    assert (folder / "checkpoints.aside-1" / "step-00000004").is_dir()


def test_leftovers_of_a_save_do_not_count(found: dict[str, Any]) -> None:
    assert "step-00000002, 2 of 6 steps done\nstep 3/6" in found["damaged"]["leftover"]


def test_only_broken_checkpoints_are_for_the_user_to_decide(found: dict[str, Any]) -> None:
    said = found["damaged"]["none whole"]
    assert said.startswith("error: no checkpoint in ")
    assert "step-00000005: state.json is missing" in said
    assert "step-00000002: state.json is missing" in said
    anew = found["damaged"]["begun anew"]
    assert "step 1 of 6, no checkpoint" in anew
    assert "done: 6 steps" in anew


def test_changes_at_resume(found: dict[str, Any]) -> None:
    said = found["refused"]
    assert said["lr"].startswith("error: ")
    assert "optimizer.lr: 0.001 in the checkpoint, 0.5 now" in said["lr"]
    assert "training.seed: 1234 in the checkpoint, 7 now" in said["lr"]
    assert "from another layout (data " in said["zero"]
    assert "ZeRO 1); random states drawn anew" in said["zero"]
    assert "stopped by training.stop_after after step 3" in said["zero"]
    assert said["folder"] == "error: checkpoint.resume: there is no folder /nowhere\n"
    assert "the datasets are not those that the checkpoint was trained on" in said["data"]
    assert "nothing to do: step 2 of 6 is done" in said["done"]
    assert "changed optimizer.lr: 0.001 -> 0.5" in said["allowed"]
    assert "stopped by training.stop_after after step 3" in said["elsewhere"]
    assert "changed" not in said["free"]
    assert "stopped by training.stop_after after step 3" in said["free"]


def test_a_signal_ends_all_ranks_after_the_step(found: dict[str, Any]) -> None:
    result = found["signalled"]
    assert result["steps"] == [1, 2]
    assert "saved" in result["said"]
    assert "stopped by SIGTERM after step 2 of 6; to continue, start the same command again" in result["said"]
    assert "2 of 6 steps done" in result["then"]
    assert "done: 6 steps" in result["then"]


def test_losses_that_are_no_numbers_end_the_run(found: dict[str, Any]) -> None:
    said = found["not finite"]
    assert "step 3 skipped: the loss is not finite; rows: " in said
    assert re.search(
        r"error: step 12: 10 steps in a row had to be skipped.* rows of the last: .*text:synthetic \d+", said
    )
    written = lines(found["folder"] / "not-finite")
    assert [line["loss"] is None for line in written[:4]] == [False, False, True, True]
    assert [line["skipped_steps"] for line in written[:4]] == [0, 0, 1, 2]
    assert "error" not in said.partition("step 3")[0]
