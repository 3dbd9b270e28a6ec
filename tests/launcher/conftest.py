"""One SLURM for all tests of this folder that submit jobs."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launcher.slurm_cluster import FOREIGN, SlurmCluster, why_not


@pytest.fixture(scope="module", autouse=True)
def signals_of_a_login() -> None:
    """A run that ended in this process leaves SIGUSR1 ignored, and what a shell finds ignored it cannot trap."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmCluster]:
    """A running cluster; tests that ask for it are skipped where SLURM is not installed."""
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    # Sockets want a short path.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        cluster = SlurmCluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, slurm: SlurmCluster) -> SlurmCluster:
    """The cluster, as commands of this process see it."""
    for name in list(os.environ):
        if name.startswith(FOREIGN):
            monkeypatch.delenv(name)
    for name, value in slurm.environ.items():
        monkeypatch.setenv(name, value)
    return slurm
