"""One process with a mesh of size one, for the tests that need a process group."""

from collections.abc import Iterator

import pytest

from megatron_pixel.parallel.mesh import Mesh
from tests.alone import alone


@pytest.fixture(scope="module")
def one_process() -> Iterator[Mesh]:
    with alone() as here:
        yield here
