"""Where the processes of a run meet: a store that rank 0 opens and all others find.

A port that is only known to be free may be taken a moment later, and a port computed from a job's number may be in use
by another job of the node. So rank 0 *opens* the first that it gets of several ports, a door; to whoever comes it says
the name of its job and the port of the store. The others try the doors in turn until they hear that name. Under MPICH's
mpirun, rank 0 tells the port of its store through MPI. Where MASTER_PORT is set, the store is there and nowhere else.

PyTorch's store cannot do this by itself: connected to a port where something else listens, it waits for ever.
"""

import hashlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.launch import Launch

CANDIDATES = 8
"""Doors that a job may open: more than there are jobs on a node that compute the same port."""
FIRST_PORT, PORTS = 10_000, 20_000
"""Below 32768 the kernel hands out no port to anybody's outgoing connections."""
UNKNOWN_NAME_SECONDS = 20.0
"""A name server may fail for a moment; a name that it does not know for so long is wrong."""
ANSWER_SECONDS = 5.0
"""For a store to answer once it is connected to; what listens there may be no store at all."""


@contextmanager
def meet(launch: Launch, seconds: float) -> Iterator[dist.Store]:
    """The store of this run, opened by rank 0 and found by the others; leave the block when all have found it.

    Args:
        launch: which rank this is, and where to meet. Not a single process.
        seconds: how long to look for rank 0.

    Raises:
        UserError: rank 0 gets no port, or cannot be found; with the reason of the last attempt.
    """
    who = f"rank {launch.rank} of {launch.world_size} ({launch.launcher}) on {socket.gethostname()}"
    if launch.launcher == "mpirun" and not launch.job and not launch.master_port:
        yield _meet_by_mpi(launch, who, seconds)
    elif launch.master_port:
        place = ((launch.master_addr, launch.master_port),)
        yield _serve(launch.master_port, who, seconds) if launch.rank == 0 else _find(place, _connect, who, seconds)
    elif launch.rank:
        doors = tuple((launch.master_addr, port) for port in ports_of(launch.job))
        yield _find(doors, lambda address, port: _enter(address, port, launch.job), who, seconds)
    else:
        store = _serve(0, who, seconds)
        with ExitStack() as stack:
            stack.enter_context(_Door(launch.job, store.port, who))
            yield store


def ports_of(job: str) -> tuple[int, ...]:
    """The ports that a job may meet at, the same on all of its processes."""
    numbers = (hashlib.sha256(f"{job} {i}".encode()).digest() for i in range(CANDIDATES))
    return tuple(FIRST_PORT + int.from_bytes(digest[:4]) % PORTS for digest in numbers)


class _Door:
    """A port at which rank 0 tells the name of its job and the port of its store, one line to whoever comes."""

    def __init__(self, job: str, port: int, who: str) -> None:
        self._line = f"{_name(job)} {port}\n".encode()
        self._socket = self._listen(ports_of(job), who)
        threading.Thread(target=self._tell, name="door", daemon=True).start()

    def __enter__(self) -> "_Door":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._socket.close()

    def _listen(self, ports: tuple[int, ...], who: str) -> socket.socket:
        reasons = []
        for port in ports:
            try:
                if socket.has_dualstack_ipv6():
                    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
                return socket.create_server(("", port), backlog=512)
            except OSError as error:
                reasons.append(f"{port} ({error.strerror})")
        raise UserError(f"{who} can open none of the ports {', '.join(reasons)}; set MASTER_PORT to a free one")

    def _tell(self) -> None:
        with suppress(OSError):
            while True:
                visitor, _ = self._socket.accept()
                with visitor, suppress(OSError):
                    visitor.settimeout(ANSWER_SECONDS)
                    visitor.sendall(self._line)


