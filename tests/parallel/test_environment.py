import pytest

from megatron_pixel.parallel.environment import choose, describe, interface_towards
from megatron_pixel.parallel.launch import Launch

ALONE = Launch("python", 0, 1, 0, "127.0.0.1", 0)
TASK = Launch("srun", 3, 16, 3, "10.0.0.1", 0, "job 7", nodes=2, here=8)
SHARED = Launch("torchrun", 1, 4, 1, "127.0.0.1", 29500, here=4)


@pytest.mark.parametrize(
    ("launch", "environ", "cores", "threads"),
    [
        (ALONE, {}, 6, "6"),
        (TASK, {"SLURM_CPUS_PER_TASK": "7"}, 7, "7"),
        (TASK, {"SLURM_CPUS_PER_TASK": "7"}, 4, "4"),  # more threads than cores only wait for each other
        (SHARED, {}, 16, "4"),
        (SHARED, {}, 2, "1"),
    ],
)
def test_threads_share_the_cores(launch: Launch, environ: dict[str, str], cores: int, threads: str) -> None:
    assert choose(launch, environ, cores, None)["OMP_NUM_THREADS"] == threads


def test_what_is_set_stays() -> None:
    environ = {"OMP_NUM_THREADS": "3", "NCCL_DEBUG": "INFO", "NCCL_SOCKET_IFNAME": "ib0"}
    chosen = choose(TASK, environ, 8, "eth1")
    assert chosen.keys().isdisjoint(environ)
    assert chosen["GLOO_SOCKET_IFNAME"] == "eth1"


def test_an_interface_is_chosen_over_several_nodes_only() -> None:
    assert choose(TASK, {}, 8, "eth1")["NCCL_SOCKET_IFNAME"] == "eth1"
    for launch, interface in ((SHARED, "eth1"), (TASK, None)):
        assert not [name for name in choose(launch, {}, 8, interface) if name.endswith("IFNAME")]


def test_the_interface_is_the_one_that_the_system_would_take() -> None:
    assert interface_towards("127.0.0.1") == "lo"
    assert interface_towards("127.0.0.1", [("eth0", "10.0.0.2"), ("loop", "127.0.0.1")]) == "loop"
    assert interface_towards("no-such-host.invalid") is None


def test_the_start_block_shows_launch_and_values() -> None:
    environ = {
        "SLURM_JOB_ID": "70",
        "SLURM_RESTART_COUNT": "2",
        "NCCL_DEBUG": "WARN",
        "NCCL_IB_HCA": "mlx5",
        "OMP_NUM_THREADS": "8",
    }
    lines = describe(TASK, environ)
    assert lines["launch"].startswith("srun, 16 processes on 2 nodes, rank 0 on ")
    assert lines["launch"].endswith(", job 70, requeued 2 times")
    assert lines["settings"] == "OMP_NUM_THREADS=8, NCCL_DEBUG=WARN, NCCL_IB_HCA=mlx5"
    assert describe(ALONE, {})["launch"] == "python, one process"
