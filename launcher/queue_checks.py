"""What SLURM tells about its partitions before a job waits for them, and the refusals that follow from it."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.cluster import Cluster, seconds_of
from megatron_pixel.config.errors import UserError

COMMENT = "megatron_pixel:"
"""What a job's comment begins with; behind it stands the run's folder."""
_GPUS = re.compile(r"\bgpu:(?:[^:,()]+:)?(\d+)")


@dataclass(frozen=True)
class Node:
    """A node as ``sinfo`` shows it."""

    name: str
    cpus: int
    gpus: int
    state: str


def available() -> bool:
    """Whether SLURM's commands are here."""
    return shutil.which("sbatch") is not None and shutil.which("sinfo") is not None


def check_queue(cluster: Cluster) -> None:
    """Refuse what no waiting makes possible: no such partition, too few nodes, GPUs or cores, too long a time.

    Raises:
        UserError: names what was asked for, what there is, and the setting.
    """
    partitions = {}
    for line in _told("sinfo", "-h", "-o", "%P|%l").splitlines():
        name, _, limit = line.partition("|")
        partitions[name.rstrip("*")] = limit
        if name.endswith("*"):
            partitions.setdefault("", name.rstrip("*"))
    partition = cluster.partition or partitions.get("")
    names = ", ".join(name for name in partitions if name)
    if partition is None:
        raise UserError(f"cluster.partition: this cluster has no default; name one of {names}")
    if partition not in partitions:
        raise UserError(f"cluster.partition: there is no partition {partition!r}; this cluster has {names}")
    _check_time(cluster, partition, partitions[partition])
    _check_nodes(cluster, partition, _nodes(partition))


def check_running(folder: str) -> None:
    """Refuse a second job for a run's folder: the first one goes on by itself.

    Raises:
        UserError: names the job.
    """
    for line in _told("squeue", "-h", "-o", "%i|%T|%k").splitlines():
        number, state, comment = line.split("|", 2)
        if comment.strip() == COMMENT + folder:
            raise UserError(
                f"run.dir: job {number} ({state.lower()}) is for {folder} already, and requeues itself until the run "
                f"is complete; end it (scancel {number}), chain this job with --cluster.dependency singleton, or "
                "choose another run.dir"
            )


def submit(script: str, folder: str, test_only: bool = False) -> str:
    """Hand the script of the run in ``folder`` to sbatch.

    Returns:
        What it prints: the number of the job, or with ``test_only`` when it could start.

    Raises:
        UserError: SLURM refuses it; with its own words.
    """
    words = ["sbatch", f"--comment={COMMENT}{folder}", "--test-only" if test_only else "--parsable"]
    done = subprocess.run(words, input=script, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise UserError(f"SLURM refuses the job: {_last_words(done.stderr)}")
    return (done.stderr if test_only else done.stdout).strip()


def _check_time(cluster: Cluster, partition: str, limit: str) -> None:
    longest, asked = seconds_of(limit), seconds_of(cluster.time)
    if longest is not None and asked is not None and asked > longest:
        raise UserError(
            f"cluster.time is {cluster.time}, but partition {partition} allows {limit} at the most; the job requeues "
            "itself, so a shorter time serves as well"
        )


def _check_nodes(cluster: Cluster, partition: str, nodes: Sequence[Node]) -> None:
    if len(nodes) < cluster.nodes:
        raise UserError(f"cluster.nodes is {cluster.nodes}, but partition {partition} has {len(nodes)} in all")
    cores = cluster.tasks * cluster.cpus_per_task
    for wanted, there, kind, setting in (
        (cluster.gpus_per_node, [node.gpus for node in nodes], "GPUs", "cluster.gpus_per_node"),
        (cores, [node.cpus for node in nodes], "cores", "cluster.cpus_per_task x tasks"),
    ):
        enough = [count for count in there if count >= wanted]
        if len(enough) < cluster.nodes:
            raise UserError(
                f"{setting} asks for {wanted} {kind} a node on {cluster.nodes} node(s); partition {partition} has "
                f"{len(enough)} with as many, the largest has {max(there)}"
            )


def _nodes(partition: str) -> list[Node]:
    found = []
    for line in _told("sinfo", "-h", "-N", "-p", partition, "-o", "%N|%c|%G|%T").splitlines():
        name, cpus, resources, state = line.split("|")
        gpus = sum(int(count) for count in _GPUS.findall(resources))
        found.append(Node(name, int(cpus), gpus, state))
    return found


def _told(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise UserError(f"{words[0]} failed: {_last_words(done.stderr)}; does SLURM answer here?")
    return done.stdout


def _last_words(text: str) -> str:
    """SLURM's message without the program's name before each line."""
    lines = [re.sub(r"^\w+: (error: |allocation failure: )?", "", line) for line in text.strip().splitlines()]
    return "; ".join(line for line in lines if line) or "without a word"