def _enter(address: str, port: int, job: str) -> dist.Store:
    """The store behind a door. Raises OSError where there is none, or another job's."""
    with socket.create_connection((address, port), timeout=ANSWER_SECONDS) as door:
        line = b""
        while not line.endswith(b"\n") and (part := door.recv(256)) and len(line) < 256:
            line += part
    name, _, behind = line.decode(errors="replace").strip().partition(" ")
    if name != _name(job) or not behind.isdecimal():
        raise OSError("another program listens there, or another job")
    return _connect(address, int(behind))


def _name(job: str) -> str:
    return "megatron_pixel/" + hashlib.sha256(job.encode()).hexdigest()


def _serve(port: int, who: str, seconds: float) -> dist.TCPStore:
    """A store of this process on all interfaces of its host; port 0 is any that is free."""
    try:
        # The address is for its own connection to itself.
        return dist.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=seconds)
        )
    except RuntimeError as error:
        raise UserError(
            f"{who} cannot open port {port} for the others: {_first_line(error)}. Another run on this node may hold "
            "it: set MASTER_PORT, or the port option of the launcher, to a free one"
        ) from error


def _connect(address: str, port: int) -> dist.Store:
    """The store at a port. Raises OSError where there is none."""
    with socket.create_connection((address, port), timeout=ANSWER_SECONDS):
        pass
    result: list[Any] = []

    def connect() -> None:
        try:
            result.append(dist.TCPStore(address, port, is_master=False, wait_for_workers=False))
        except RuntimeError as error:
            result.append(OSError(_first_line(error)))

    # A thread can be given up; the call itself knows no limit when what listens there says nothing.
    thread = threading.Thread(target=connect, name="store", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if not result:
        raise OSError("what listens there is no store")
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


def _find(
    places: tuple[tuple[str, int], ...], attempt: Callable[[str, int], dist.Store], who: str, seconds: float
) -> dist.Store:
    """The first store that an attempt at one of the places finds; all are tried again until the time is up."""
    begin = time.monotonic()
    end, reason, pause = begin + seconds, "", 0.05
    while True:
        for address, port in places:
            try:
                store = attempt(address, port)
                store.set_timeout(timedelta(seconds=seconds))
                return store
            except socket.gaierror as error:
                reason = f"the name {address} is not known here ({error.strerror})"
                end = min(end, begin + UNKNOWN_NAME_SECONDS)
            except OSError as error:
                reason = f"{address}:{port}: {error.strerror or error}"
        if time.monotonic() + pause > end:
            break
        time.sleep(pause)
        pause = min(1.0, 1.5 * pause)
    hosts, ports = (" or ".join(dict.fromkeys(map(str, part))) for part in zip(*places, strict=True))
    raise UserError(
        f"{who} cannot reach rank 0 at {hosts}, port {ports}, after {time.monotonic() - begin:.0f} s: {reason}. Rank 0 "
        "has not come up or has failed (its own message says why), MASTER_ADDR names another host, or a firewall lies "
        "between"
    )


def _meet_by_mpi(launch: Launch, who: str, seconds: float) -> dist.Store:
    """Rank 0's addresses and the port of its store are told to all by one broadcast."""
    with _mpi(launch) as communicator:
        store, places = None, None
        if launch.rank == 0:
            store = _serve(0, who, seconds)
            addresses = (launch.master_addr,) if launch.master_addr else _own_addresses()
            places = tuple((address, store.port) for address in addresses), secrets.token_hex(8)
            store.set(_TOKEN, places[1])
        found, token = communicator.bcast(places, root=0)

    def attempt(address: str, port: int) -> dist.Store:
        # An address of rank 0's may be another host's here, as 127.0.0.1 is.
        theirs = _connect(address, port)
        if not theirs.check([_TOKEN]) or theirs.get(_TOKEN).decode() != token:
            raise OSError("another run's store")
        return theirs

    return store or _find(found, attempt, who, seconds)


_TOKEN = "megatron_pixel/token"


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
                f"{MPI.COMM_WORLD.Get_size()}: start with the mpirun of the same library (the one beside this python, "
                "where mpich of the requirements is), or set MASTER_ADDR to rank 0's host, MASTER_PORT to a free port"
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
