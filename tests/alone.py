"""A mesh of one process, whatever the tests' own surroundings say about ranks."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.parallel.mesh import Mesh, mesh

RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "PMI_RANK")


@contextmanager
def alone() -> Iterator[Mesh]:
    """The mesh; a process has one at a time, so it may not outlive the tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        for name in RANKS:
            patch.delenv(name, raising=False)
        with mesh(ParallelConfig()) as here:
            yield here
