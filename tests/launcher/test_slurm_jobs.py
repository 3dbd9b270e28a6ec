"""launcher/pretrain.sbatch on a real SLURM, with a stand-in for Python that costs no seconds."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.slurm_cluster import SlurmCluster, wait_until

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[2]
SMALL = "--nodes=1 --ntasks-per-node=1 --gpus-per-node=0 --cpus-per-task=1 --time=10".split()


@pytest.fixture(autouse=True)
def nothing_stays(slurm: SlurmCluster) -> Iterator[None]:
    """A test that fails must not leave the next ones waiting for its nodes."""
    yield
    slurm.end_jobs()


class Job:
    """A submitted job and what it says."""

    def __init__(
        self, slurm: SlurmCluster, folder: Path, role: str, *words: str, script: str = "pretrain", **environment: str
    ) -> None:
        self.slurm, self.folder = slurm, folder
        options = [*SMALL, *(word for word in words if word.startswith("--"))]
        rest = [word for word in words if not word.startswith("--")]
        env = {"PYTHON": str(ROOT / "tests" / "launcher" / "tasks.sh"), "ROLE": role, **environment}
        batch = ROOT / "launcher" / f"{script}.sbatch"
        if script == "pretrain":
            rest = ["--config", "x", *rest]
        self.number = slurm.submit(*options, f"--output={folder}/%a.out", batch, *rest, env=env, cwd=ROOT)

    def said(self, task: str = "4294967294") -> str:
        file = self.folder / f"{task}.out"
        return file.read_text() if file.exists() else ""

    def starts(self, task: str = "4294967294", count: int = 1) -> "Job":
        """Until all of its tasks have told that they are there."""
        wait_until(lambda: all(f"task {n} of {count}" in self.said(task) for n in range(count)), self.slurm.logs)
        return self

    def ends(self) -> dict[str, str]:
        return self.slurm.wait(self.number)


def test_tasks_are_spread_over_the_nodes(slurm: SlurmCluster, tmp_path: Path) -> None:
    spread = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=2"]
    job = Job(slurm, tmp_path, "status=0", *spread, "a b")
    assert job.ends()["JobState"] == "COMPLETED"
    found = re.findall(
        r"^(\d): task (\d) of 4, (\d) on (node\d), start 0: -u megatron_pixel/pretrain.py --config x a b$",
        job.said(),
        re.M,
    )
    assert sorted(found) == [
        ("0", "0", "0", "node1"),
        ("1", "1", "1", "node1"),
        ("2", "2", "0", "node2"),
        ("3", "3", "1", "node2"),
    ]
    told = set(re.findall(r"meets at (\S+), (\d+) threads, lead (\d+), end (\d+)", job.said()))
    assert len(told) == 1
    assert told.pop()[:3] == ("127.0.0.1", "2", "300")


@pytest.mark.parametrize(("status", "starts"), [(2, 1), (65, 1), (1, 3), (137, 3)])
def test_only_crashes_are_started_again(status: int, starts: int, slurm: SlurmCluster, tmp_path: Path) -> None:
    job = Job(slurm, tmp_path, f"status={status}", MEGATRON_PIXEL_RESTARTS="2")
    assert job.ends()["ExitCode"] == f"{status}:0"
    assert job.said().count("task 0 of 1") == starts
    assert ("no restart is left" in job.said()) == (starts > 1)


def test_the_warning_saves_and_requeues(slurm: SlurmCluster, tmp_path: Path) -> None:
    """The second task of an array, a job before its tasks are there, and one whose tasks die of the warning."""
    for name in ("early", "deaf"):
        (tmp_path / name).mkdir()
    deaf = Job(slurm, tmp_path / "deaf", "deaf").starts()
    slurm.call("scancel", "--batch", "--signal=USR1", deaf.number)
    early = Job(slurm, tmp_path / "early", "wait")
    wait_until(lambda: "1 tasks on" in early.said(), slurm.logs)
    slurm.call("scancel", "--batch", "--signal=USR1", early.number)
    array = Job(slurm, tmp_path, "wait", "--array=1-2", "seed-%a").starts("2")
    slurm.call("scancel", "--batch", "--signal=USR1", f"{array.number}_2")
    for number in (deaf.number, early.number, f"{array.number}_2"):
        slurm.goes_on(number)
    assert early.ends()["Restarts"] == "1"
    assert (deaf.ends()["JobState"], slurm.job(deaf.number)["Restarts"]) == ("COMPLETED", "1")
    wait_until(lambda: "start 1: -u" in array.said("2"), lambda: array.said("2") + slurm.logs())
    assert "saved for USR1" in array.said("2")
    assert "requeued to go on" in array.said("2")
    assert Counter(re.findall(r"start (\d): .*(seed-\d)", array.said("2"))) == {("0", "seed-2"): 1, ("1", "seed-2"): 1}
    assert re.findall(r"start (\d): .*(seed-\d)", array.said("1")) == [("0", "seed-1")], "the other task is left alone"
    slurm.call("scancel", array.number)


def test_a_job_that_nobody_wants_saves_and_stays_away(slurm: SlurmCluster, tmp_path: Path) -> None:
    for name in ("stopped", "cancelled"):
        (tmp_path / name).mkdir()
    stopped = Job(slurm, tmp_path / "stopped", "wait").starts()
    cancelled = Job(slurm, tmp_path / "cancelled", "wait").starts()
    slurm.call("scancel", "--batch", "--signal=TERM", stopped.number)
    slurm.call("scancel", cancelled.number)
    assert stopped.ends()["ExitCode"] == "75:0"
    assert cancelled.ends()["JobState"] == "CANCELLED"
    wait_until(lambda: "submit the same command again" in stopped.said(), slurm.logs)
    assert "saved for USR1" in stopped.said()
    assert "saved for TERM" in cancelled.said()
    for job in (stopped, cancelled):
        assert "requeued" not in job.said()
        assert slurm.job(job.number)["Restarts"] == "0"


def test_a_preempted_job_saves_and_comes_back(slurm: SlurmCluster, tmp_path: Path) -> None:
    (tmp_path / "urgent").mkdir()
    job = Job(slurm, tmp_path, "wait", "--nodes=2", "--exclusive").starts(count=2)
    urgent = Job(slurm, tmp_path / "urgent", "status=0", "--nodes=2", "--exclusive", "--partition=urgent")
    assert urgent.ends()["JobState"] == "COMPLETED"
    slurm.goes_on(job.number)
    assert job.ends()["JobState"] == "COMPLETED"
    assert "saved for" in job.said()
    assert slurm.job(job.number)["Restarts"] == "1"
    assert "start 1: -u" in job.said()


def test_the_tasks_of_an_array_share_a_search(slurm: SlurmCluster, tmp_path: Path) -> None:
    """The search of each task takes the share that SLURM's own variables give it, and a worker for each GPU."""
    python = tmp_path / "python"
    told = "import os, sys; from megatron_pixel.finetuning.search import array_share; print(array_share(os.environ))"
    python.write_text(f'#!/bin/sh\necho "words $*"\nPYTHONPATH={ROOT} exec {sys.executable} -c "{told}"\n')
    python.chmod(0o755)
    words = ["--array=3-7:2", "--gpus-per-node=2", "search", "a grid.yaml"]
    array = Job(slurm, tmp_path, "", *words, script="finetune", PYTHON=str(python))

    def said() -> list[str]:
        return [array.said(task) for task in ("3", "5", "7")]

    wait_until(lambda: all("/3\n" in text for text in said()), lambda: "\n".join([*said(), slurm.logs()]))
    for number, text in enumerate(said()):
        assert text == f"words -u megatron_pixel/finetune.py search a grid.yaml --workers 2\n{number}/3\n"
    single = Job(slurm, tmp_path, "status=7", "runs/a", script="finetune")
    assert single.ends()["ExitCode"] == "7:0"
