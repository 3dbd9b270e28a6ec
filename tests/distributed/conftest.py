"""One start of two ranks for all tests that look at what they did."""

from typing import Any

import pytest

from tests.distributed.harness import run_ranks


@pytest.fixture(scope="session")
def two_ranks() -> list[dict[str, Any]]:
    """What :func:`tests.distributed.two_ranks.everything` returned on each rank."""
    return run_ranks("tests/distributed/two_ranks.py::everything", 2, stores=3)
