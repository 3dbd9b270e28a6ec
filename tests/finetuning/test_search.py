"""Grids, points and their folders; what is done, what is left, what failed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.keys import settings
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.finetuning import search as worker
from megatron_pixel.finetuning.arguments import load
from megatron_pixel.finetuning.grid import Point, find_grid, read_points, sampled
from megatron_pixel.finetuning.search import array_share, results_below, search, share_of, summary

GRID = """
fixed: {task: custom, training.steps: 2}
cases:
- {modality: text, for: textgpt}
- {modality: pixel, for: pixelgpt}
grid:
  optimizer.lr: [1e-3, 1e-4]
  training.seed: [1, 2]
"""


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID, encoding="utf-8")
    return path


def test_every_combination_is_a_point_with_a_name_of_its_own(grid: Path) -> None:
    points = read_points(grid)
    assert len({point.name for point in points}) == len(points) == 8
    config = points[0].config(Path("runs/x"))
    assert (config.run.dir, config.training.steps, config.optimizer.lr, config.modality) == ("runs/x", 2, 1e-3, "text")
    grid.write_text(GRID.replace("[1, 2]", "[1, 2, 3]"), encoding="utf-8")
    assert {point.name for point in points} < {point.name for point in read_points(grid)}


def test_cases_are_chosen(grid: Path) -> None:
    assert len(read_points(grid, system="textgpt")) == len(read_points(grid, {"modality": "pixel"})) == 4
    assert {point.values["training.steps"] for point in read_points(grid, {"training.steps": 9})} == {9}
    with pytest.raises(UserError, match=r"no case for anything of dualgpt; it is for pixelgpt, textgpt"):
        read_points(grid, system="dualgpt")


def array(task: int, count: int, first: int, last: int, step: int = 1) -> dict[str, str]:
    """What SLURM tells the task of an array."""
    told = {"ID": task, "COUNT": count, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


def test_samples_and_shares_cover_the_grid(grid: Path) -> None:
    points = read_points(grid)
    assert {p.name for p in sampled(points, 3, 0)} < {p.name for p in sampled(points, 5, 0)}
    assert sampled(points, 3, 0) != sampled(points, 3, 1)
    parts = [share_of(points, f"{number}/3") for number in range(3)]
    assert sorted(p.name for part in parts for p in part) == sorted(p.name for p in points)
    assert array_share({}) == "0/1"
    assert array_share(array(6, 4, first=4, last=7)) == "2/4"
    assert [array_share(array(task, 3, 1, 9, step=4)) for task in (1, 5, 9)] == ["0/3", "1/3", "2/3"]
    for task, step in ((3, 3), (1, 1)):  # --array 1,3,7
        with pytest.raises(UserError, match=r"the SLURM array \(3 from 1 to 7\) have gaps: .* --array 0-2"):
            array_share(array(task, 3, 1, 7, step))
    with pytest.raises(UserError, match=r"--share 3/3: expected NUMBER/COUNT"):
        share_of(points, "3/3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fixed: {optimizer.lrr: 1}", r"optimizer\.lrr: unknown key.*did you mean optimizer\.lr"),
        ("grid: {optimizer.lr: 1e-3}", r"grid: optimizer\.lr: expected a list"),
        ("grid: {optimizer.lr: [much]}", r"grid: optimizer\.lr: expected a number"),
        ("point: {}", r"expected the sections fixed, cases, grid"),
        ("fixed: {", r"not valid YAML"),
    ],
)
def test_bad_grids_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_points(tmp_path / "grid.yaml")


def test_unknown_grids_name_the_papers() -> None:
    with pytest.raises(UserError, match=r"no file nothing; the paper's own are table11, table12, table13, table14"):
        find_grid("nothing")


def test_defaults_are_those_of_fine_tuning() -> None:
    config = load(None)
    assert (config.optimizer.lr, config.optimizer.warmup_steps, config.optimizer.beta2) == (3e-5, 100, 0.999)
    assert (config.training.steps, config.training.seed, config.training.global_batch_rows) == (2000, 42, 64)
    assert all(setting.doc for setting in settings(FinetuningConfig).values())


def test_the_papers_settings_stand_below_those_of_the_command_line() -> None:
    config = load(None, ["--task", "cola", "--modality", "pixel", "--training.steps", "7"], paper="pixelgpt")
    assert (config.optimizer.lr, config.training.global_batch_rows, config.dropout) == (5e-6, 512, 0.1)
    assert config.training.steps == 7
    with pytest.raises(UserError, match="states no settings for textgpt on custom"):
        load(None, ["--task", "custom", "--modality", "text"], paper="textgpt")


def test_a_search_does_what_is_left(place: Path, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(
        f"""
