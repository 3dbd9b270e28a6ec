"""Variables that libraries read when they start: threads, network interfaces, NCCL. Chosen before torch is imported.

What is set already stays. Every rank chooses by the same rules, whatever launcher started it; the start block of a run
prints the values (:func:`describe`).
"""

import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence

from megatron_pixel.parallel.launch import Launch

SHOWN = (
    "OMP_NUM_THREADS",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "GLOO_SOCKET_IFNAME",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
)
"""What the start block shows besides every other NCCL variable that is set."""


def choose(launch: Launch, environ: Mapping[str, str], cores: int, interface: str | None) -> dict[str, str]:
    """The variables that are not set yet, with the values that suit this launch.

    Args:
        cores: of this process, or of all processes of its node where the launcher does not bind them.
        interface: by which this node reaches rank 0, see :func:`interface_towards`; None where that is not known.
    """
    # srun and mpirun bind each process to its own cores, torchrun and deepspeed let all share the node's.
    bound = environ.get("SLURM_CPUS_PER_TASK", "")
    share = int(bound) if launch.launcher == "srun" and bound.isdecimal() else cores // launch.here
    chosen = {
        "OMP_NUM_THREADS": str(max(1, min(share, cores))),
        # Megatron's tensor-parallel layers count on kernels starting in the order of their launches.
        "CUDA_DEVICE_MAX_CONNECTIONS": "1",
        "NCCL_DEBUG": "WARN",  # says which interface, device or peer an error is about, and nothing else
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",  # a rank that is gone ends the others instead of stopping them
    }
    if launch.nodes > 1 and interface is not None:
        # Left alone, gloo takes the address of the host's own name, which is often the loopback, and NCCL the first
        # interface of a list. InfiniBand carries NCCL's data in any case; this is how its processes find each other.
        chosen |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return {name: value for name, value in chosen.items() if name not in environ}


def set_environment(launch: Launch, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set what :func:`choose` finds for this process; call it before torch is imported."""
    interface = interface_towards(launch.master_addr) if launch.nodes > 1 and launch.master_addr else None
    environ.update(choose(launch, environ, len(os.sched_getaffinity(0)), interface))


def describe(launch: Launch, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Lines of the start block, by name: how the run was launched, and the values of the variables."""
    if launch.launcher == "python":
        start = "python, one process"
    else:
        nodes = f" on {launch.nodes} nodes" if launch.nodes > 1 else ""
        start = f"{launch.launcher}, {launch.world_size} processes{nodes}, rank 0 on {socket.gethostname()}"
    job = environ.get("SLURM_JOB_ID")
    if launch.launcher == "srun" and job:
        again = int(environ.get("SLURM_RESTART_COUNT") or 0)
        start += f", job {job}" + (f", requeued {again} times" if again > 1 else ", requeued once" if again else "")
    names = [*SHOWN, *sorted(name for name in environ if name.startswith("NCCL_") and name not in SHOWN)]
    values = ", ".join(f"{name}={environ[name]}" for name in names if name in environ)
    return {"launch": start, "settings": values}


def interface_towards(host: str, interfaces: Sequence[tuple[str, str]] | None = None) -> str | None:
    """The network interface by which this host reaches another; None where that cannot be told.

    Args:
        host: name or address.
        interfaces: name and IPv4 address of each, by default those of this host.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # a datagram socket sends nothing to connect
            own = probe.getsockname()[0]
    except OSError:
        return None
    if interfaces is None:
        import psutil

        interfaces = [(name, each.address) for name, found in psutil.net_if_addrs().items() for each in found]
    return next((name for name, address in interfaces if address == own), None)
