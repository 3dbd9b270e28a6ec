"""Predictions of scaling: what they must obey, what a measurement changes, what published runs say of them."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scaling, scaling_published
from benchmarks.result_file import RESULTS
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import load_config
from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.constants import Constants
from megatron_pixel.planning.devices import find_device
from megatron_pixel.planning.measured import read_measured
from megatron_pixel.planning.scaling import Layout, alone, curve, point
from megatron_pixel.planning.setting import Setting
from megatron_pixel.planning.speed import micro_batch_seconds, optimizer_seconds

RECIPE = Path(__file__).parents[2] / "megatron_pixel" / "config" / "recipes" / "dualgpt.yaml"
H200 = find_device("h200")
CONFIG = load_config(RECIPE)
SHAPE = {"layers": 24, "hidden": 1024, "heads": 16, "kv_heads": 8, "ffn": 2816, "vocab_size": 32000, "seq_length": 1024}


@pytest.mark.parametrize("layout", [Layout(), Layout(zero="zero2"), Layout(2), Layout(pipeline=2)], ids=str)
def test_efficiency_falls_and_its_parts_make_up_the_step(layout: Layout) -> None:
    points = curve(CONFIG, layout, [8, 64, 1024], 8, H200, Constants())
    assert [found.plan.setting.devices for found in points] == [8, 64, 1024]
    efficiencies = [found.efficiency for found in points]
    assert efficiencies == sorted(efficiencies, reverse=True)
    assert all(0.3 < efficiency <= 1 for efficiency in efficiencies)
    for found in points:
        assert found.plan.fits
        assert found.efficiency + sum(found.losses.values()) == pytest.approx(1, abs=0.02)
        assert found.describe()["efficiency"] == found.efficiency
    assert [found.sent["network"] > 0 for found in points] == [False, True, True]


def test_one_device_is_as_efficient_as_one_device() -> None:
    found = point(CONFIG, Layout(), 1, 8, H200, Constants())
    assert found is not None
    assert found.efficiency == pytest.approx(1)
    assert found.limit == "computing"


def test_a_layout_that_cannot_run_is_left_out() -> None:
    assert point(CONFIG, Layout(pipeline=4), 2, 8, H200, Constants()) is None
    assert [found.plan.setting.devices for found in curve(CONFIG, Layout(2), [1, 2], 8, H200, Constants())] == [2]


def measured(tmp_path: Path, obeyed: Constants, **changes: Any) -> Path:
    """A result of ``benchmarks/training.py`` on a device that obeys other constants."""
    result: dict[str, Any] = {"device": "NVIDIA H200", "precision": "bf16", "model": SHAPE}
    for kind in Kind:
        training = dataclasses.replace(CONFIG.training, micro_batch_rows=16, global_batch_rows=160)
        setting = Setting.of(dataclasses.replace(CONFIG, training=training), 1, 1)
        seconds = micro_batch_seconds(setting, H200, 0, kind, obeyed)
        taken = optimizer_seconds(setting, H200, obeyed)
        result[kind.name.lower()] = {"rows": 16, "micro_batch_seconds": seconds, "optimizer_seconds": taken}
    path = tmp_path / "training.json"
    path.write_text(json.dumps({**result, **changes}))
    return path


def test_a_measurement_takes_the_place_of_the_roofline(tmp_path: Path) -> None:
    """A device that is slower by half: factors of 1.5, and a step on it alone takes half as long again."""
    device, constants = read_measured(measured(tmp_path, Constants()), CONFIG)
    assert device == H200
    assert constants.measured == pytest.approx(dict.fromkeys(Kind, 1.0))
    assert constants.optimizer == pytest.approx(1.0)
    slow = json.loads(measured(tmp_path, Constants(optimizer=3.0)).read_text())
    for kind in Kind:
        slow[kind.name.lower()]["micro_batch_seconds"] *= 1.5
    del slow["pixel"]
    (tmp_path / "slow.json").write_text(json.dumps(slow))
    _, constants = read_measured(tmp_path / "slow.json", CONFIG)
    assert constants.measured == pytest.approx(dict.fromkeys(Kind, 1.5)), "the kind left out has the others' factor"
    assert constants.optimizer == pytest.approx(3.0)
    assert alone(CONFIG, H200, constants) == pytest.approx(1.5 * alone(CONFIG, H200, Constants()), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "CPU"}, r"was measured on 'CPU'; the table has a100"),
        ({"precision": "fp32"}, "was measured in fp32; predictions are for bf16"),
        ({"text": {"rows": 16}}, "lacks 'micro_batch_seconds'"),
        ({"model": None}, "lacks"),
    ],
)
def test_a_measurement_that_does_not_serve(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_measured(measured(tmp_path, Constants(), **changes), CONFIG)


def test_a_measurement_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json cannot be read"):
        read_measured(tmp_path / "none.json", CONFIG)
    empty = {"device": "NVIDIA A100-SXM4-40GB", "precision": "bf16", "model": SHAPE}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    with pytest.raises(UserError, match="holds no kind of row"):
        read_measured(tmp_path / "empty.json", CONFIG)


def test_the_program_prints_every_layout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--recipes", "dualgpt", "--devices", "8", "--gpu", "h100", "--json", str(tmp_path / "scaling.json")]
    scaling.main(words)
    out = capsys.readouterr().out
    for layout in scaling.SMALL:
        assert f"\n{layout} " in out
    assert "H100 80 GB SXM, 8 a node, links of 450 GB/s" in out
    assert json.loads((tmp_path / "scaling.json").read_text())["recipes"]["dualgpt"]["rows"] == 10240
    with pytest.raises(UserError, match="the least is 1"):
        scaling.main(["--devices", "0"])


def test_the_committed_predictions_are_those_of_this_version() -> None:
    """A point of the page and the rows against published runs, computed again."""
    result = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))
    shown = result["recipes"]["dualgpt"]["layouts"]["data, ZeRO 1"]
    (found,) = curve(CONFIG, Layout(), [1024], 8, H200, Constants())
    assert shown[-1]["step_seconds"] == pytest.approx(found.seconds, rel=1e-3), "run benchmarks/scaling.py --json again"
    published = json.loads((RESULTS / "scaling_published.json").read_text(encoding="utf-8"))
    errors = scaling_published.errors(scaling_published.read())
    again = "run benchmarks/scaling_published.py --json again"
    assert published["unseen"] == pytest.approx(errors[scaling_published.UNSEEN].describe(), rel=1e-3), again


def test_published_runs_are_told_as_published() -> None:
    """Throughput from the source's own columns: step time x tokens a second is the batch that it states."""
    runs = scaling_published.read()
    assert len(runs) == 235
    for run in runs:
        batch = run.gpus // run.tensor * run.rows * run.micro_batches * run.length
        assert run.seconds * run.tokens_per_second == pytest.approx(batch)
        assert run.table["source"].startswith("https://github.com/")
    (seven,) = (run for run in runs if run.model == "llama-7b" and run.gpus == 1)
    assert seven.seconds == pytest.approx(3.13, abs=0.005), "its report says so"
    assert sum(p.numel for p in seven.setting.parameters) == pytest.approx(8.03e9, rel=2e-3)
    (large,) = (run for run in runs if run.model == "llama-175b")
    assert large.seconds == pytest.approx(19.09, abs=0.005)
    assert sum(p.numel for p in large.setting.parameters) == pytest.approx(175.0e9, rel=1e-3)


def test_the_fit_is_judged_on_models_that_it_has_not_seen() -> None:
    runs = scaling_published.read()
    seen = {run.model for run in runs if run.fitted}
    unseen = {run.model for run in runs if not run.fitted}
    assert not seen & unseen
    assert 0.4 < statistics.mean(run.fitted for run in runs) < 0.6
    errors = scaling_published.errors(runs)
    assert errors[scaling_published.UNSEEN].median < 0.06
    guessed = scaling_published.errors(runs, Constants(0.6, 1.0, 8.0, 1.0, 1.0, 0.75))
    assert guessed[scaling_published.UNSEEN].median > errors[scaling_published.UNSEEN].median
