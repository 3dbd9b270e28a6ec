"""The state of the machines at the start of a run: one line when all is well, a warning for each thing that is not."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

GIB = 2**30
_SHARED_MEMORY = Path("/dev/shm")
_PROBE_SIZE = {"cuda": 4096, "cpu": 256}
_QUERY = (
    "temperature.gpu",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.active",
    "driver_version",
)
_HARMFUL_THROTTLES = 0x8 | 0x20 | 0x40 | 0x80
"""Hardware slow-down, thermal slow-downs by software and hardware, power brake: NVML's bits."""


@dataclass(frozen=True)
class Health:
    """One rank's view of its device and node."""

    rank: int
    host: str
    device: str
    """Name of the GPU, or ``CPU``."""
    free_memory: float
    """GiB: of the device; of the node where there is none."""
    total_memory: float
    load: float
    """Processes that want to run, over the cores."""
    shared_memory: float
    """GiB free in /dev/shm, which processes that read data pass rows through."""
    clock: float
    """Seconds since 1970, taken as all ranks are at the same point."""
    probe: float
    """Seconds of a fixed multiplication of matrices."""
    temperature: int | None = None
    """Degrees Celsius."""
    ecc_errors: int | None = None
    """Uncorrected memory errors since the driver started."""
    throttled: bool = False
    driver: str | None = None


def look(rank: int, device: torch.device) -> Health:
    """This rank's device and node; takes a fraction of a second."""
    cuda = device.type == "cuda"
    if cuda:
        free, total = torch.cuda.mem_get_info(device)
        name = torch.cuda.get_device_name(device)
    else:
        pages = os.sysconf("SC_PAGE_SIZE")
        free, total = pages * os.sysconf("SC_AVPHYS_PAGES"), pages * os.sysconf("SC_PHYS_PAGES")
        name = "CPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shared = shutil.disk_usage(_SHARED_MEMORY).free / GIB if _SHARED_MEMORY.is_dir() else 0.0
    told = _ask_driver(device) if cuda else {}
    return Health(
        rank,
        socket.gethostname(),
        name,
        free / GIB,
        total / GIB,
        os.getloadavg()[0] / cores,
        shared,
        time.time(),
        probe(device),
        **told,  # type: ignore[arg-type]
    )


def probe(device: torch.device) -> float:
    """Seconds that a fixed multiplication of matrices takes, the fastest of three: alike on devices that are well."""
    size = _PROBE_SIZE[device.type]
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    best = float("inf")
    for _ in range(3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best


def health_line(ranks: Sequence[Health]) -> str:
    """``2 nodes, 16 x NVIDIA H200, 139 GiB each, 31 to 44 C, load 0.1``."""
    hosts = sorted({each.host for each in ranks})
    names = ", ".join(
        f"{sum(each.device == name for each in ranks)} x {name}" for name in sorted({each.device for each in ranks})
    )
    free, total = min(each.free_memory for each in ranks), max(each.total_memory for each in ranks)
    parts = [
        f"1 node ({hosts[0]})" if len(hosts) == 1 else f"{len(hosts)} nodes ({hosts[0]} .. {hosts[-1]})",
        f"{names}, {free:.0f} of {total:.0f} GiB free" + (" on the fullest" if len(ranks) > 1 else ""),
    ]
    warm = [each.temperature for each in ranks if each.temperature is not None]
    if warm:
        parts.append(f"{min(warm)} to {max(warm)} C")
    drivers = sorted({each.driver for each in ranks if each.driver})
    if drivers:
        parts.append(f"driver {', '.join(drivers)}")
    parts.append(f"load {max(each.load for each in ranks):.1f} a core")
    return ", ".join(parts)


def warnings(ranks: Sequence[Health], workers: int) -> list[str]:
    """What is not as it should be, with the rank and the host.

    Args:
        ranks: of all ranks.
        workers: processes that read data on each rank.
    """
    found = []
    usual = median(each.probe for each in ranks)
    now = median(each.clock for each in ranks)
    for each in ranks:
        place = f"rank {each.rank} on {each.host}"
        if each.device != "CPU" and each.free_memory < 0.9 * each.total_memory:
            used = each.total_memory - each.free_memory
            found.append(f"{place}: {used:.1f} GiB of its GPU are taken by other processes")
        if each.ecc_errors:
            found.append(f"{place}: its GPU has {each.ecc_errors} uncorrected memory errors; have it reset or replaced")
        if each.throttled:
            found.append(f"{place}: its GPU is slowed down by heat or power ({each.temperature} C)")
        if each.probe > 1.5 * usual and each.probe > 1e-3:
            found.append(f"{place}: computes at {usual / each.probe:.0%} of the usual speed")
        if workers and each.shared_memory < 0.25:
            found.append(
                f"{place}: {each.shared_memory:.2f} GiB are free in /dev/shm, which data.workers passes rows through"
            )
        if abs(each.clock - now) > 10:
            found.append(f"{place}: its clock is off by {each.clock - now:+.0f} s")
    models = {each.device for each in ranks}
    if len(models) > 1:
        found.append(f"the ranks run on different devices: {', '.join(sorted(models))}; the slowest sets the pace")
    return found


def _ask_driver(device: torch.device) -> dict[str, object]:
    """What nvidia-smi tells; nothing where it is not there or does not answer at once."""
    try:
        identity = torch.cuda.get_device_properties(device).uuid
        done = subprocess.run(
            ["nvidia-smi", f"--id=GPU-{identity}", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        warm, errors, throttle, driver = (word.strip() for word in done.stdout.strip().split(","))
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError):
        return {}
    return {
        "temperature": int(warm) if warm.isdecimal() else None,
        "ecc_errors": int(errors) if errors.isdecimal() else None,
        "throttled": bool(int(throttle, 16) & _HARMFUL_THROTTLES) if throttle.startswith("0x") else False,
        "driver": driver,
    }
