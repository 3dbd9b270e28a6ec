import ast
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from megatron_pixel.parallel import late_compiling


def test_a_function_is_compiled_at_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_it(function: late_compiling.Function) -> late_compiling.Function:
        compiled.append(function)
        return lambda *arguments: function(*arguments) + 1

    def double(value: int) -> int:
        """Twice as much."""
        return 2 * value

    monkeypatch.setattr(torch, "compile", compile_it)
    late = late_compiling.compiled_when_called(double)
    assert (compiled, late.__doc__) == ([], "Twice as much.")
    assert [late(3), late(4)] == [7, 9]
    assert compiled == [double]


def test_it_stands_in_for_all_that_the_module_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names at its top level, by its source: with another megatron-core they may be others."""
    core = find_spec("megatron.core")
    assert core is not None
    assert core.origin is not None
    tree = ast.parse(Path(core.origin).with_name("jit.py").read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    values = {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets}  # type: ignore[attr-defined]
    monkeypatch.delitem(sys.modules, late_compiling.NAME, raising=False)
    late_compiling.compile_late()
    module = sys.modules[late_compiling.NAME]
    assert {name for name in vars(module) if not name.startswith("__")} == functions | values
    module.disable_jit_fuser()
    assert module.jit_fuser(double := print) is double
    module.enable_jit_fuser()
    assert module.jit_fuser is late_compiling.compiled_when_called
