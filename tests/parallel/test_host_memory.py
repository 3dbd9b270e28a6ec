"""What is freed stays with the process, unless the environment chose otherwise."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from megatron_pixel.parallel.host_memory import keep_freed_memory
kept = keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(2):
    before = faults()
    large = b"x" * (100 << 20)
    del large
print(kept, faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}, False),
    ],
)
def test_pages_are_faulted_in_once(environment: dict[str, str], expected: bool) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    kept, faults = found.stdout.split()
    assert kept == str(expected)
    assert (int(faults) < 1000) == expected, faults
