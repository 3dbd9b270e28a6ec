"""Where the processes of a run meet: a store that rank 0 opens and all others find.

A port that is only known to be free may be taken a moment later, and a port computed from a job's number may be in use
by another job of the node. So rank 0 *opens* the first of several ports that it gets, and writes the name of its job
into the store behind it; the others try the ports in turn and stay where they find that name. Under MPICH's mpirun, rank
0 takes any free port and tells it through MPI. Where MASTER_PORT is set, it is that port and no other.
"""

import hashlib
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.launch import Launch

CANDIDATES = 8
"""Ports that a job may meet at: more than there are jobs on a node that compute the same ones."""
FIRST_PORT, PORTS = 10_000, 20_000
"""Below 32768 the kernel hands out no port to anybody's outgoing connections."""
UNKNOWN_NAME_SECONDS = 20.0
"""A name server may fail for a moment; a name that it does not know for so long is wrong."""
ANSWER_SECONDS = 5.0
"""For a store to answer once it is connected to; what listens there may be no store at all."""
_KEY = "megatron_pixel/job"


@dataclass(frozen=True)
class Place:
    """Where rank 0 may be found, and the name by which it is known there."""

    addresses: tuple[str, ...]
    ports: tuple[int, ...]
    job: str
    """Empty where one port was named by the user or the launcher, and nobody else is expected behind it."""

    def __str__(self) -> str:
        return f"{' or '.join(self.addresses)}, port {' or '.join(map(str, self.ports))}"


def meet(launch: Launch, seconds: float) -> dist.Store:
    """The store of this run, opened by rank 0 and found by the others.

    Args:
        launch: which rank this is, and where to meet. Not a single process.
        seconds: how long to look for rank 0.

    Raises:
        UserError: rank 0 gets no port, or cannot be found; with the reason of the last attempt.
    """
    if launch.launcher == "mpirun" and not launch.job and launch.master_port == 0:
        place, store = _tell_by_mpi(launch, seconds)
    else:
        ports = ports_of(launch.job) if launch.job and not launch.master_port else (launch.master_port,)
        place, store = Place((launch.master_addr,), ports, launch.job), None
    if launch.rank == 0:
        return store or _open(place, seconds, launch)
    return _find(place, seconds, launch)


def ports_of(job: str) -> tuple[int, ...]:
    """The ports that a job may meet at, the same on all of its processes."""
    numbers = (hashlib.sha256(f"{job} {i}".encode()).digest() for i in range(CANDIDATES))
    return tuple(FIRST_PORT + int.from_bytes(digest[:4]) % PORTS for digest in numbers)


def _open(place: Place, seconds: float, launch: Launch) -> dist.Store:
    reasons = []
    for port in place.ports:
        try:
            store = _server(port, seconds)
        except (dist.DistStoreError, dist.DistNetworkError, RuntimeError) as error:
            reasons.append(f"{port}: {_first_line(error)}")
            continue
        store.set(_KEY, place.job)
        return store
    raise UserError(
        f"rank 0 of {launch.world_size} ({launch.launcher}) can open no port on {socket.gethostname()} for the others:\n  "
        + "\n  ".join(reasons)
        + "\nAnother run on this node may hold it: end that run, or set MASTER_PORT to a free port"
    )


def _find(place: Place, seconds: float, launch: Launch) -> dist.Store:
    begin = time.monotonic()
    reason, pause = "nothing was tried", 0.05
    while (past := time.monotonic() - begin) < seconds:
        for address in place.addresses:
            for port in place.ports:
                try:
                    with socket.create_connection((address, port), timeout=min(ANSWER_SECONDS, seconds)):
                        pass
                    store = dist.TCPStore(address, port, timeout=timedelta(seconds=ANSWER_SECONDS), **_CLIENT)
                    if _is_ours(store, place.job):
                        store.set_timeout(timedelta(seconds=seconds))
                        return store
                    reason = f"{address}:{port} is held by another job"
                except socket.gaierror as error:
                    reason = f"the name {address} is not known here ({error.strerror})"
                    if past > UNKNOWN_NAME_SECONDS:
                        seconds = 0.0
                except (OSError, RuntimeError) as error:
                    reason = f"{address}:{port}: {_first_line(error)}"
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)
    raise UserError(
        f"rank {launch.rank} of {launch.world_size} ({launch.launcher}) on {socket.gethostname()} cannot reach rank 0 at "
        f"{place}, after {time.monotonic() - begin:.0f} s: {reason}. Rank 0 has not come up or has failed (its message "
        "stands by itself), MASTER_ADDR names another host, or a firewall lies between"
    )


_CLIENT: dict[str, Any] = {"is_master": False, "wait_for_workers": False}


def _is_ours(store: dist.Store, job: str) -> bool:
    if not job:
        return True
    end = time.monotonic() + ANSWER_SECONDS
    # Rank 0 names its job right after it has opened the port.
    while not store.check([_KEY]):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return bool(store.get(_KEY).decode() == job)


def _server(port: int, seconds: float) -> dist.TCPStore:
    # It listens on all interfaces of this host; the address is for its own connection to itself.
    return dist.TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=seconds)
    )


def _tell_by_mpi(launch: Launch, seconds: float) -> tuple[Place, dist.Store | None]:
    """Rank 0's addresses and a port that it holds, told to all by one broadcast."""
    with _mpi(launch) as communicator:
        place, store = None, None
        if launch.rank == 0:
            store = _server(0, seconds)
            addresses = (launch.master_addr,) if launch.master_addr else _own_addresses()
            place = Place(addresses, (store.port,), secrets.token_hex(8))
            store.set(_KEY, place.job)
        return communicator.bcast(place, root=0), store


@contextmanager
def _mpi(launch: Launch) -> Iterator[Any]:
    """MPI for a moment: a process that is left in it could not end without the others."""
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    MPI.Init()
    try:
        if MPI.COMM_WORLD.Get_size() != launch.world_size:
            raise UserError(
                f"mpirun started {launch.world_size} processes, but mpi4py's MPI library sees "
                f"{MPI.COMM_WORLD.Get_size()}: start with the mpirun of the same library (the "
                "one beside this python, where mpich of the requirements is), or set MASTER_ADDR to the host of rank 0 and MASTER_PORT to a free port there"
            )
        yield MPI.COMM_WORLD
    finally:
        MPI.Finalize()


def _own_addresses() -> tuple[str, ...]:
    """IPv4 addresses of this host, the loopback first: processes of the same host find it there at once."""
    found = [
        address.address
        for name, addresses in sorted(psutil.net_if_addrs().items())
        for address in addresses
        if address.family == socket.AF_INET and psutil.net_if_stats()[name].isup
    ]
    return tuple(sorted(found, key=lambda address: not address.startswith("127.")))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

