"""Who lets the program wait for a CUDA device, as torch tells."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.training.test_waits import caller

MESSAGE = "called a synchronizing CUDA operation"


@contextmanager
def waits_of_the_device() -> Iterator[Counter[str]]:
    """Counts, by the function of this project or of DeepSpeed, what waits inside the block; other warnings are shown.

    torch does not see waits inside of collectives.
    """
    found: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning

        def show(message: Any, *arguments: Any, **options: Any) -> None:
            if MESSAGE in str(message):
                found[caller()] += 1
            else:
                shown(message, *arguments, **options)

        warnings.showwarning = show
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
