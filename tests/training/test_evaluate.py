"""evaluate.py on a run of the debug recipe: the losses that training saw, the baselines, the picture, the refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from megatron_pixel.config.errors import UserError
from megatron_pixel.training.heldout import evaluate_run

ROOT = Path(__file__).resolve().parents[2]
RECIPE = "megatron_pixel/config/recipes/dualgpt-debug.yaml"


def program(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated")
    done = program("megatron_pixel/pretrain.py", "--config", RECIPE, "--run.dir", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_the_checkpoint_gives_the_losses_of_the_last_evaluation(run: Path) -> None:
    done = program("megatron_pixel/evaluate.py", "heldout", "--run", str(run))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    figures = json.loads((run / "baselines.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "eval_loss" in line)
    del last["time"]
    for key, value in last.items():
        assert figures[key] == pytest.approx(value, rel=1e-6), key
    for name in ("unigram_entropy", "constant_patch", "linear_previous_patch"):
        assert figures[name] > 0
        assert figures[f"{name}_pair"] > 0
    assert figures["linear_previous_patch"] < figures["constant_patch"]
    assert figures["eval_loss_token_pair_shuffled_image"] != figures["eval_loss_token_pair"]
    assert "does it read?" in done.stdout
    with Image.open(run / "heldout.png") as picture:
        assert picture.width > 200


def test_refusals(run: Path, tmp_path: Path) -> None:
    done = program("megatron_pixel/evaluate.py", "heldout", "--run", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} is no run: it has no config.yaml\n"
    checkpoint = tmp_path / "step-00000006"
    with pytest.raises(UserError, match=rf"^{checkpoint} is no checkpoint folder"):
        evaluate_run(run, checkpoint)
