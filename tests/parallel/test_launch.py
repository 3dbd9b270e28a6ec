import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.launch import Launch, first_host, meeting_seconds, read_launch

PLACE = {"MASTER_ADDR": "head", "MASTER_PORT": "4000"}
TORCH = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", **PLACE}
DEEPSPEED = {"LOCAL_SIZE": "2", "CROSS_RANK": "2", "CROSS_SIZE": "4"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "70123",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


STEP = "SLURM_JOB_ID=70123 SLURM_STEP_ID=2"


@pytest.mark.parametrize(
    ("environ", "launch"),
    [
        (TORCH, Launch("torchrun", 5, 8, 1, "head", 4000, "", 1, 8)),
        ({**TORCH, "LOCAL_WORLD_SIZE": "4"}, Launch("torchrun", 5, 8, 1, "head", 4000, "", 2, 4)),
        ({**TORCH, **DEEPSPEED}, Launch("deepspeed", 5, 8, 1, "head", 4000, "", 4, 2)),
        ({**SLURM, **TORCH, **DEEPSPEED}, Launch("deepspeed", 5, 8, 1, "head", 4000, "", 4, 2)),
        (SLURM, Launch("srun", 5, 8, 1, "gpu07", 0, STEP, 2, 4)),
        (
            {**SLURM, "SLURM_RESTART_COUNT": "3"},
            Launch("srun", 5, 8, 1, "gpu07", 0, f"{STEP} SLURM_RESTART_COUNT=3", 2, 4),
        ),
        ({**SLURM, **PLACE}, Launch("srun", 5, 8, 1, "head", 4000, "", 2, 4)),
        ({**SLURM, "SLURM_STEP_NUM_NODES": "1"}, Launch("srun", 5, 8, 1, "127.0.0.1", 0, STEP, 1, 8)),
        ({**SLURM, "PMI_RANK": "5", "PMI_SIZE": "8"}, Launch("srun", 5, 8, 1, "gpu07", 0, STEP, 2, 4)),
        ({**SLURM, **TORCH}, Launch("torchrun", 5, 8, 1, "head", 4000, "", 1, 8)),
        (OPEN_MPI, Launch("mpirun", 1, 2, 1, "", 0, "", 1, 2)),
        ({**OPEN_MPI, "PMIX_NAMESPACE": "x"}, Launch("mpirun", 1, 2, 1, "127.0.0.1", 0, "PMIX_NAMESPACE=x", 1, 2)),
        ({**OPEN_MPI, **PLACE}, Launch("mpirun", 1, 2, 1, "head", 4000, "", 1, 2)),
        (MPICH, Launch("mpirun", 1, 2, 1, "", 0, "", 1, 2)),
        ({**MPICH, "PMI_SIZE": "6"}, Launch("mpirun", 1, 6, 1, "", 0, "", 3, 2)),
    ],
)
def test_launchers_are_read(environ: dict[str, str], launch: Launch) -> None:
    assert read_launch(environ) == launch


@pytest.mark.parametrize(
    "environ",
    [
        {},
        # A batch script runs once, whatever the size of its job.
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"},
    ],
)
def test_plain_python_is_one_process(environ: dict[str, str]) -> None:
    launch = read_launch(environ)
    assert (launch.launcher, launch.rank, launch.world_size) == ("python", 0, 1)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "0"}, "not WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2"}, "not RANK, MASTER_ADDR, MASTER_PORT"),
        ({**TORCH, "RANK": "8"}, "RANK is 8 but WORLD_SIZE is 8"),
        ({**TORCH, "RANK": "one"}, "RANK is 'one', not a number"),
        ({**TORCH, "MASTER_PORT": ""}, "MASTER_PORT is '', not a number"),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, "SLURM_NTASKS is not set"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_SIZE": "4", "MASTER_PORT": "4000"}, "on 2 nodes: set MASTER_ADDR"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "MPI_LOCALRANKID is not set"),
    ],
)
def test_broken_environments_are_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_launch(environ)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[03-05,9],login1", "node03"),
        ("rack2-gpu[7,9]", "rack2-gpu7"),
        ("gpu[1-4].site.org", "gpu1.site.org"),
    ],
)
def test_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_seconds_to_look_for_rank_0() -> None:
    assert meeting_seconds({}) == 300
    assert meeting_seconds({"MEGATRON_PIXEL_MEETING_SECONDS": "2.5"}) == 2.5
    for value in ("soon", "0", "-1", "nan", "inf"):
        with pytest.raises(UserError, match="MEGATRON_PIXEL_MEETING_SECONDS is"):
            meeting_seconds({"MEGATRON_PIXEL_MEETING_SECONDS": value})
