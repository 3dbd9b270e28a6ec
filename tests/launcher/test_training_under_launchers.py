"""Real runs under every launcher: the same losses, and on SLURM the same in spite of all that happens to a job.

A run of two processes under torchrun is the truth for the others of two, one process for that of four. Beside them a
job of two nodes is warned, requeued, and loses a node.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.distributed.cases import SMALL
from tests.distributed.harness import FOREIGN
from tests.launcher.slurm_cluster import SECONDS, ClusterError, SlurmCluster, free_ports, wait_until, why_not

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "megatron_pixel/pretrain.py"
RECIPE = "megatron_pixel/config/recipes/dualgpt-debug.yaml"
BESIDE = Path(sys.executable).parent
"""Where the launchers of this environment are."""
STEPS = 150
LONG = [
    *SMALL,
    *(f"--training.steps={STEPS}", "--training.global_batch_rows=10", "--checkpoint.every=10", "--evaluation.rows=0"),
]
"""A run that is disturbed now and then."""


def environment() -> dict[str, str]:
    """Of a shell in which nothing has been launched yet."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**clean, "OMP_NUM_THREADS": "1", "PATH": f"{BESIDE}:{clean['PATH']}"}


def run(*commands: Sequence[str]) -> str:
    """What commands print that are started side by side; AssertionError unless all succeed."""
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for command in commands
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(said)
    return "\n".join(said)


def curve(folder: Path) -> list[tuple[float, ...]]:
    """Step, losses and gradient norm of every line."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "loss_token_text", "loss_token_pair", "loss_patch_pixel", "loss_patch_pair", "grad_norm")
    return [tuple(line[key] for key in keys) for line in lines if "loss" in line]


def arguments(folder: Path, *words: str) -> list[str]:
    return [PROGRAM, "--config", RECIPE, f"--run.dir={folder}", *words]


class Disturbed:
    """A job of two nodes and what happens to it, in a thread of its own."""

    def __init__(self, slurm: SlurmCluster, folder: Path) -> None:
        self.slurm, self.folder, self.output = slurm, folder / "disturbed", folder / "disturbed.out"
        self.number = slurm.submit(
            *("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1", "--time=30"),
            *(f"--output={self.output}", "launcher/pretrain.sbatch", *arguments(self.folder, *LONG)[1:]),
            env={"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
        )

    def happen(self) -> None:
        """A warning, a requeue from outside, a node that goes down and comes back; then to the end."""
        self.reaches(15)
        self.slurm.call("scancel", "--batch", "--signal=USR1", self.number)
        self.slurm.goes_on(self.number, restarts=1)
        self.reaches(self.step() + 15)
        self.slurm.call("scontrol", "requeue", self.number)
        self.slurm.goes_on(self.number, restarts=2)
        self.reaches(self.step() + 15)
        node = "node2"
        self.kill_task(node=1)  # a node that is really lost leaves no time for a save
        self.slurm.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        wait_until(lambda: self.slurm.job(self.number)["Restarts"] == "3", self.said)
        with contextlib.suppress(ClusterError):  # it may have come back by itself
            self.slurm.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.slurm.goes_on(self.number, restarts=3)
        job = self.slurm.wait(self.number)
        assert job["JobState"] == "COMPLETED", self.said()

    def kill_task(self, node: int) -> None:
        """SIGKILL, which ``scancel --signal=KILL`` does not mean: that cancels the job."""
        marks = {f"SLURM_JOB_ID={self.number}", f"SLURM_NODEID={node}", "SLURM_LOCALID=0"}
        killed = 0
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_text().split("\0")
                given = (process / "environ").read_text().split("\0")
                if {PROGRAM, f"--run.dir={self.folder}"} <= set(words) and marks <= set(given):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed += 1
        assert killed, self.said()

    def said(self) -> str:
        return f"{self.output.read_text() if self.output.exists() else ''}\n{self.slurm.logs()}"

    def step(self) -> int:
        """Of the last line of the metrics; a line may be half written."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(json.loads((self.folder / "metrics.jsonl").read_text().splitlines()[-1])["step"])
        return 0

    def reaches(self, step: int) -> None:
        assert step < STEPS, "the run was over before all had happened to it"
        wait_until(lambda: self.running() and self.step() >= step, self.said)

    def running(self) -> bool:
        return self.slurm.job(self.number)["JobState"] == "RUNNING"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def disturbed(request: pytest.FixtureRequest, folder: Path) -> Iterator[tuple[Disturbed, Future[None]] | None]:
    """The job, on its way from the first test on; None where there is no SLURM."""
    if why_not() is not None:
        yield None
        return
    job = Disturbed(request.getfixturevalue("slurm"), folder)
    with ThreadPoolExecutor(1) as pool:
        yield job, pool.submit(job.happen)


