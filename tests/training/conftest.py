"""One process with a mesh of size one, for the tests that need a process group."""

from collections.abc import Iterator

import pytest

from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.parallel.mesh import Mesh, mesh


@pytest.fixture(scope="module")
def one_process() -> Iterator[Mesh]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "PMI_RANK"):
            patch.delenv(name, raising=False)
        with mesh(ParallelConfig()) as here:
            yield here
