"""Tests that start several training processes are marked, so that `make test` runs them one at a time."""

from pathlib import Path

import pytest

FOLDERS = [Path(__file__).parent / name for name in ("distributed", "launcher")]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole folders of such tests; single files say ``pytestmark = pytest.mark.processes`` themselves."""
    for item in items:
        if any(folder in item.path.parents for folder in FOLDERS):
            item.add_marker(pytest.mark.processes)
