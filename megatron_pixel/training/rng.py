"""The random states of a process. The order of the data depends on none of them; it is a formula of seed and step."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def rng_file(rank: int) -> str:
    """Name of a rank's random states in a checkpoint."""
    return f"rng-{rank:05d}.pt"


def rng_state() -> dict[str, Any]:
    """The random states of this process: torch (CPU and its CUDA device), numpy, Python."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 (the global state that libraries draw from)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "python": random.getstate(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Undo of :func:`rng_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))


def draw_rng_state(*entropy: int) -> None:
    """Random states that follow from ``entropy`` alone: for a rank that no checkpoint has states for."""
    torch_seed, numpy_seed, python_seed = np.random.SeedSequence(entropy).generate_state(3)
    torch.manual_seed(int(torch_seed))
    np.random.seed(int(numpy_seed))  # noqa: NPY002
    random.seed(int(python_seed))
