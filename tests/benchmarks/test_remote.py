"""Objects in processes of their own, as the training benchmark has them."""

import os
from pathlib import Path

import pytest

from benchmarks.remote import Remote, RemoteError


class Counter:
    """Counts, and tells what it is asked for."""

    def __init__(self, begin: int, log: Path | None = None) -> None:
        if begin < 0:
            raise ValueError(f"begin is {begin}\nand more")
        self._count, self._log = begin, log

    def add(self, number: int) -> tuple[int, int]:
        self._count += number
        return self._count, os.getpid()

    def fail(self) -> None:
        raise RuntimeError("no memory\nand more")

    def end(self) -> None:
        os._exit(3)

    def close(self) -> None:
        if self._log is not None:
            self._log.write_text(f"closed at {self._count}")


def test_an_object_lives_in_another_process(tmp_path: Path) -> None:
    remote = Remote(Counter, 5, tmp_path / "log")
    remote.wait()
    assert remote.call("add", 2)[0] == 7
    with pytest.raises(RemoteError, match=r"^RuntimeError: no memory$") as caught:
        remote.call("fail")
    assert "in fail" in caught.value.details
    count, process = remote.call("add", 1)
    assert count == 8
    assert process != os.getpid()
    remote.close()
    assert (tmp_path / "log").read_text() == "closed at 8"


def test_failures_are_told() -> None:
    remotes = Remote(Counter, -1), Remote(Counter, 1)
    with pytest.raises(RemoteError, match=r"^ValueError: begin is -1$"):
        remotes[0].wait()
    remotes[1].wait()
    for _ in range(2):
        with pytest.raises(RemoteError, match="its process ended with status 3"):
            remotes[1].call("end")
    late = Remote(Counter, 1, limit=0.0)
    with pytest.raises(RemoteError, match="no answer within 0 s"):
        late.wait()
    for remote in (*remotes, late):
        remote.close()
