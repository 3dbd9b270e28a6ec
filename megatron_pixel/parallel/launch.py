"""Which rank this process is, told by whatever started it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_pixel.config.errors import UserError

_DEEPSPEEDS = {"CROSS_RANK", "CROSS_SIZE"}
"""Variables that DeepSpeed's launcher sets and torchrun does not: rank and number of the nodes."""
MEETING_SECONDS = 300.0
"""How long processes look for rank 0, where ``MEGATRON_PIXEL_MEETING_SECONDS`` says nothing else."""


@dataclass(frozen=True)
class Launch:
    """Place of this process among all that were started together."""

    launcher: str
    """``python``, ``torchrun``, ``deepspeed``, ``srun``, ``mpirun``."""
    rank: int
    world_size: int
    local_rank: int
    """Rank within the node, which is the number of its GPU."""
    master_addr: str
    """Host of rank 0; empty where the ranks tell each other through MPI."""
    master_port: int
    """0 where nobody has named one: :func:`megatron_pixel.parallel.meeting.meet` finds it."""
    job: str = ""
    """What only the processes of this start know, and all of them; empty where the port is named."""
    nodes: int = 1
    """Nodes that the processes are spread over, as far as the launcher tells."""
    here: int = 1
    """Processes on this node, likewise."""

    def variables(self) -> dict[str, str]:
        """The five environment variables that torch.distributed and DeepSpeed read."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": str(self.master_port),
        }


def read_launch(environ: Mapping[str, str]) -> Launch:
    """What the environment says.

    First comes RANK with its companions (torchrun, deepspeed), then a SLURM step (srun), then MPI's variables (Open
    MPI's, or PMI's as of MPICH and Intel); one process if none of them is there. MASTER_ADDR and MASTER_PORT count
    wherever they are set.

    Raises:
        UserError: variables that are missing, are no numbers, or contradict each other.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        missing = [n for n in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if n not in environ]
        if missing:
            raise UserError(
                f"the environment sets some of torch.distributed's variables but not {', '.join(missing)}: start with "
                "torchrun, deepspeed, srun or mpirun, or unset RANK and WORLD_SIZE to run one process"
            )
        # A launcher of one process per node may leave LOCAL_RANK out.
        local = "LOCAL_RANK" if "LOCAL_RANK" in environ else None
        launcher = "deepspeed" if _DEEPSPEEDS & environ.keys() else "torchrun"
        return _launch(launcher, environ, "RANK", "WORLD_SIZE", local)
    if _in_slurm_step(environ):
        return _launch("srun", environ, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    if "OMPI_COMM_WORLD_RANK" in environ:
        return _launch("mpirun", environ, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    if "PMI_RANK" in environ:
        return _launch("mpirun", environ, "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID")
    return Launch("python", 0, 1, 0, "127.0.0.1", 0)


def meeting_seconds(environ: Mapping[str, str]) -> float:
    """How long to look for rank 0. Raises UserError where the variable is no positive number."""
    value = environ.get("MEGATRON_PIXEL_MEETING_SECONDS")
    try:
        seconds = MEETING_SECONDS if value is None else float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"MEGATRON_PIXEL_MEETING_SECONDS is {value!r}, not a number of seconds above 0")
    return seconds


def first_host(nodelist: str) -> str:
    """First host of a SLURM node list: ``node[03-05,9],login1`` gives ``node03``."""
    match = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodelist)
    if match is None:
        raise UserError(f"cannot read the node list {nodelist!r} of SLURM: set MASTER_ADDR to the host of rank 0")
    return "".join(part or "" for part in match.groups())


def _in_slurm_step(environ: Mapping[str, str]) -> bool:
    # A batch script runs once, outside any step, although SLURM_NTASKS already holds the size of the job.
    in_batch_script = environ.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_NUM_TASKS" not in environ
    return "SLURM_PROCID" in environ and not in_batch_script


def _launch(
    launcher: str, environ: Mapping[str, str], rank_name: str, size_name: str, local_name: str | None
) -> Launch:
    rank, size = _number(environ, rank_name), _number(environ, size_name)
    local = 0 if local_name is None else _number(environ, local_name)
    if not 0 <= rank < size:
        raise UserError(f"{rank_name} is {rank} but {size_name} is {size}: ranks count from 0 to {size - 1}")
    port = _number(environ, "MASTER_PORT") if "MASTER_PORT" in environ else 0
    job = "" if port else _job(environ, launcher)
    nodes, here = _spread(environ, launcher, size)
    return Launch(launcher, rank, size, local, _master_addr(environ, launcher, nodes, job), port, job, nodes, here)


def _number(environ: Mapping[str, str], name: str) -> int:
    value = environ.get(name)
    if value is None or not value.isdecimal():
        state = "is not set" if value is None else f"is {value!r}, not a number"
        raise UserError(f"{name} {state}, although other variables of the same launcher are")
    return int(value)


def _job(environ: Mapping[str, str], launcher: str) -> str:
    """What tells this start from all others: a job that is requeued keeps its number and may leave processes behind."""
    if launcher == "srun" and "SLURM_JOB_ID" in environ:
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    elif "OMPI_COMM_WORLD_RANK" in environ:
        names = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_hnp_uri")
    else:
        return ""
    return " ".join(f"{name}={environ[name]}" for name in names if name in environ)


def _master_addr(environ: Mapping[str, str], launcher: str, nodes: int, job: str) -> str:
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"]
    if launcher == "srun":
        nodelist = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
        return first_host(nodelist) if nodelist and nodes > 1 else "127.0.0.1"
    if "MASTER_PORT" not in environ and not job:
        return ""  # MPICH's: rank 0 tells where it is
    if nodes > 1:
        raise UserError(f"mpirun started processes on {nodes} nodes: set MASTER_ADDR to the host of rank 0")
    return "127.0.0.1"


def _spread(environ: Mapping[str, str], launcher: str, size: int) -> tuple[int, int]:
    """Nodes of a start and processes of this node; 1 and all of them where the launcher does not tell."""
    if launcher == "srun":
        told = environ.get("SLURM_STEP_NUM_NODES") or environ.get("SLURM_NNODES") or "1"
        nodes = max(1, int(told)) if told.isdecimal() else 1
        return nodes, -(-size // nodes)
    # By torchrun, deepspeed, Open MPI, MPICH.
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
    here = next((int(environ[name]) for name in names if environ.get(name, "").isdecimal()), 0) or size
    return -(-size // here), here
