"""Memory that one of several models in a process takes, for ``training.py``."""

import ctypes
import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class MemoryOfOne:
    """What a model holds, and what a step of it adds for a while.

    On a CUDA device that is counted by torch's allocator. On a CPU it is the resident memory of the process, whose peak
    Linux lets us reset; it is known to a few megabytes, as memory that others gave back may be used again.

    Args:
        device: where the model is.

    Attributes:
        held: bytes held between steps.
        added: most bytes that a step has added, by the name that it was given.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.held = 0
        self.added: dict[str, int] = {}

    def peak(self, name: str) -> int:
        """Most bytes at a time in steps of a name."""
        return self.held + self.added[name]

    @contextmanager
    def building(self) -> Iterator[None]:
        """Around what makes the model, or makes it hold more: its first steps make the optimizer's moments."""
        before = self._now()
        yield
        self.held += max(0, self._now() - before)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Around a step that leaves nothing behind."""
        before = self._now()
        self._reset()
        yield
        self.added[name] = max(self.added.get(name, 0), self._most() - before)

    def _now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")

    def _reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            Path("/proc/self/clear_refs").write_text("5")

    def _most(self) -> int:
        return torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _status("VmHWM")


def most_allocated(work: Callable[[], object]) -> int:
    """Most bytes of a CPU's memory that are allocated at a time while some work runs, above those at its begin.

    By the allocator's own record: pages count that are never written to, as they do on a CUDA device.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        made = work()  # held until the record ends
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    del made
    sums = accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(sums, default=0)


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024
