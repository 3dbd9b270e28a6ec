"""Settings that are ``auto``: the fastest that fits, told with its reason; what it asks for and refuses."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launcher.submit import main as submit
from megatron_pixel.config import RunConfig, UserError, load_config, to_dict
from megatron_pixel.config.layers import name_layers, parse_layers
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.planning import choice
from megatron_pixel.planning.choice import ALIKE, choose, choose_here
from megatron_pixel.planning.command import dry_run
from megatron_pixel.planning.devices import DEVICES, device_here
from megatron_pixel.planning.plan import Plan
from megatron_pixel.planning.setting import Setting
from megatron_pixel.training.resume import changes
from megatron_pixel.training.run import Run
from tests.distributed.tiny_run import lines, tiny

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "megatron_pixel" / "config" / "recipes"
ROWS, LAYERS = "--training.micro_batch_rows", "--parallel.activation_checkpointing"
BOTH = [ROWS, "auto", LAYERS, "auto"]
A100 = DEVICES["a100"]


def config(*words: str, recipe: str = "dualgpt") -> RunConfig:
    return load_config(RECIPES / f"{recipe}.yaml", words)


def with_memory(gigabytes: float) -> Any:
    return replace(A100, memory=gigabytes * 1e9)


def every_setting(words: Sequence[str], count: int, devices: int, device: Any) -> Iterator[Plan]:
    """Written out: all micro-batches, all numbers of recomputed layers of ``count``, those that fit."""
    for rows in (2**power for power in range(12)):
        for layers in range(count + 1):
            given = config(*words, ROWS, str(rows), LAYERS, name_layers(range(1, layers + 1), count))
            try:
                plan = Plan(Setting.of(given, devices, min(devices, 8)), device)
            except UserError:
                break
            if plan.fits:
                yield plan


def test_memory_stays_free_where_more_of_it_gives_nothing() -> None:
    chosen = choose(config(*BOTH), 32, 8, A100)
    larger = Plan(Setting.of(config(ROWS, str(2 * chosen.plan.setting.rows)), 32, 8), A100)
    assert larger.fits
    assert 1 - ALIKE < choice._seconds(larger) / choice._seconds(chosen.plan) < 1


@pytest.mark.parametrize("memory", [3.2, 5])
def test_nothing_that_fits_is_faster(memory: float) -> None:
    device, small = with_memory(memory), ["--model.layers", "4"]
    chosen = choose(config(*small, *BOTH), 32, 8, device)
    assert chosen.plan.fits
    fitting = list(every_setting(small, 4, 32, device))
    best = min(choice._seconds(plan) for plan in fitting)
    assert choice._seconds(chosen.plan) <= (1 + ALIKE) * best
    # Of those that take as long, none asks for less memory with as few layers recomputed.
    alike = [plan for plan in fitting if choice._seconds(plan) <= (1 + ALIKE) * best]
    assert chosen.plan.setting.rows == min(plan.setting.rows for plan in alike)


def test_more_memory_is_never_slower_and_recomputes_no_more() -> None:
    given = config(*BOTH, recipe="dualgpt-7b")
    plans = [choose(given, 256, 8, with_memory(memory)).plan for memory in (34, 36, 38, 48, 80)]
    seconds = [choice._seconds(plan) for plan in plans]
    assert all(later <= (1 + ALIKE) * before for before, later in pairwise(seconds))
    assert plans[0].setting.recompute
    assert len({plan.setting.rows for plan in plans}) > 1


def test_layers_alone_are_as_few_as_fit() -> None:
    given = config(ROWS, "64", LAYERS, "auto")
    chosen = choose(given, 32, 8, with_memory(40)).plan
    count = len(chosen.setting.recompute)
    assert 0 < count < 24
    assert chosen.setting.recompute == frozenset(range(1, count + 1))
    one_less = replace(chosen, setting=replace(chosen.setting, recompute=frozenset(range(1, count))))
    assert chosen.fits
    assert not one_less.fits
    assert choose(given, 32, 8, with_memory(141)).plan.setting.recompute == frozenset()


def test_rows_alone_leave_the_layers_as_they_are() -> None:
    chosen = choose(config(ROWS, "auto", LAYERS, "1-6"), 32, 8, A100)
    assert chosen.config.parallel.activation_checkpointing == "1-6"
    assert chosen.plan.setting.recompute == frozenset(range(1, 7))
    assert choose(config(ROWS, "auto"), 32, 8, with_memory(12)).plan.fits
    assert to_dict(chosen.config) == to_dict(config(ROWS, str(chosen.plan.setting.rows), LAYERS, "1-6"))


def test_a_pipeline_wants_smaller_micro_batches() -> None:
    """Its bubble is (p - 1) / (m + p - 1); and its first ranks hold the most, so that they recompute the most."""
    alone, eight = (choose(config(*BOTH, *words), 32, 8, A100) for words in ([], ["--parallel.pipeline", "8"]))
    assert eight.plan.setting.rows < alone.plan.setting.rows
    tight = choose(config(ROWS, "8", LAYERS, "auto", "--parallel.pipeline", "4"), 32, 8, with_memory(8)).plan
    again = [sum(layer in tight.setting.recompute for layer in tight.setting.layers(pipe)) for pipe in range(4)]
    assert again == sorted(again, reverse=True)
    assert again[0] > again[-1]


def test_the_reason_names_the_bytes_and_the_next_larger() -> None:
    why = choose(config(*BOTH), 32, 8, with_memory(14)).why
    assert "can be used of A100 80 GB SXM (14 GB, 8% kept back)" in why
    taken, _, larger = why.partition("; ")
    assert taken.startswith("micro-batches of ")
    assert larger.startswith("micro-batches of ")
    assert "would need" in larger


def test_nothing_fits() -> None:
    given = config(*BOTH, recipe="dualgpt-7b")
    with pytest.raises(UserError, match=r"auto finds nothing that fits: micro-batches of 1 row, 32 of 32") as caught:
        choose(given, 2, 8, with_memory(4))
    assert "no layout of 2 such devices fits: take more of them" in str(caught.value)
    with pytest.raises(UserError, match="nearest that fits: --") as caught:
        choose(given, 64, 8, with_memory(24))
    nearest = str(caught.value).partition("nearest that fits: ")[2].split()
    assert choose(config(*BOTH, *nearest, recipe="dualgpt-7b"), 64, 8, with_memory(24)).plan.fits


def test_a_cpu_has_to_be_told_its_memory() -> None:
    given = config(*BOTH, recipe="dualgpt-debug")
    with pytest.raises(UserError, match=r"^training.micro_batch_rows: auto fills .* --parallel.device_memory_gb GB"):
        choose_here(given, 1, 1, None)
    found, why = choose_here(config(*BOTH, "--parallel.device_memory_gb", "2", recipe="dualgpt-debug"), 1, 1, None)
    assert isinstance(found.training.micro_batch_rows, int)
    assert "of a CPU (2 GB" in str(why)
    # A CUDA device tells it; what the user says counts before that.
    assert "of NVIDIA H100 80GB HBM3 (85 GB" in str(choose_here(given, 1, 1, ("NVIDIA H100 80GB HBM3", 85 * 10**9))[1])
    plain = config(recipe="dualgpt-debug")
    assert choose_here(plain, 1, 1, None) == (plain, None)


def test_devices_by_the_names_that_torch_has_for_them() -> None:
    for name, known in (
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
    ):
        device = device_here(name, 1e9)
        assert (device.bf16, device.memory, device.title) == (DEVICES[known].bf16, 1e9, name)
    assert device_here("Some GPU", 5.0).memory == 5.0
    assert not device_here(None, 5.0).cuda


def test_layers_have_the_names_that_are_read() -> None:
    for named in ((), (1, 2, 3), (1, 2, 3, 5), (2, 4, 5, 24), range(1, 25)):
        assert parse_layers(name_layers(frozenset(named), 24), 24) == frozenset(named)
    assert [name_layers(named, 24) for named in ((), range(1, 25), (1, 2, 3, 5))] == ["none", "all", "1-3,5"]


def test_a_deepspeed_file_that_fixes_the_micro_batch(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"zero_optimization": {"stage": 1},\n"train_micro_batch_size_per_gpu": 8}')
    with pytest.raises(UserError, match=r"mine.json:2: train_micro_batch_size_per_gpu is 8, but .* is auto: take"):
        choose(config(*BOTH, "--deepspeed_config", str(file)), 32, 8, A100)
    choose(config(LAYERS, "auto", "--deepspeed_config", str(file)), 32, 8, A100)


def test_a_dry_run_shows_the_choice_and_its_plan(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(RECIPES / "dualgpt.yaml"), "--dry-run", "--devices", "8"]
    dry_run([*words, *BOTH])
    output = capsys.readouterr().out
    (line,) = [line for line in output.splitlines() if line.startswith("  auto ")]
    dry_run([*words, *BOTH, "--json", "-"])
    found = json.loads(capsys.readouterr().out)
    rows = found["layout"]["micro_batch_rows"]
    assert f"micro-batches of {rows} rows, no layer recomputed" in line
    dry_run([*words, ROWS, str(rows), LAYERS, "none"])
    assert capsys.readouterr().out.splitlines() == [shown for shown in output.splitlines() if shown != line]


def test_a_job_is_submitted_with_what_was_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cluster.gpu", "a100", "--config", str(RECIPES / "dualgpt.yaml"), ROWS, "auto", "--print"]
    submit(words)
    shown = capsys.readouterr()
    rows = choose(config(ROWS, "auto"), 32, 8, A100).plan.setting.rows
    assert f"{ROWS} auto {ROWS} {rows}\n" in shown.out
    assert "auto: micro-batches of" in shown.err
    submit(words[2:])
    assert f"{ROWS} auto\n" in capsys.readouterr().out, "a cluster that names no GPU leaves it to the job"
    with pytest.raises(SystemExit):
        submit(["--cluster.gpu", "a1000", *words[2:]])
    assert "cluster.gpu is 'a1000'; valid: a100, " in capsys.readouterr().err


def test_a_run_takes_what_was_chosen_and_learns_the_same(tmp_path: Path, one_process: Mesh) -> None:
    small = ("--evaluation.rows=0", "--training.steps=3", "--parallel.device_memory_gb=1")
    auto = tiny(tmp_path / "auto", *small, *BOTH)
    chosen, why = choose_here(auto, 1, 1, None)
    rows = chosen.training.micro_rows
    assert rows > 1
    with Run(chosen, one_process, choice=why) as run:
        run.train()
    explicit = tiny(tmp_path / "explicit", *small, f"{ROWS}={rows}", f"{LAYERS}=none")
    with Run(explicit, one_process) as run:
        run.train()
    found, expected = ([line["loss"] for line in lines(tmp_path / name)] for name in ("auto", "explicit"))
    assert len(found) == 3
    assert found == expected
    log = (tmp_path / "auto" / "logs" / "pretrain.log").read_text()
    assert str(why) in log
    saved = load_config(tmp_path / "auto" / "config.yaml")
    assert saved.training.micro_batch_rows == rows
    # Another device may choose anew.
    assert changes(to_dict(saved), auto) == []