fixed: {{examples.path: {place}, input.tokenizer: {place}/tokenizer.model, input.cache: "", modality: text,
  training.steps: 2, training.global_batch_rows: 5, training.micro_batch_rows: 5, training.precision: fp32,
  optimizer.warmup_steps: 1}}
cases:
- {{checkpoint: {place}/textgpt}}
- {{checkpoint: {place}/dualgpt}}
- {{checkpoint: {place}/nowhere}}
""",
        encoding="utf-8",
    )
    points = read_points(tmp_path / "grid.yaml")
    done = tmp_path / "out" / points[0].name
    done.mkdir(parents=True)
    (done / "result.json").write_text('{"kept": true}')
    said: list[str] = []
    report = search(points, tmp_path / "out", 1, said.append)
    assert (report.before, report.finished, report.stopped) == (1, 1, False)
    assert "there is no folder" in report.failed[points[2].name]
    assert json.loads((done / "result.json").read_text()) == {"kept": True}
    (done / "result.json").unlink()
    results = results_below(tmp_path / "out")
    assert [result["system"] for result in results] == ["dualgpt"]
    assert "custom dualgpt text pretrained: accuracy" in summary(results)
    assert any("3 points: 1 done before, 2 to do" in line for line in said)


def test_a_search_that_is_stopped_goes_on(place: Path, tmp_path: Path) -> None:
    """SIGTERM ends it between two steps; the next call has the points that are left."""
    words = [
        "--checkpoint",
        f"{place}/textgpt",
        "--modality",
        "text",
        "--examples.path",
        str(place),
        "--input.cache",
        "",
    ]
    words += ["--input.tokenizer", f"{place}/tokenizer.model", "--training.precision", "fp32"]
    words += ["--training.global_batch_rows", "5", "--training.micro_batch_rows", "5", "--optimizer.warmup_steps", "1"]
    words += ["--stopping.patience", "0"]  # a fast machine would end the long point by itself
    (tmp_path / "grid.yaml").write_text("grid: {training.steps: [2, 100000]}", encoding="utf-8")
    program = Path(__file__).parents[2] / "megatron_pixel" / "finetune.py"
    command = [sys.executable, str(program), "search", "--grid", str(tmp_path / "grid.yaml"), *words]
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout)
        assert any("[1/2]" in line for line in lines), "the short point ends"
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        rest = "".join(lines)
        assert process.wait(60) == 1, rest
    finally:
        process.kill()
    assert "stopping: the points under way begin anew" in rest
    assert "Traceback" not in rest
    assert "failed" not in rest
    assert len(results_below(tmp_path / "out")) == 1


def test_a_worker_joins_one_process_group_for_all_its_points(monkeypatch: pytest.MonkeyPatch, grid: Path) -> None:
    opened, trained = [], []

    @contextmanager
    def mesh(parallel: ParallelConfig) -> Iterator[str]:
        opened.append(parallel)
        yield "mesh"

    def run_point(point: Point, folder: Path, here: str) -> tuple[str, str]:
        trained.append((point.name, here))
        return "done", ""

    monkeypatch.setattr("megatron_pixel.parallel.mesh.mesh", mesh)
    monkeypatch.setattr(worker, "_run_point", run_point)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    points = read_points(grid)[:3]
    near, far = Pipe()
    for task in (*((point, grid.parent) for point in points), None):
        near.send(task)
    worker._worker(far, number=0, workers=1, cores=1)
    assert len(opened) == 1
    assert trained == [(point.name, "mesh") for point in points]
