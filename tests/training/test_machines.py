"""What is looked at before and while a run goes on: machines, room on the disk, slow ranks, settings; no run needed."""

import json
import os
import signal
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import load_config, to_dict
from megatron_pixel.config.schema import CheckpointConfig, GuardsConfig
from megatron_pixel.training import checkpoint_files, preflight, run_lock, sessions, space, watchdog
from megatron_pixel.training.health import Health, health_line, look, probe, warnings
from megatron_pixel.training.observation import RANK_COLUMNS
from megatron_pixel.training.restarts import JOB, Restarts, resume_own
from megatron_pixel.training.slow_ranks import FILE, SlowRanks

DEBUG = "megatron_pixel/config/recipes/dualgpt-debug.yaml"
WELL = Health(0, "a", "NVIDIA H200", 138.0, 140.0, 0.1, 16.0, 1000.0, 0.002, 31, 0, False, "570.86")


def test_healthy_machines_make_one_line() -> None:
    ranks = [replace(WELL, rank=rank, host="ab"[rank // 2], temperature=31 + rank) for rank in range(4)]
    assert warnings(ranks, workers=2) == []
    assert health_line(ranks) == (
        "2 nodes (a .. b), 4 x NVIDIA H200, 138 of 140 GiB free on the fullest, 31 to 34 C, driver 570.86, "
        "load 0.1 a core"
    )


@pytest.mark.parametrize(
    ("ill", "said"),
    [
        ({"free_memory": 100.0}, "rank 2 on b: 40.0 GiB of its GPU are taken by other processes"),
        ({"ecc_errors": 3}, "rank 2 on b: its GPU has 3 uncorrected memory errors"),
        ({"throttled": True, "temperature": 91}, "rank 2 on b: its GPU is slowed down by heat or power (91 C)"),
        ({"probe": 0.004}, "rank 2 on b: computes at 50% of the usual speed"),
        ({"shared_memory": 0.06}, "rank 2 on b: 0.06 GiB are free in /dev/shm"),
        ({"clock": 1100.0}, "rank 2 on b: its clock is off by +100 s"),
        ({"device": "NVIDIA A100"}, "the ranks run on different devices: NVIDIA A100, NVIDIA H200"),
    ],
)
def test_a_machine_that_is_not_well_is_named(ill: dict[str, Any], said: str) -> None:
    ranks = [replace(WELL, rank=rank) for rank in range(4)]
    ranks[2] = replace(ranks[2], host="b", **ill)
    (warning,) = warnings(ranks, workers=2)
    assert warning.startswith(said)


def test_this_machine() -> None:
    found = look(0, torch.device("cpu"))
    assert 0 < found.free_memory < found.total_memory
    assert probe(torch.device("cpu")) > 0
    assert "1 x CPU" in health_line([found])


@pytest.mark.parametrize(
    ("config", "steps", "done", "most"),
    [
        (CheckpointConfig(every=500, keep=3), 10_000, 0, 4),
        (CheckpointConfig(every=500, keep=3, milestones=[2000, 4000]), 10_000, 3000, 5),
        (CheckpointConfig(every=500, keep=0), 10_000, 0, 20),
        (CheckpointConfig(every=500, keep=0), 10_000, 9_600, 1),
        (CheckpointConfig(every=0, keep=3), 10_000, 0, 2),
    ],
)
def test_checkpoints_to_come(config: CheckpointConfig, steps: int, done: int, most: int) -> None:
    assert space.checkpoints_to_come(config, steps, done) == most


def test_a_disk_without_room_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(DEBUG, ["--checkpoint.keep=3", "--checkpoint.every=1", "--training.steps=100"])
    assert space.checkpoint_bytes(1000, "bf16") == 14_000
    assert "GiB for checkpoints to come" in space.check_space(tmp_path, config, 1000, 0)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: SimpleNamespace(free=60 * space.GIB))
    with pytest.raises(UserError, match=r"has 60\.0 GiB free, but 4 checkpoints of 16\.00 GiB are to come: make room"):
        space.check_space(tmp_path, config, space.GIB, 0)
    (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
    assert "48" in space.check_space(tmp_path, config, space.GIB, 1), "one of them stands already"


def table(**columns: list[float]) -> torch.Tensor:
    count = len(next(iter(columns.values())))
    defaults = {"seconds": [1.0] * count, "data": [0.01] * count, "forward": [0.3] * count, "probe": [0.002] * count}
    found = torch.zeros(count, len(RANK_COLUMNS), dtype=torch.float64)
    for name, values in (defaults | columns).items():
        found[:, RANK_COLUMNS.index(name)] = torch.tensor(values, dtype=torch.float64)
    return found


def slow(folder: Path | None = None, stages: int = 1, **columns: list[float]) -> list[str]:
    values = table(**columns)
    mesh: Any = SimpleNamespace(pipe_size=stages, world_size=len(values))
    ranks = SlowRanks(GuardsConfig(slow_ranks_every=3), mesh, [f"node-{i}" for i in range(len(values))], folder)
    assert [ranks.probes(step) for step in (1, 2, 3)] == [False, True, False]
    assert ranks.add(1, torch.zeros_like(values)) == [], "nothing is known yet"
    assert ranks.add(2, values) == []
    return ranks.add(3, values)


def test_the_slow_rank_is_named_by_what_it_does_alone(tmp_path: Path) -> None:
    assert slow(forward=[0.3, 0.31, 0.3, 0.32]) == []
    (line,) = slow(tmp_path, forward=[0.3, 0.3, 0.3, 0.6])
    assert line == (
        "slow rank: 3 on node-3 takes 0.600 s a step for its forward passes where 0.3 s are usual (up to step 3)"
    )
    (kept,) = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert (kept["step"], kept["steps"]) == (3, 2)
    assert kept["ranks"][3] | {"rank": 3, "host": "node-3", "forward": 0.6, "seconds": 1.0} == kept["ranks"][3]
    (line,) = slow(data=[0.2, 0.0, 0.0, 0.0])
    assert line.startswith("slow rank: 0 on node-0 waits 0.200 s a step for its rows where 0 s")
    assert slow(data=[0.002, 0.0, 0.0, 0.0]) == [], "that holds nobody up"
    (line,) = slow(probe=[0.002, 0.002, 0.004, 0.002])
    assert "2 on node-2 takes 0.004 s for the probe" in line


def test_stages_of_a_pipeline_are_compared_with_their_like() -> None:
    assert slow(stages=2, forward=[0.3, 0.3, 0.9, 0.9]) == []
    (line,) = slow(stages=2, forward=[0.3, 0.3, 0.3, 0.3, 0.9, 0.9, 1.5, 0.9])
    assert "6 on node-6" in line


def told(rank: int, ranks: list[int] | None) -> dict[str, Any]:
    call = None if ranks is None else {"name": "all_reduce", "ranks": ranks, "caller": "x.py:7"}
    facts = {"rank": rank, "host": "h", "pid": 5, "step": 9, "phase": "p", "seconds": 3.2}
    return facts | {"collective": call, "device": []}


def test_a_summary_says_who_waits_for_whom() -> None:
    world = [0, 1, 2, 3]
    text = watchdog.summary([told(0, world), told(1, None), told(2, world)], 4, Path("logs"))
    assert "all_reduce of ranks 0, 1, 2, 3: ranks 0, 2 waiting; not there: ranks 1, 3" in text
    assert "rank 1 on h (process 5): p, in no collective operation" in text
    assert "rank 3: no answer; the process is stopped or dead, or its machine is gone" in text
    text = watchdog.summary([told(0, [0, 1]), told(1, None)], 2, Path("logs"), stopped={1})
    assert "rank 1 on h (process 5): its process was stopped in: p, in no collective operation" in text
    text = watchdog.summary([told(0, [0, 1]), told(1, [0, 1])], 2, Path("logs"))
    assert "ranks 0, 1 waiting; all of them are there" in text


def test_a_stopped_process_of_this_machine_is_woken_up() -> None:
    with subprocess.Popen(["sleep", "60"]) as stopped, subprocess.Popen(["sleep", "60"]) as running:
        try:
            stopped.send_signal(signal.SIGSTOP)
            os.waitpid(stopped.pid, os.WUNTRACED)
            here = socket.gethostname()
            places = [(here, os.getpid()), (here, stopped.pid), (here, running.pid), ("elsewhere", stopped.pid)]
            assert watchdog.wake(places, {0, 1}) == set(), "it has answered"
            assert psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED
            assert watchdog.wake(places, {0}) == {1}
            assert psutil.Process(stopped.pid).status() != psutil.STATUS_STOPPED
            assert watchdog.wake([(here, 2**22 + 1)], set()) == set(), "gone"
        finally:
            stopped.kill()
            running.kill()


def whole_checkpoint(run: Path, step: int, settings: dict[str, Any]) -> None:
    folder = run / "checkpoints" / checkpoint_files.folder_name(step)
    folder.mkdir(parents=True)
    checkpoint_files.write_durably(folder / checkpoint_files.STATE, json.dumps({"config": settings}))
    checkpoint_files.write_manifest(folder, step, checkpoint_files.describe_files(folder, [checkpoint_files.STATE]))


def test_preflight_refuses_what_cannot_begin(tmp_path: Path) -> None:
    def check(folder: Path, *words: str) -> None:
        preflight.preflight(load_config(DEBUG, [f"--run.dir={folder}", *words]))

    check(tmp_path / "new" / "run")
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be made: \S+file is a file"):
        check(tmp_path / "file" / "run")
    whole_checkpoint(tmp_path, 3, to_dict(load_config(DEBUG, ["--optimizer.lr=0.25"])))
    with pytest.raises(UserError, match=r"optimizer\.lr: 0\.25 in the checkpoint, 0\.001 now"):
        check(tmp_path)
    check(tmp_path, "--checkpoint.resume=none")
    check(tmp_path, "--checkpoint.allow_changes=optimizer.lr")
    lock = run_lock.RunLock(tmp_path)
    with pytest.raises(UserError, match="is in use by process"):
        check(tmp_path, "--checkpoint.resume=none")
    lock.release()


def test_restarts_are_bounded_and_a_new_checkpoint_sets_them_back(tmp_path: Path) -> None:
    restarts = Restarts(load_config(DEBUG, [f"--run.dir={tmp_path}", "--checkpoint.resume=none"]), 2)
    assert [restarts.again(), restarts.again(), restarts.again()] == [True, True, False]
    assert (restarts.words(), restarts.origin()) == ([], "step 1")
    whole_checkpoint(tmp_path, 3, {})
    assert restarts.again()
    assert restarts.in_a_row == 1
    assert restarts.words() == ["--checkpoint.resume", "auto"], "a run that begins anew does so once"
    assert restarts.origin() == "step-00000003"


def test_a_job_that_begins_anew_does_so_once(tmp_path: Path) -> None:
    def resume(**environ: str) -> str:
        config = load_config(DEBUG, [f"--run.dir={tmp_path}", "--checkpoint.resume=none"])
        resume_own(config, environ)
        return config.checkpoint.resume

    whole_checkpoint(tmp_path, 3, {})
    assert resume(**{JOB: "7"}) == "none", "the job has not started it yet"
    sessions.note(tmp_path, "start", {"step": 0, "job": "7"})
    manifest = tmp_path / "checkpoints" / "step-00000003" / "manifest.json"
    os.utime(manifest, (0, 0))
    assert resume(**{JOB: "7"}) == "none", "the checkpoint is older than the job"
    os.utime(manifest)
    assert resume(**{JOB: "7"}) == "auto"
    assert resume(**{JOB: "8"}) == "none"
    assert resume() == "none"


def test_sessions_survive_a_torn_line(tmp_path: Path) -> None:
    sessions.note(tmp_path, "start", {"step": 0})
    with (tmp_path / sessions.FILE).open("a") as file:
        file.write('{"event": "en')
    sessions.note(tmp_path, "start", {"step": 3})
    assert [(event["event"], event["step"]) for event in sessions.read(tmp_path)] == [("start", 0), ("start", 3)]
