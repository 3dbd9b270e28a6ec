"""launcher/pretrain.sbatch with a stand-in for SLURM's commands: what it hands to the tasks, and when it refuses."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launcher" / "pretrain.sbatch"
SCONTROL = r"""#!/usr/bin/env bash
case "$*" in
  "show hostnames node[3-4]") printf 'node3\nnode4\n' ;;
  "show node node3") printf 'NodeName=node3 Arch=x86_64\n   NodeAddr=10.0.0.3 NodeHostName=host3 Version=22\n' ;;
  "show node node4") printf 'NodeName=node4 Arch=x86_64\n   NodeAddr=10.0.0.4 NodeHostName=host4 Version=22\n' ;;
  "show job 123456") printf 'JobId=123456\n   StartTime=x EndTime=2026-01-01T00:00:00 Deadline=N/A\n'
    printf '   JobState=%s Reason=None\n' "$STATE"
    printf '   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=%s\n' "$PREEMPTED" ;;
  "requeue 123456") echo requeue >> "$0.log" ;;
  *) exit 1 ;;
esac
"""
SRUN = r"""#!/usr/bin/env bash
echo "MASTER=$MASTER_ADDR:${MASTER_PORT:-} THREADS=$OMP_NUM_THREADS PWD=$PWD" \
  "END=${MEGATRON_PIXEL_END_TIME:-} LEAD=$MEGATRON_PIXEL_LEAD"
printf 'word: %s\n' "$@"
exit 65
"""


WAITING = r"""#!/usr/bin/env bash
trap 'echo saved; exit 75' USR1
trap 'echo killed; exit 143' TERM
echo "tasks started"
for _ in {1..6000}; do sleep 0.05; done
"""
"""Tasks that save when they are asked to by SIGUSR1; SIGTERM makes srun kill them."""


def batch_job(folder: Path, srun: str, environment: dict[str, str]) -> tuple[Path, dict[str, str]]:
    """A copy of the script in a spool folder, with stand-ins for SLURM's commands; the environment of a job."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    for name, text in (("scontrol", SCONTROL), ("srun", srun)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    copy = folder / "slurm_script"
    copy.write_bytes(SCRIPT.read_bytes())
    job = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[3-4]",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_NTASKS": "16",
        "PYTHON": "/some/python",
        "TZ": "UTC",
        "STATE": "RUNNING",
        "PREEMPTED": "None",
    }
    # An empty value stands for a variable that is not set.
    return copy, {name: value for name, value in (job | environment).items() if value}


