"""Ranks find each other's store, and no other job's; ranks are threads here."""

import dataclasses
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel import meeting
from megatron_pixel.parallel.launch import Launch
from megatron_pixel.parallel.meeting import meet, ports_of

FIRST = Launch("srun", 0, 2, 0, "127.0.0.1", 0, "job 1")
SECOND = dataclasses.replace(FIRST, rank=1, local_rank=1)


def listener(port: int = 0) -> socket.socket:
    """Something else that holds a port: it takes connections and says nothing."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("0.0.0.0", port))
    held.listen()
    return held


def of_job(job: str) -> tuple[Launch, Launch]:
    return dataclasses.replace(FIRST, job=job), dataclasses.replace(SECOND, job=job)


def enter(launch: Launch, seconds: float = 20.0) -> tuple[dist.Store, ExitStack]:
    """What :func:`meet` yields, and what closes rank 0's door."""
    stack = ExitStack()
    return stack.enter_context(meet(launch, seconds)), stack


def meet_all(*launches: Launch) -> list[tuple[dist.Store, ExitStack]]:
    """All of them at once, as processes would."""
    with ThreadPoolExecutor(len(launches)) as pool:
        return list(pool.map(enter, launches))


def test_ports_are_the_jobs_own_and_lie_where_the_kernel_hands_out_none() -> None:
    ports = ports_of("job 1")
    assert ports == ports_of("job 1")
    assert len(set(ports)) == meeting.CANDIDATES
    assert set(ports).isdisjoint(ports_of("job 2"))
    assert all(10_000 <= port < 30_000 for port in ports)


def test_two_jobs_with_the_same_ports_meet_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(listener()) as foreign:
        free = [socket.socket() for _ in range(3)]
        for each in free:
            each.bind(("127.0.0.1", 0))
        ports = (foreign.getsockname()[1], *(each.getsockname()[1] for each in free))
        for each in free:
            each.close()
        monkeypatch.setattr(meeting, "ports_of", lambda job: ports)
        monkeypatch.setattr(meeting, "ANSWER_SECONDS", 0.5)
        one, two = of_job("one"), of_job("two")
        found = meet_all(two[1], one[1], one[0], two[0])
        found[2][0].set("who", "one")
        found[3][0].set("who", "two")
        assert found[1][0].get("who") == b"one"
        assert found[0][0].get("who") == b"two"
        for _, door in found:
            door.close()


def test_a_door_closes_behind_the_last() -> None:
    _, door = enter(of_job("closed")[0])
    door.close()
    with closing(listener(ports_of("closed")[0])):
        pass


def test_a_port_that_was_named_is_taken_or_refused() -> None:
    with closing(listener()) as foreign:
        taken = dataclasses.replace(FIRST, job="", master_port=foreign.getsockname()[1])
        with pytest.raises(UserError, match=r"rank 0 of 2 \(srun\) .* cannot open port \d+ .* set MASTER_PORT"):
            enter(taken)


def test_a_port_with_no_store_behind_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 0.3)
    with closing(listener()) as foreign:
        wrong = dataclasses.replace(SECOND, job="", master_port=foreign.getsockname()[1])
        with pytest.raises(UserError, match="what listens there is no store"):
            enter(wrong, 0.4)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", "refused"),
        ("no-such-host.invalid", "the name no-such-host.invalid is not known here"),
        ("192.0.2.1", r"192.0.2.1:\d+: (timed out|.*unreachable|.*No route|.*refused)"),  # reserved for documentation
    ],
)
def test_a_rank_0_that_is_not_there_is_told_in_time(address: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "ports_of", lambda job: ports_of(job)[:1])
    monkeypatch.setattr(meeting, "UNKNOWN_NAME_SECONDS", 0.1)
    monkeypatch.setattr(meeting, "ANSWER_SECONDS", 0.3)
    begin = time.monotonic()
    with pytest.raises(
        UserError, match=rf"rank 1 of 2 \(srun\) on .* cannot reach rank 0 at {address}, port .*{reason}"
    ):
        enter(dataclasses.replace(SECOND, master_addr=address), 0.4)
    assert time.monotonic() - begin < 5


def test_a_rank_waits_for_a_late_rank_0() -> None:
    first, second = of_job("late")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(enter, second)
        time.sleep(0.3)
        store, door = enter(first)
        store.set("x", "1")
        assert waiting.result()[0].get("x") == b"1"
        door.close()