@pytest.fixture(scope="module")
def truth(folder: Path, disturbed: object) -> list[tuple[float, ...]]:
    """The long run on two processes, undisturbed, under torchrun."""
    run(["torchrun", "--nproc-per-node=2", *arguments(folder / "torchrun", *LONG)])
    found = curve(folder / "torchrun")
    assert [line[0] for line in found] == list(range(1, STEPS + 1))
    return found


def test_mpirun(folder: Path, truth: list[tuple[float, ...]]) -> None:
    said = run(["mpirun", "-n", "2", "python", *arguments(folder / "mpirun", *LONG, "--training.stop_after=4")])
    assert "launch      mpirun, 2 processes" in said
    assert curve(folder / "mpirun") == truth[:4]


def test_deepspeed_on_two_nodes_of_a_hostfile(folder: Path, truth: list[tuple[float, ...]]) -> None:
    hosts = folder / "hostfile"
    hosts.write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    (port,) = free_ports(1)
    node = ["deepspeed", f"--hostfile={hosts}", "--no_ssh", "--master_addr=127.0.0.1", f"--master_port={port}"]
    words = arguments(folder / "deepspeed", *LONG, "--training.stop_after=4")
    said = run(*([*node, f"--node_rank={rank}", *words] for rank in range(2)))
    assert "launch      deepspeed, 2 processes on 2 nodes" in said
    assert curve(folder / "deepspeed") == truth[:4]


@pytest.mark.slurm
def test_four_tasks_on_two_nodes_give_the_losses_of_one_process(slurm: SlurmCluster, folder: Path) -> None:
    words = ["--training.steps=3", "--evaluation.rows=0"]
    output = folder / "four.out"
    number = slurm.submit(
        *("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", "--time=30"),
        *(f"--output={output}", "launcher/pretrain.sbatch", *arguments(folder / "four", *words)[1:]),
        env={"PYTHON": sys.executable},
        cwd=ROOT,
    )
    run(["python", *arguments(folder / "one", *words)])
    job = slurm.wait(number)
    assert job["JobState"] == "COMPLETED", output.read_text()
    assert (
        f"launch      srun, 4 processes on 2 nodes, rank 0 on {os.uname().nodename}, job {number}" in output.read_text()
    )
    assert "settings    OMP_NUM_THREADS=1" in output.read_text()
    assert "GLOO_SOCKET_IFNAME=lo" in output.read_text()
    one, four = curve(folder / "one"), curve(folder / "four")
    assert len(one) == len(four) == 3
    for expected, found in zip(one, four, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slurm
def test_preprocessing_under_srun_and_mpirun_makes_the_same_dataset(slurm: SlurmCluster, folder: Path) -> None:
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"Document {i} says: {'word ' * (i % 50)}" for i in range(400)))
    words = [
        sys.executable,
        "data_tools/preprocess.py",
        "strings",
        f"--input={text}",
        "--part-bytes=4096",
        "--workers=1",
    ]
    slurm_words = ["srun", "--nodes=2", "--ntasks=2", "--gpus-per-node=0", "--mpi=pmi2", "--time=10"]
    slurm.run(*slurm_words, *words, f"--output-prefix={folder}/srun", cwd=ROOT)
    run(["mpirun", "-n", "2", *words, f"--output-prefix={folder}/mpirun"])
    run([*words, f"--output-prefix={folder}/alone"])
    for name in ("srun", "mpirun"):
        for file in sorted(folder.glob("alone*.bin")) + sorted(folder.glob("alone*.idx")):
            assert (folder / file.name.replace("alone", name)).read_bytes() == file.read_bytes()


@pytest.mark.slurm
def test_a_disturbed_job_ends_bit_for_bit_as_if_nothing_had_been(
    disturbed: tuple[Disturbed, Future[None]] | None, truth: list[tuple[float, ...]]
) -> None:
    if disturbed is None:
        pytest.skip(why_not() or "")
    job, happening = disturbed
    happening.result(timeout=2 * SECONDS)
    said = job.said()
    assert "requeued to go on" in said, said
    assert "requeued 3 times" in said, said
    assert curve(job.folder) == truth
    left = sorted(path.name for path in (job.folder / "checkpoints").iterdir())
    assert left[-1] == f"step-{STEPS:08}"