def submit(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a batch job would."""
    script, job = batch_job(folder, SRUN, environment)
    return subprocess.run(
        ["bash", str(script), *arguments], check=False, capture_output=True, text=True, cwd=folder, env=job
    )


@pytest.mark.parametrize(
    ("number", "state", "preempted", "said", "requeues"),
    [
        (signal.SIGTERM, "RUNNING", "None", "stopped on demand; submit the same command again to go on", 0),
        (signal.SIGTERM, "RUNNING", "2026-01-01T00:00:00", "requeued to go on", 1),
        (signal.SIGTERM, "CANCELLED", "None", "cancelled; submit the same command again to go on", 0),
        (signal.SIGUSR1, "RUNNING", "None", "requeued to go on", 1),
        (signal.SIGUSR1, "CANCELLED", "None", "cancelled; submit the same command again to go on", 0),
    ],
)
def test_what_a_signal_means_is_for_slurm_to_tell(
    tmp_path: Path, number: signal.Signals, state: str, preempted: str, said: str, requeues: int
) -> None:
    """Preempted it comes back, and not where its user wants it no more; the tasks save in any case."""
    script, job = batch_job(tmp_path, WAITING, {"STATE": state, "PREEMPTED": preempted})
    output = tmp_path / "out"
    with output.open("w") as file:
        shell = subprocess.Popen(
            ["bash", str(script), "--config", "x"], stdout=file, stderr=file, cwd=tmp_path, env=job
        )
        try:
            end = time.monotonic() + 120
            while "tasks started" not in output.read_text() and time.monotonic() < end:
                time.sleep(0.02)
            shell.send_signal(number)
            assert shell.wait(120) == 75
        finally:
            shell.kill()
    text = output.read_text()
    assert f"got {number.name}; the tasks finish their step and save" in text
    assert "saved" in text
    assert "killed" not in text
    assert f"job 123456: {said}" in text
    log = tmp_path / "bin" / "scontrol.log"
    assert (log.read_text() if log.exists() else "").count("requeue") == requeues


def test_tasks_get_the_arguments_and_the_meeting_point(tmp_path: Path) -> None:
    done = submit(tmp_path, "--config", "a recipe.yaml", "--data.text", "1:a b", "*")
    assert done.returncode == 65, "the status of srun is the status of the job"
    assert f"MASTER=10.0.0.3: THREADS=6 PWD={ROOT} END=1767225600 LEAD=300" in done.stdout
    words = [line.removeprefix("word: ") for line in done.stdout.splitlines() if line.startswith("word: ")]
    program = words.index("/some/python")
    assert "--cpus-per-task=6" in words[:program]
    assert words[program + 1 :] == [
        *("-u", "megatron_pixel/pretrain.py", "--config", "a recipe.yaml", "--data.text", "1:a b", "*")
    ]


def test_the_environment_wins(tmp_path: Path) -> None:
    done = submit(tmp_path, "--config", "x", MASTER_ADDR="here", MASTER_PORT="77", OMP_NUM_THREADS="2")
    assert "MASTER=here:77 THREADS=2" in done.stdout


def words_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 65, done.stderr
    return [line.removeprefix("word: ") for line in done.stdout.splitlines() if line.startswith("word: ")]


def test_tasks_run_in_a_container(tmp_path: Path) -> None:
    container = {"MEGATRON_PIXEL_CONTAINER": "/images/a.sif", "MEGATRON_PIXEL_MOUNTS": "/data /runs", "PYTHON": ""}
    mounts = f"{ROOT}:{ROOT},/data:/data,/runs:/runs"
    for name in ("apptainer", "pyxis", "none"):
        (tmp_path / name / "bin").mkdir(parents=True)
    runner = tmp_path / "apptainer" / "bin" / "apptainer"
    runner.touch()
    runner.chmod(0o755)
    words = words_of(submit(tmp_path / "apptainer", "--config", "x", **container))
    at = words.index("apptainer")
    assert words[at : at + 8] == f"apptainer exec --nv --bind {mounts} --pwd {ROOT} /images/a.sif".split()
    assert words[at + 8 :] == ["python3", "-u", "megatron_pixel/pretrain.py", "--config", "x"]
    pyxis = {**container, "MEGATRON_PIXEL_CONTAINER_RUNNER": "pyxis"}
    words = words_of(submit(tmp_path / "pyxis", "--config", "x", **pyxis))
    assert {"--container-image=/images/a.sif", f"--container-mounts={mounts}"} <= set(words[: words.index("python3")])
    done = submit(tmp_path / "none", "--config", "x", **container)
    assert (done.returncode, done.stderr) == (2, "error: no apptainer on this node for the container /images/a.sif\n")


def test_modules_and_setup_come_before_the_tasks(tmp_path: Path) -> None:
    made = {"BASH_FUNC_module%%": '() { echo "module $*"; export OMP_NUM_THREADS=3; }'}
    done = submit(
        tmp_path,
        *("--config", "x"),
        MEGATRON_PIXEL_MODULES="cuda/12 nccl",
        MEGATRON_PIXEL_SETUP="export MASTER_ADDR=$NOT_SET.setup",
        **made,
    )
    assert "module load cuda/12 nccl" in done.stdout
    assert "MASTER=.setup: THREADS=3" in done.stdout


def test_an_array_task_has_its_number_in_its_settings(tmp_path: Path) -> None:
    array = {"SLURM_ARRAY_JOB_ID": "123456", "SLURM_ARRAY_TASK_ID": "7", "MASTER_ADDR": "here"}
    words = words_of(submit(tmp_path, "--run.dir", "runs/%a", "--training.seed=%a", **array))
    assert words[-3:] == ["--run.dir", "runs/7", "--training.seed=7"]


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ([], {}, "no arguments; usage: sbatch launcher/pretrain.sbatch --config RECIPE"),
        (["--config", "x"], {"SLURM_JOB_ID": ""}, "not inside a SLURM job; submit with: sbatch"),
        (["--config", "x"], {"SLURM_SUBMIT_DIR": "/"}, "no megatron_pixel/pretrain.py in /; submit from the clone"),
        (["--config", "x"], {"SLURM_JOB_NODELIST": "nodeX"}, "scontrol lists no host for nodeX"),
        (["--config", "x"], {"MEGATRON_PIXEL_SETUP": "false"}, "MEGATRON_PIXEL_SETUP failed: false"),
        (
            ["--config", "x"],
            {"MEGATRON_PIXEL_CONTAINER": "a", "MEGATRON_PIXEL_CONTAINER_RUNNER": "docker"},
            "MEGATRON_PIXEL_CONTAINER_RUNNER is 'docker'; known: apptainer, singularity, pyxis",
        ),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], environment: dict[str, str], reason: str) -> None:
    done = submit(tmp_path, *arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {reason}")
