import random
from pathlib import Path

import numpy as np
import torch

from megatron_pixel.training.checkpoint import rng_state, set_rng_state


def draws() -> list[float]:
    return [float(torch.rand(1)), float(np.random.rand()), random.random()]  # noqa: NPY002


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves a second value behind, part of the state
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [*draws(), random.gauss(0, 1)]
    assert draws() != expected[:3]
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [*draws(), random.gauss(0, 1)] == expected
