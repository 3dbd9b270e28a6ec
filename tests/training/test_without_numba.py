"""What compiled code of the data path wants is imported when it is needed, and training on made-up rows needs none."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.gpu.runs import ROOT, SHORT

PACKAGE = ROOT / "megatron_pixel"
COMPILED = {"numba", "llvmlite"}
DOORS = {
    "megatron_pixel.rendering.page": {"megatron_pixel.rendering.expand"},
    "megatron_pixel.data.codec": {"megatron_pixel.data.codec_columns", "megatron_pixel.data.codec_glyphs"},
    "megatron_pixel.data.sources": {"megatron_pixel.data.rendered"},
}
"""Modules of the data path that import compiled code late, and what: who reads pages, stored ones, drawn ones."""
CODE = """
import sys
from pathlib import Path
for name in ("numba", "llvmlite", "uharfbuzz", "freetype", "zstandard", "PIL"):
    sys.modules[name] = None  # importing it is an error
from tests.gpu.runs import train
(line, *_) = train(Path(sys.argv[1]), sys.argv[2:])
print("step", line["step"])
"""


def test_a_run_on_made_up_rows_does_without_numba(tmp_path: Path) -> None:
    """As on a GPU machine to which not everything was carried."""
    words = [*SHORT, "--training.stop_after=1", "--guards.slow_ranks_every=0"]
    command = [sys.executable, "-c", CODE, str(tmp_path / "run"), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("step 1\n")


def imports(nodes: list[ast.stmt]) -> Iterator[str]:
    """Modules that statements import when they run; what stands in functions is not run."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def source(module: str) -> ast.Module | None:
    path = ROOT / f"{module.replace('.', '/')}.py"
    return ast.parse(path.read_text(encoding="utf-8")) if path.exists() else None


@cache
def is_compiled(module: str) -> bool:
    """Whether importing it imports a compiler."""
    tree = source(module)
    if tree is None:
        return module.partition(".")[0] in COMPILED
    return any(is_compiled(name) for name in imports(tree.body))


def test_compiled_code_of_the_data_path_has_few_doors() -> None:
    found: dict[str, set[str]] = {}
    for path in sorted([*(PACKAGE / "rendering").glob("*.py"), *(PACKAGE / "data").glob("*.py")]):
        module = f"megatron_pixel.{path.parent.name}.{path.stem}"
        tree = source(module)
        assert tree is not None
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        late = {name for function in functions for name in imports(list(ast.walk(function))) if is_compiled(name)}  # type: ignore[arg-type]
        if late:
            assert not is_compiled(module), f"{module} imports compiled code at its top, too"
            found[module] = late
    assert found == DOORS
