"""The work folder of a preprocessing run: what it was asked to do, what is done, and who is at it.

``P.work`` holds settings and inputs (``settings.json``), the list of parts, the page codec, and for every finished part
its files and a record. The record comes last: a part with one is whole.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.files import cannot_write, write_file

SUFFIX = ".work"
LOCK = "lock"
_PATIENCE = 5.0
"""Seconds that processes of a run which was killed are given to end."""

Settings = dict[str, Any]
"""By the name of the option."""


class WorkFolder:
    """Files of the work on one dataset; see the top of this module."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.path = prefix + SUFFIX

    def __fspath__(self) -> str:
        return self.path

    def file(self, name: str) -> str:
        """Path of a file in it."""
        return os.path.join(self.path, name)

    def part_prefix(self, number: int) -> str:
        """Beginning of the names of a part's files."""
        return self.file(f"part-{number:06d}")

    def make(self) -> None:
        """Make the folder unless it is there."""
        try:
            os.makedirs(self.path, exist_ok=True)
        except OSError as error:
            cannot_write(self.path, 0, error)

    def has(self, name: str) -> bool:
        """Whether a file is there, and therefore whole."""
        return os.path.exists(self.file(name))

    def read(self, name: str) -> Any:
        """Content of a JSON file; None if there is none. UserError for a damaged one."""
        try:
            with open(self.file(name), encoding="utf-8") as file:
                return json.load(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.file(name)} cannot be read ({error}); --restart discards the work") from None

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file, whole or not at all."""
        write_file(self.file(name), json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode())

    def numbers(self, kind: str) -> set[int]:
        """Numbers of the records ``<kind>-<number>.json``."""
        names = os.listdir(self.path) if os.path.isdir(self.path) else []
        found = (name for name in names if name.startswith(f"{kind}-") and name.endswith(".json"))
        return {int(name[len(kind) + 1 : -5]) for name in found}

    def clear(self) -> None:
        """Remove all of it but the lock."""
        self._remove(lambda name: name != LOCK)

    def remove(self, last: Sequence[str] = ()) -> None:
        """Remove the folder; ``last`` are names of files that go after all others."""
        self._remove(lambda name: name != LOCK and name not in last)
        for name in (*last, LOCK):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.file(name))
        with contextlib.suppress(OSError):
            os.rmdir(self.path)

    def _remove(self, wanted: Any) -> None:
        for entry in os.scandir(self.path) if os.path.isdir(self.path) else ():
            if wanted(entry.name):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(entry.path)


class Lock:
    """Keeps two runs off one prefix; the system takes it back from a process that dies.

    The process that leads a run holds it alone for a moment, then all of its processes share it: a second run has to
    wait until the last of them is gone.
    """

    def __init__(self, work: WorkFolder, leading: bool) -> None:
        self._path = work.file(LOCK)
        self._prefix = work.prefix
        deadline = time.monotonic() + _PATIENCE
        while not self._take(leading):
            if time.monotonic() > deadline:
                raise UserError(
                    f"another run{self._holder()} is making {self._prefix}; wait for it, or choose another prefix"
                )
            time.sleep(0.05)

    def _take(self, leading: bool) -> bool:
        try:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            cannot_write(self._path, 0, error)
        try:
            if leading:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            return False
        except OSError as error:
            if leading:
                print(
                    f"warning: no lock on {self._path} ({error.strerror}): see that no other run makes {self._prefix}",
                    file=sys.stderr,
                    flush=True,
                )
        try:
            same = os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))
        except FileNotFoundError:
            same = False
        if not same:  # the run before has just removed the folder
            os.close(self._descriptor)
            return False
        if leading:
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return True

    def _holder(self) -> str:
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                return f" ({file.readline().strip()})"
        except OSError:
            return ""

    def release(self) -> None:
        """Let go of it."""
        os.close(self._descriptor)


def input_facts(paths: Sequence[str]) -> list[list[Any]]:
    """Path, size and time of the last change of each input; standard input has none."""
    facts: list[list[Any]] = []
    for path in paths:
        status = os.stat(path) if path != "-" else None
        facts.append([path, status.st_size, status.st_mtime_ns] if status else [path, 0, 0])
    return facts


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """What sets two runs apart, as a part of a sentence about the earlier one; None if they are the same.

    Both are ``{"settings": ..., "inputs": ...}``.
    """
    before, now = old["settings"], new["settings"]
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            if name == "--on-bad-record" and now[name] == "skip":
                continue  # parts that are whole held no bad record
            return f"had {name} {_show(before.get(name))}, not {_show(now.get(name))}"
    if len(old["inputs"]) != len(new["inputs"]):
        return f"had {len(old['inputs'])} inputs, not {len(new['inputs'])}"
    for (path, size, changed), (path_now, size_now, changed_now) in zip(old["inputs"], new["inputs"], strict=True):
        if path != path_now:
            return f"had the input {path}, not {path_now}, in this place"
        if size != size_now:
            return f"had an input {path} of {size:,} bytes, which has {size_now:,} now"
        if changed != changed_now:
            return f"had an input {path} written at {_time(changed)}, which was written again at {_time(changed_now)}"
    return None


def _show(value: Any) -> str:
    return "none" if value is None else str(value)


def _time(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9).isoformat(sep=" ", timespec="milliseconds")
