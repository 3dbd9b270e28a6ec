"""launcher/submit.py: the script it makes, and what it refuses before any queue is waited for."""

import subprocess
from pathlib import Path

import pytest

from launcher.cluster import Cluster, header, read_cluster, script, seconds_of
from launcher.submit import main, parse
from megatron_pixel.config.errors import UserError
from tests.launcher.slurm_cluster import SlurmCluster

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "launcher" / "clusters" / "32-gpus.yaml"
DEBUG = str(ROOT / "launcher" / "clusters" / "debug.yaml")
RECIPE = str(ROOT / "megatron_pixel" / "config" / "recipes" / "dualgpt-debug.yaml")
TEMPLATE = (ROOT / "launcher" / "pretrain.sbatch").read_text(encoding="utf-8").splitlines()
SMALL = ["--cluster", DEBUG, "--cluster.cpus_per_task", "1", "--config", RECIPE]


def lines_of_sbatch(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_the_papers_cluster_is_what_the_plain_script_asks_for() -> None:
    paper = read_cluster(PAPER, [])
    assert paper == Cluster()
    assert paper.processes == 32
    assert header(paper) == lines_of_sbatch("\n".join(TEMPLATE))


def test_print_shows_a_script_that_is_the_template_with_other_lines(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--cluster.partition", "big", "--cluster.modules", "cuda/12", "nccl", "--cluster.environment", "A=b c"]
    main([*SMALL, *changes, "--run.dir", "runs/a b", "--print"])
    text = capsys.readouterr().out
    assert "--partition=big" in lines_of_sbatch(text)
    assert "--signal=B:USR1@60" in lines_of_sbatch(text)
    assert "export MEGATRON_PIXEL_MODULES='cuda/12 nccl'" in text
    assert "export A='b c'" in text
    assert f"set -- --config {RECIPE} --run.dir 'runs/a b'" in text
    body = TEMPLATE[TEMPLATE.index("set -euo pipefail") :]
    assert text.splitlines()[-len(body) :] == body
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


def test_options_with_blanks_are_quoted() -> None:
    lines = lines_of_sbatch(script(Cluster(options=["--comment=two words"]), ["--config", "x"]))
    assert '--comment="two words"' in lines


def test_words_go_to_the_cluster_or_to_the_run() -> None:
    known, cluster, run = parse([*SMALL, "--cluster.nodes=3", "--data.text", "a", "b", "--cluster.modules", "c", "d"])
    assert (cluster.nodes, cluster.modules, known.config) == (3, ["c", "d"], RECIPE)
    assert run == ["--data.text", "a", "b"]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-12:30", 131400), ("infinite", None)],
)
def test_times_are_slurms(time: str, seconds: int | None) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--cluster.nodes", "0"], "cluster.nodes is 0, below 1"),
        (["--cluster.gpus_per_node", "0"], "set cluster.tasks_per_node"),
        (["--cluster.tasks_per_node", "2"], "cluster.tasks_per_node is 2, cluster.gpus_per_node 1: one task a GPU"),
        (["--cluster.time", "soon"], "cluster.time is 'soon', not a time such as 24:00:00"),
        (["--cluster.time", "0:02:00"], "leaves nothing before the warning"),
        (["--cluster.environment", "A"], "'A' is not NAME=VALUE"),
        (["--cluster.node", "2"], "did you mean --cluster.nodes"),
        (["--cluster.partition", "a\n#SBATCH --x"], "cannot stand in a line"),
    ],
)
def test_settings_that_cannot_be(words: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        parse([*SMALL, *words])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], None),
        (["--cluster.partition", "gpu"], "there is no partition 'gpu'; this cluster has test, urgent"),
        (
            ["--cluster.gpus_per_node", "4", "--parallel.tensor", "2"],
            "4 GPUs a node on 2 node(s); partition test has 0",
        ),
        (
            ["--cluster.cpus_per_task", "5"],
            "5 cores a node on 2 node(s); partition test has 0 with as many, the largest",
        ),
        (["--cluster.nodes", "4"], "cluster.nodes is 4, but partition test has 2 in all"),
        (["--cluster.time", "5:00:00"], "partition test allows 2:00:00 at the most"),
        (["--cluster.options=--constraint=a100"], "SLURM refuses the job: "),
        (["--run.dir", f"{RECIPE}/x"], "cannot be made"),
        (["--cluster.nodes", "3"], "training.global_batch_rows: 20 rows"),
        (["--optimizer.lrr", "1"], "did you mean --optimizer.lr"),
    ],
)
@pytest.mark.slurm
def test_refused_before_the_queue(
    words: list[str], reason: str | None, clean: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [*SMALL, "--run.dir", str(tmp_path / "run"), *words, "--check"]
    if reason is None:
        main(call)
        assert "nothing is wrong; SLURM: Job" in capsys.readouterr().out
    else:
        with pytest.raises(SystemExit) as ended:
            main(call)
        assert ended.value.code == 2
        assert reason in capsys.readouterr().err
    assert not clean.call("squeue", "-h"), "a check submits nothing"
    assert not (tmp_path / "run").exists()


@pytest.mark.slurm
def test_one_job_a_run(clean: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = [*SMALL, "--run.dir", str(tmp_path / "a run"), "--cluster.log", str(tmp_path / "%j.out")]
    main([*call, "--cluster.options=--hold"])
    number = capsys.readouterr().out.split()[1].rstrip(":")
    with pytest.raises(SystemExit):
        main(call)
    assert f"job {number} (pending) is for {tmp_path / 'a run'} already" in capsys.readouterr().err
    main([*call, "--cluster.options=--hold", "--cluster.dependency", f"afterany:{number}"])
    clean.call("scancel", number, capsys.readouterr().out.split()[1].rstrip(":"))
