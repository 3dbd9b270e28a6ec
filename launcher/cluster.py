"""What a SLURM cluster is like and how much of it a run gets: settings of launcher/submit.py, and the script made."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import build, parse_overrides
from megatron_pixel.config.source import read_recipe
from megatron_pixel.planning.devices import DEVICES

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "launcher" / "pretrain.sbatch"
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass
class Cluster:
    """A file about the cluster (YAML, the same keys) or ``--cluster.KEY VALUE``."""

    nodes: int = 4
    """Nodes of the job."""
    gpus_per_node: int = 8
    """GPUs of a node, each with a task of its own; 0 runs on CPU cores."""
    gpu: str | None = None
    """Name of the GPUs as `--dry-run --gpu` takes it: settings of the run that are ``auto`` are then chosen, and shown,
    when the job is submitted; null leaves them to the job."""
    tasks_per_node: int | None = None
    """Tasks of a node; null is one a GPU, and another number is refused where there are GPUs."""
    cpus_per_task: int = 8
    """Cores of a task: for its threads and the data loader's."""
    memory: str | None = None
    """Memory of a node such as ``500G``; ``0`` is all of it, null the cluster's default."""
    partition: str | None = None
    """Partition (queue); null is the cluster's default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    time: str = "24:00:00"
    """Time limit as SLURM writes it, ``days-hours:minutes:seconds``, in quotes. The job requeues itself until the run
    is complete."""
    lead: int = 300
    """Seconds before the time limit at which SLURM warns; at least twice a step and a save."""
    restarts: int = 3
    """How often the job starts its tasks again after a crash; an hour without one sets the count back."""
    array: str | None = None
    """A job array such as ``1-3``; %a in the settings of the run is the number of the task."""
    dependency: str | None = None
    """What to wait for, such as ``singleton`` (other jobs of this name) or ``afterany:12345``."""
    name: str = "megatron_pixel"
    """Name of the job."""
    log: str = "slurm-%j.out"
    """What the tasks say; %j is the number of the job. Requeued jobs go on writing at its end."""
    modules: list[str] = field(default_factory=list)
    """Modules to load, in order."""
    setup: str | None = None
    """A line of shell that runs on the first node before the tasks are started, such as ``source ~/env.sh``."""
    container: str | None = None
    """Image that the tasks run in; clone and ``container_mounts`` are seen inside under the same path."""
    container_runner: Literal["apptainer", "singularity", "pyxis"] = "apptainer"
    """What opens the image: a program on the nodes, or ``srun --container-image`` of the pyxis plugin."""
    container_mounts: list[str] = field(default_factory=list)
    """Further folders to be seen inside, such as the data's and the run's."""
    python: str | None = None
    """Python of the tasks; null is the clone's ``.venv``, in a container its ``python3``."""
    environment: list[str] = field(default_factory=list)
    """Variables of the tasks as ``NAME=VALUE``, such as ``NCCL_IB_HCA=mlx5``."""
    options: list[str] = field(default_factory=list)
    """Further options of sbatch, such as ``--constraint=a100``."""

    @property
    def tasks(self) -> int:
        """Tasks of a node."""
        return self.tasks_per_node or self.gpus_per_node

    @property
    def processes(self) -> int:
        """Processes of the run."""
        return self.nodes * self.tasks

    def check(self) -> None:
        """Raises UserError that lists everything that cannot be, whatever the cluster."""
        problems = [
            f"cluster.{name} is {value}, below {least}"
            for name, least in (("nodes", 1), ("gpus_per_node", 0), ("cpus_per_task", 1), ("lead", 1), ("restarts", 0))
            if (value := getattr(self, name)) < least
        ]
        if self.tasks < 1:
            problems.append("cluster.gpus_per_node is 0: set cluster.tasks_per_node, the processes of a node")
        elif self.gpus_per_node and self.tasks != self.gpus_per_node:
            problems.append(
                f"cluster.tasks_per_node is {self.tasks}, cluster.gpus_per_node {self.gpus_per_node}: one task a GPU"
            )
        if (limit := seconds_of(self.time)) is None:
            problems.append(f"cluster.time is {self.time!r}, not a time such as 24:00:00 or 2-12:00:00")
        elif limit <= 2 * self.lead:
            problems.append(
                f"cluster.time {self.time} leaves nothing before the warning, which SLURM sends up to a minute "
                f"earlier than cluster.lead {self.lead} s; ask for more than {2 * self.lead} s, or lower the lead"
            )
        if self.gpu is not None and self.gpu not in DEVICES:
            problems.append(f"cluster.gpu is {self.gpu!r}; valid: {', '.join(DEVICES)}")
        for entry in self.environment:
            if not re.fullmatch(r"[A-Za-z_]\w*=.*", entry, flags=re.DOTALL):
                problems.append(f"cluster.environment: {entry!r} is not NAME=VALUE")
        for text in (self.name, self.log, self.partition, self.account, self.qos, *self.options):
            if text is not None and (not text or "\n" in text):
                problems.append(f"cluster: {text!r} cannot stand in a line of the script")
        if problems:
            raise UserError("\n".join(problems))


