"""launcher/pretrain.sbatch with a stand-in for SLURM's commands: what it hands to the tasks, and when it refuses."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launcher" / "pretrain.sbatch"
SCONTROL = r"""#!/usr/bin/env bash
case "$*" in
  "show hostnames node[3-4]") printf 'node3\nnode4\n' ;;
  "show node node3") printf 'NodeName=node3 Arch=x86_64\n   NodeAddr=10.0.0.3 NodeHostName=host3 Version=22\n' ;;
  "show node node4") printf 'NodeName=node4 Arch=x86_64\n   NodeAddr=10.0.0.4 NodeHostName=host4 Version=22\n' ;;
  "show job 123456") printf 'JobId=123456\n   StartTime=x EndTime=2026-01-01T00:00:00 Deadline=N/A\n' ;;
  *) exit 1 ;;
esac
"""
SRUN = r"""#!/usr/bin/env bash
echo "MASTER=$MASTER_ADDR:${MASTER_PORT:-} THREADS=$OMP_NUM_THREADS PWD=$PWD" \
  "END=${MEGATRON_PIXEL_END_TIME:-} LEAD=$MEGATRON_PIXEL_LEAD"
printf 'word: %s\n' "$@"
exit 65
"""


def submit(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a batch job would, from a copy in a spool folder."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
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
    }
    job |= environment
    # An empty value stands for a variable that is not set.
    return subprocess.run(
        ["bash", str(copy), *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={name: value for name, value in job.items() if value},
    )


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


@pytest.mark.parametrize(
    ("arguments", "environment", "reason"),
    [
        ([], {}, "no arguments; usage: sbatch launcher/pretrain.sbatch --config RECIPE"),
        (["--config", "x"], {"SLURM_JOB_ID": ""}, "not inside a SLURM job; submit with: sbatch"),
        (["--config", "x"], {"SLURM_SUBMIT_DIR": "/"}, "no megatron_pixel/pretrain.py in /; submit from the clone"),
        (["--config", "x"], {"SLURM_JOB_NODELIST": "nodeX"}, "scontrol lists no host for nodeX"),
    ],
)
def test_refusals(tmp_path: Path, arguments: list[str], environment: dict[str, str], reason: str) -> None:
    done = submit(tmp_path, *arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {reason}")
