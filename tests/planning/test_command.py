"""``pretrain.py --dry-run`` as a program: any number of devices, in seconds, without torch; what it refuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.planning.command import dry_run

ROOT = Path(__file__).resolve().parents[2]
RECIPES = "megatron_pixel/config/recipes"
SYSTEMS = ("textgpt", "pixelgpt", "monogpt", "dualgpt")


def plan(capsys: pytest.CaptureFixture[str], recipe: str, *words: str) -> Any:
    dry_run(["--config", str(ROOT / RECIPES / f"{recipe}.yaml"), "--dry-run", *words, "--json", "-"])
    return json.loads(capsys.readouterr().out)


def shown(capsys: pytest.CaptureFixture[str], recipe: str, *words: str) -> str:
    dry_run(["--config", str(ROOT / RECIPES / f"{recipe}.yaml"), "--dry-run", *words])
    return capsys.readouterr().out


def test_the_program_runs_without_torch_and_its_datasets(tmp_path: Path) -> None:
    """A stand-in for torch that cannot be imported: the program starts in a moment, on a machine without it."""
    (tmp_path / "torch.py").write_text("raise RuntimeError('a dry run needs no torch')")
    command = [sys.executable, "megatron_pixel/pretrain.py", "--config", f"{RECIPES}/dualgpt.yaml", "--dry-run"]
    command += ["--devices", "1024", "--parallel.tensor", "8", "--json", str(tmp_path / "plan.json")]
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "1,024 x A100 80 GB SXM, 128 nodes of 8" in done.stdout
    assert "Memory a device" in done.stdout
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["layout"]["data"] == 128
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix) == ["plan.json", "torch.py"]


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_papers_systems_fit_its_32_gpus(capsys: pytest.CaptureFixture[str], system: str) -> None:
    found = plan(capsys, system, "--nodes", "4", "--gpu", "a100")
    assert found["fits"]
    assert found["parameters"]["all"] == 350_277_632
    assert found["parameters"]["by_rank"] == [350_277_632]
    (rank,) = found["ranks"]
    assert rank["ranks"] == [0, 31]
    sent = {part["kind"]: part["bytes"] for part in rank["sent"]}
    # Flat buffers are padded to 2 x 32 values; 4 bytes of gradient and 2 of weight a value.
    assert (sent["gradients"], sent["weights"]) == (4 * 350_277_632, 2 * 350_277_632)
    # Between a sixth and two thirds of the peak: anything else is a mistake of a factor.
    assert 1 / 6 < found["speed"]["mfu"] < 2 / 3
    assert found["speed"]["rows"] == pytest.approx(found["speed"]["seconds"] * found["speed"]["rows_per_second"])


def test_a_pipeline_is_told_rank_by_rank(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "dualgpt", "--devices", "32", "--parallel.tensor", "2", "--parallel.pipeline", "4")
    assert [rank["stages"] for rank in found["ranks"]] == [[0, 6], [7, 12], [13, 18], [19, 26]]
    assert sum(found["parameters"]["by_stage"].values()) == found["parameters"]["all"]
    assert found["bubble"] == pytest.approx(3 / (found["layout"]["micro_batches"] + 3))
    activations = [rank["memory"]["activations"] for rank in found["ranks"]]
    assert activations == sorted(activations, reverse=True), "the first rank holds the most micro-batches"
    assert [rank["ranks"] for rank in found["ranks"]] == [[0, 7], [8, 15], [16, 23], [24, 31]]


def test_what_does_not_fit_is_told_with_the_nearest_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--devices", "16", "--gpu", "a10", "--training.micro_batch_rows", "32"]
    output = shown(capsys, "dualgpt", *words)
    assert "does not fit: " in output
    nearest = output.split("nearest that fits: ")[1].splitlines()[0].split()
    again = shown(capsys, "dualgpt", *words, *nearest)
    assert "does not fit" not in again
    found = plan(capsys, "dualgpt", *words)
    assert not found["fits"]
    assert found["nearest"]["fits"]
    assert found["nearest"]["settings"] == [" ".join(nearest)], "one setting is enough"


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--devices", "1", "--gpus", "1", "--gpu", "l4", "--parallel.tensor", "1"]
    output = shown(capsys, "dualgpt-7b", *words, "--training.micro_batch_rows", "1", "--model.layers", "200")
    assert "nothing else fits on 1 of these devices: take more of them" in output


def test_layouts_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    found = plan(capsys, "dualgpt", "--nodes", "4", "--layouts", "5")
    assert len(found) == 5
    assert all(layout["fits"] for layout in found)
    rates = [layout["speed"]["rows_per_second"] for layout in found]
    assert rates == sorted(rates, reverse=True)
    assert found[0]["layout"]["data"] == 32, "data parallelism alone is the fastest at this size"


def test_the_comparison_is_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(capsys, "dualgpt-debug", "--devices", "2", "--layouts", "3").splitlines()
    assert lines[-5].split()[:3] == ["tensor", "pipeline", "data"]
    assert all(len(line.split()) >= 10 for line in lines[-3:])
    assert all(float(line.split()[-1].replace(",", "")) > 0 for line in lines[-3:])


def test_more_micro_batches_a_larger_bubble_a_faster_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    def rate(*words: str) -> float:
        return plan(capsys, "dualgpt", "--nodes", "4", *words)["speed"]["rows_per_second"]

    assert rate("--gpu", "h100") > 1.5 * rate("--gpu", "a100")
    assert rate("--parallel.pipeline", "8") < rate("--parallel.pipeline", "2")
    assert rate("--parallel.activation_checkpointing", "all") < rate()
    assert rate("--efficiency", "0.3") < rate()
    # Tensor parallelism over nodes waits for the network.
    assert rate("--parallel.tensor", "8", "--nodes", "8", "--gpus", "4") < rate("--parallel.tensor", "8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpu", "a1000"], "--gpu: 'a1000' is not in the table; valid: a100, "),
        (["--devices", "0"], "--devices: 0 is too small"),
        (["--devices", "12", "--nodes", "2"], "--devices 12 is not --nodes 2 x --gpus 8 = 16: leave one of them out"),
        (["--efficiency", "1.5"], "--efficiency: 1.5 is outside 0 .. 1"),
        (["--devices", "6"], "nearest valid training.global_batch_rows"),
        (["--devices", "8", "--parallel.tensor", "3"], "3 does not divide"),
        (
            ["--parallel.pipeline", "2", "--deepspeed_config", "ds_configs/zero3.json"],
            "a pipeline goes with stage 1 only",
        ),
        (["--json", "/nowhere/plan.json"], "--json: /nowhere/plan.json cannot be written"),
        (["--modell.layers", "3"], "modell"),
    ],
)
def test_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        dry_run(["--config", str(ROOT / RECIPES / "dualgpt.yaml"), "--dry-run", *words])
    assert message in str(error.value)
