"""The program as users start it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from megatron_pixel.config import load_config, to_dict
from megatron_pixel.parallel.mesh import mesh
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training import exit_codes
from megatron_pixel.training.metrics import EVALUATION_KEYS, STEP_KEYS
from megatron_pixel.training.run import Run
from tests.distributed.harness import run_ranks

ROOT = Path(__file__).resolve().parents[2]
RECIPES = "megatron_pixel/config/recipes"
SYSTEMS = {
    "textgpt": {"loss_token_text"},
    "pixelgpt": {"loss_patch_pixel"},
    "monogpt": {"loss_token_text", "loss_patch_pixel"},
    "dualgpt": {"loss_token_text", "loss_patch_pixel", "loss_token_pair", "loss_patch_pair"},
}


def start(*words: object, launcher: tuple[str, ...] = (sys.executable,)) -> subprocess.Popen[str]:
    command = [*launcher, "megatron_pixel/pretrain.py", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True, **pipes)  # type: ignore[call-overload, no-any-return]


def finish(process: subprocess.Popen[str], timeout: float = 150) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


def lines(folder: Path) -> list[dict[str, float | None]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_help_teaches_without_loading_torch() -> None:
    begin = time.monotonic()
    code, out, err = finish(start("--help"))
    assert (code, err) == (0, "")
    for expected in ("--training.stop_after", "Peak learning rate", "deepspeed --num_gpus 2", "--print-config"):
        assert expected in out
    assert time.monotonic() - begin < 10


def test_print_config_shows_what_the_run_would_get() -> None:
    words = ("--config", f"{RECIPES}/dualgpt.yaml", "--optimizer.lr", "1e-3")
    code, out, err = finish(start(*words, "--print-config"))
    assert (code, err) == (0, "")
    assert yaml.safe_load(out) == to_dict(load_config(ROOT / RECIPES / "dualgpt.yaml", ["--optimizer.lr", "1e-3"]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--training.precision", "fp16"), "fp16"),
        (("--parallel.pipeline", "2"), "does not divide the 1 process(es) of this run"),
        (("--optimizer.leraning_rate", "1"), "optimizer.leraning_rate"),
    ],
)
def test_mistakes_end_in_one_line_before_anything_is_written(
    tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    folder = tmp_path / "run"
    code, out, err = finish(start("--config", f"{RECIPES}/dualgpt-debug.yaml", "--run.dir", folder, *words))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in err
    assert not folder.exists()


def test_one_process_stopped_by_a_signal_and_started_again(tmp_path: Path) -> None:
    words = ("--config", f"{RECIPES}/dualgpt-debug.yaml", "--run.dir", tmp_path, "--training.steps", "400")
    process = start(*words)
    end = time.monotonic() + 150
    while not (tmp_path / "metrics.jsonl").exists() or len(lines(tmp_path)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert (code, err) == (exit_codes.REQUEUE, "")
    assert "stopped by SIGTERM after step" in out
    assert "start the same command again" in out
    (last, *_) = [line["step"] for line in reversed(lines(tmp_path)) if "loss" in line]
    code, out, err = finish(start(*words, "--training.stop_after", int(last or 0) + 1))
    assert (code, err) == (0, "")
    assert f"{last:,} of 400 steps done" in out
    assert [line["step"] for line in lines(tmp_path) if "loss" in line] == list(range(1, int(last or 0) + 2))


def test_two_processes_under_deepspeeds_launcher(tmp_path: Path) -> None:
    launcher = (str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", "2", "--master_port", "29617")
    words = ("--config", f"{RECIPES}/dualgpt-debug.yaml", "--run.dir", tmp_path, "--parallel.pipeline", "2")
    code, out, err = finish(start(*words, launcher=launcher), timeout=300)
    assert code == 0, err
    ours = [line for line in out.splitlines() if not line.startswith("[")]
    assert ours[0].startswith("megatron_pixel "), "the first line of the program is its own"
    assert "DualGPT" in ours[0]
    assert "2 processes on CPU: data 1, tensor 1, pipeline 2" in "\n".join(ours[:5])
    assert ours[-1].startswith("done: 6 steps")
    assert len(lines(tmp_path)) == 8


def run_all(folder: str) -> None:
    silence_libraries()
    configs = [
        load_config(f"{RECIPES}/{system}-debug.yaml", [f"--run.dir={folder}/{system}", "--evaluation.every=0"])
        for system in SYSTEMS
    ]
    with mesh(configs[0].parallel) as here:
        for config in configs:
            with Run(config, here) as run:
                run.train()


def test_the_four_systems_on_one_process(tmp_path: Path) -> None:
    run_ranks(run_all, 1, (str(tmp_path),), timeout=150)
    for system, learned in SYSTEMS.items():
        *steps, evaluation = lines(tmp_path / system)
        assert [line["step"] for line in steps] == list(range(1, 7))
        assert all(tuple(line) == STEP_KEYS for line in steps)
        assert tuple(evaluation) == EVALUATION_KEYS
        assert {key for key in STEP_KEYS[2:6] if steps[0][key] is not None} == learned
        assert {key for key in STEP_KEYS[2:6] if evaluation[f"eval_{key}"] is not None} == learned
        assert (steps[-1]["loss"] or 0) < (steps[0]["loss"] or 0)
        assert steps[0]["mfu"] is None
        assert (steps[0]["tflops_per_device"] or 0) > 0
