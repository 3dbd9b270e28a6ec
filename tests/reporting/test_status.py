"""States of runs, from folders alone."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.reporting.status import block, sparkline, status_of, table
from tests.reporting import made_up_run
from tests.reporting.made_up_run import SECONDS, event

ROOT = Path(__file__).resolve().parents[2]
NOW = made_up_run.BEGIN + 400


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return made_up_run.make(tmp_path / "run")


def test_a_run_that_trains(run: Path) -> None:
    made_up_run.alive(run, NOW, beat=5, quiet=3)
    status = status_of(run, NOW)
    assert (status.state, status.good) == ("training", True)
    assert (status.step, status.steps, status.starts) == (150, 300, 2)
    assert status.seconds_left == pytest.approx(150 * SECONDS)
    assert status.seconds_per_step == pytest.approx(SECONDS)
    assert (status.checkpoint, status.checkpoint_bytes, status.checkpoints) == (150, 4_000_000, 3)
    assert (status.tokens_per_second, status.patches_per_second, status.mfu) == (450.0, 500.0, 0.4)
    assert status.trend == pytest.approx(0.0)
    assert status.parts["backward"] == pytest.approx(0.55)
    text = block(status)
    for said in ("step 150 of 300", "50.0%", "00:05:00", "MFU 40.0%", "restarts    1", "SIGKILL", "step 90 skipped"):
        assert said in text
    assert "step 1/300" not in text, "progress lines are no troubles"
    assert "errors would be told here" not in text


@pytest.mark.parametrize(
    ("last", "state", "good"),
    [
        (event("end", 300, status=0, reason="", step=150), "stopped", True),
        (event("end", 300, status=75, reason="SIGTERM", step=150), "stopped", True),
        (event("end", 300, status=65, reason="loss is not finite", step=150), "failed", False),
        (event("end", 300, status=1, reason="RuntimeError: x", step=150), "failed", False),
        (event("start", 300, step=150, host="n", pid=1, processes=1), "dead", False),
    ],
)
def test_how_it_ended(run: Path, last: dict[str, object], state: str, good: bool) -> None:
    made_up_run.write_sessions(run, [event("start", 0, step=0), last])
    status = status_of(run, NOW)
    assert (status.state, status.good) == (state, good)
    if reason := last.get("reason"):
        assert str(reason) in status.why


def test_a_finished_run(tmp_path: Path) -> None:
    run = made_up_run.make(tmp_path / "run", 100, 100)
    made_up_run.write_sessions(run, [event("start", 0, step=0), event("end", 300, status=0, reason="", step=100)])
    assert status_of(run, NOW).state == "finished"


@pytest.mark.parametrize(
    ("beat", "quiet", "state"),
    [(5, 30, "training"), (5, 3000, "stuck"), (90, 5, "dead"), (5, 10 * SECONDS + 100, "training")],
)
def test_signs_of_life(run: Path, beat: float, quiet: float, state: str) -> None:
    made_up_run.alive(run, NOW, beat, quiet)
    assert status_of(run, NOW).state == state


def test_a_run_that_has_taken_no_step_yet(run: Path) -> None:
    made_up_run.alive(run, NOW)
    made_up_run.write_sessions(run, [event("start", 300, step=0)])
    (run / "metrics.jsonl").write_text("")
    status = status_of(run, NOW)
    assert (status.state, status.step, status.losses) == ("starting", 0, "")
    assert "none yet" not in block(status)


def test_slower_than_before_is_told(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "loss" in line and line["step"] > 110:
            line["tokens_per_second"] = line["patches_per_second"] = 100.0
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made_up_run.alive(run, NOW)
    status = status_of(run, NOW)
    assert status.trend == pytest.approx(200 / 950 - 1)
    assert "-78.9% against the steps before" in block(status)


def test_a_line_that_is_being_written_is_left_out(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 151, "lo')
    assert status_of(run, NOW).step == 150


def test_several_runs_get_a_line_each(run: Path, tmp_path: Path) -> None:
    other = made_up_run.make(tmp_path / "other", 100, 100)
    head, *lines = table([status_of(run, NOW), status_of(other, NOW)]).splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    assert [line.split()[0] for line in lines] == [str(run), str(other)]


def test_bars() -> None:
    assert sparkline([0, 1, 2, 4]) == "▁▃▅█"
    assert sparkline([]) == sparkline([0.0]) == ""


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run: it has no config\.yaml"):
        status_of(tmp_path)


def test_the_program_starts_fast_and_without_torch(run: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['status.py', *sys.argv[1:]]\n"
        "try: runpy.run_path('launcher/status.py', run_name='__main__')\n"
        "except SystemExit as end: status = end.code\n"
        "assert not {'torch', 'numpy', 'deepspeed', 'PIL'} & set(sys.modules), 'too much is imported'\n"
        "sys.exit(status)"
    )
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, run, run], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, ""), "a dead run is no good news"
    assert done.stdout.count(str(run)) == 2
    assert time.monotonic() - begin < 5
    none = subprocess.run(
        [sys.executable, "launcher/status.py", run / "logs"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert none.returncode == 2
    assert none.stderr.startswith("error: ")