def read_cluster(path: Path | None, overrides: Sequence[str]) -> Cluster:
    """The settings of a file, with ``--cluster.KEY VALUE`` on top; checked. Raises UserError."""
    values = {} if path is None else read_recipe(path, Cluster)
    given = parse_overrides(overrides, Cluster, "cluster")
    values.update({key.removeprefix("cluster."): origin for key, origin in given.items()})
    cluster = build(Cluster, values)
    cluster.check()
    return cluster


def seconds_of(time: str) -> int | None:
    """SLURM's ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds``, ``days-hours[:minutes[:seconds]]``."""
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    first, second, third = (int(match[name] or 0) for name in ("first", "second", "third"))
    if match["days"] is not None:
        return int(match["days"]) * 86400 + first * 3600 + second * 60 + third
    if match["third"] is not None:
        return first * 3600 + second * 60 + third
    return first * 60 + second


def header(cluster: Cluster) -> list[str]:
    """The options of sbatch, in the order of the script."""
    optional = {
        "mem": cluster.memory,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "array": cluster.array,
        "dependency": cluster.dependency,
    }
    return [
        f"--job-name={cluster.name}",
        f"--nodes={cluster.nodes}",
        f"--ntasks-per-node={cluster.tasks}",
        *([f"--gpus-per-node={cluster.gpus_per_node}"] if cluster.gpus_per_node else []),
        f"--cpus-per-task={cluster.cpus_per_task}",
        *(f"--{name}={value}" for name, value in optional.items() if value is not None),
        f"--time={cluster.time}",
        f"--signal=B:USR1@{cluster.lead}",
        "--requeue",
        f"--output={cluster.log}",
        "--open-mode=append",
        *cluster.options,
    ]


def variables(cluster: Cluster) -> Mapping[str, str]:
    """What the script reads from its environment."""
    container = {
        "MEGATRON_PIXEL_CONTAINER": cluster.container,
        "MEGATRON_PIXEL_CONTAINER_RUNNER": cluster.container_runner if cluster.container else None,
        "MEGATRON_PIXEL_MOUNTS": " ".join(cluster.container_mounts) if cluster.container else None,
    }
    found = {
        "MEGATRON_PIXEL_ROOT": str(ROOT),
        "MEGATRON_PIXEL_RESTARTS": str(cluster.restarts),
        "MEGATRON_PIXEL_MODULES": " ".join(cluster.modules),
        "MEGATRON_PIXEL_SETUP": cluster.setup,
        **container,
        "PYTHON": cluster.python,
        **dict(entry.split("=", 1) for entry in cluster.environment),
    }
    return {name: value for name, value in found.items() if value}


def script(cluster: Cluster, words: Sequence[str]) -> str:
    """The batch script of a run: pretrain.sbatch with this cluster's lines and variables, and the run's arguments.

    Args:
        words: ``--config RECIPE`` and the settings of the run.
    """
    lines = TEMPLATE.read_text(encoding="utf-8").splitlines()
    body = lines[lines.index("set -euo pipefail") :]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables(cluster).items()]
    return "\n".join(
        [
            lines[0],
            "# Made by launcher/submit.py of launcher/pretrain.sbatch; docs/cluster.md explains it.",
            *(f"#SBATCH {_quoted(option)}" for option in header(cluster)),
            *exports,
            f"set -- {shlex.join(words)}",
            *body,
            "",
        ]
    )


def _quoted(option: str) -> str:
    """An option as sbatch reads it in a script, where blanks end it outside quotes."""
    name, equals, value = option.partition("=")
    return f'{name}{equals}"{value}"' if re.search(r"[\s#]", value) else option
