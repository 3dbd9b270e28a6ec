"""Memory that a model takes, for benchmarks."""

import ctypes
import gc
import re
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class PeakMemory:
    """Most memory in use at a time, above what was in use when this was made: before there was a model.

    On a CUDA device that is counted by torch's allocator. On a CPU it is the resident memory of the process, whose peak
    Linux lets us reset.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = self._now()

    def during(self, work: Callable[[], object]) -> int:
        """Bytes, while some work runs. On a CPU all that is free goes back to the system before."""
        self._now()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
        work()
        cuda = self._device.type == "cuda"
        most = torch.cuda.max_memory_allocated(self._device) if cuda else _status("VmHWM")
        return most - self._before

    def _now(self) -> int:
        gc.collect()
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")


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
