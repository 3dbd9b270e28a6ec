"""megatron-core's small fused functions, compiled when they are called and not when they are imported.

megatron-core decorates some forty of them with ``torch.compile``. That alone, before anything is compiled, imports
Dynamo and Inductor, which takes as long as importing torch itself; and none of them is called by this project's layers.
:func:`compile_late` puts a decorator in their place that waits for the first call. It stands in for the module
``megatron.core.jit``, and so must come before megatron-core is imported, as :func:`.quiet.silence_libraries` does.
"""

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

NAME = "megatron.core.jit"
Function = Callable[..., Any]


def compile_late() -> None:
    """Stand in for megatron-core's choice of a compiler; does nothing where that is imported already."""
    if NAME in sys.modules:
        return
    module = ModuleType(NAME, __doc__)
    vars(module).update(
        jit_fuser=compiled_when_called,
        noop_decorator=as_it_is,
        enable_jit_fuser=lambda: setattr(module, "jit_fuser", compiled_when_called),
        disable_jit_fuser=lambda: setattr(module, "jit_fuser", as_it_is),
    )
    sys.modules[NAME] = module


def compiled_when_called(function: Function) -> Function:
    """``function`` through ``torch.compile``, from its first call on."""
    compiled: Function | None = None

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal compiled
        if compiled is None:
            import torch

            compiled = torch.compile(function)
        return compiled(*arguments, **options)

    return call


def as_it_is(function: Function) -> Function:
    """``function`` itself."""
    return function
