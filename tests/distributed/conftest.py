"""One start of two ranks for all tests that look at what they did; deviations at the end of the output."""

from typing import Any

import pytest

from tests.distributed.deviations import LINES
from tests.distributed.harness import run_ranks


@pytest.fixture(scope="session")
def two_ranks() -> list[dict[str, Any]]:
    """What :func:`tests.distributed.two_ranks.everything` returned on each rank."""
    return run_ranks("tests/distributed/two_ranks.py::everything", 2, stores=3)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The tables of deviations, also where all tests pass."""
    if LINES:
        terminalreporter.section("largest deviations from one process")
        for line in LINES:
            terminalreporter.write_line(line)
