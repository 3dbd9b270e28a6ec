"""launcher/preprocess.sbatch with a stand-in for srun: what it hands to the ranks, and when it refuses."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "launcher" / "preprocess.sbatch"


def submit(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a batch job would, from a copy in a spool folder."""
    srun = folder / "srun"
    srun.write_text(
        '#!/usr/bin/env bash\necho "THREADS=$OMP_NUM_THREADS PWD=$PWD"\nprintf "word: %s\\n" "$@"\nexit 7\n'
    )
    srun.chmod(0o755)
    copy = folder / "slurm_script"
    copy.write_bytes(SCRIPT.read_bytes())
    job = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[3-4]",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_CPUS_PER_TASK": "6",
        "SLURM_NTASKS": "2",
        "PYTHON": "/python",
    }
    call = ["bash", str(copy), *arguments]
    return subprocess.run(call, capture_output=True, text=True, env={**job, **environment}, timeout=60)


def test_every_rank_gets_the_command_and_a_worker_for_each_core(tmp_path):
    words = ["pixels", "--input", "a file.jsonl", "--output-prefix", "p"]
    done = submit(tmp_path, *words)
    assert done.returncode == 7  # srun's
    lines = done.stdout.splitlines()
    assert lines[0] == "job 123456: 2 ranks of 6 processes on node[3-4]"
    assert lines[1] == f"THREADS=1 PWD={ROOT}"
    found = [line.removeprefix("word: ") for line in lines[2:]]
    assert found[:3] == ["--mpi=pmi2", "--cpus-per-task=6", "--kill-on-bad-exit=1"]
    assert found[3:] == ["/python", "-u", "data_tools/preprocess.py", *words, "--workers", "6"]
    assert "word: --mpi=pmix" in submit(tmp_path, *words, MPI_INTERFACE="pmix").stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (
            ["pixels"],
            {"SLURM_JOB_ID": ""},
            "error: not inside a SLURM job; submit with: sbatch launcher/preprocess.sbatch",
        ),
        ([], {}, "error: no arguments; usage: sbatch launcher/preprocess.sbatch"),
        (["pixels"], {"SLURM_SUBMIT_DIR": "/"}, "error: no data_tools/preprocess.py in /; submit from the clone"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, arguments, environment, message):
    done = submit(tmp_path, *arguments, **environment)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
