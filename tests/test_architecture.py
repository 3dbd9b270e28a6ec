"""Imports run one way, in the order of the table in docs/architecture.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "megatron_pixel"


def rooms() -> dict[str, set[str]]:
    """Packages and modules from the table, in its order, and the libraries that each does without.

    What reads data must start fast, and what computes must not know who spreads it.
    """
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \| .* \|(.*)\|$", table, flags=re.MULTILINE)
    return {name: set(re.findall(r"\w+", libraries)) for name, libraries in rows}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: imports are absolute here"
            names = [alias.name for alias in node.names] if node.module == "megatron_pixel" else [""]
            yield from (f"{node.module}.{name}".rstrip(".") for name in names)


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py" or path.parent != PACKAGE]


def test_every_room_is_in_the_table() -> None:
    assert set(rooms()) == {room_of(path) for path in FILES}
    assert "torch" in rooms()["data"]


@pytest.mark.parametrize("room", rooms())
def test_imports_run_one_way(room: str) -> None:
    without, order = rooms()[room], list(rooms())
    for path in FILES:
        if room_of(path) != room:
            continue
        for module in imports(path):
            top, _, rest = module.partition(".")
            assert top not in without, f"{path.relative_to(ROOT)} imports {module}"
            if top == "megatron_pixel" and rest and not rest.startswith("__"):
                other = rest.partition(".")[0]
                assert order.index(other) <= order.index(room), f"{path.relative_to(ROOT)} imports {module}"
