import random
from pathlib import Path

import numpy as np
import torch

from megatron_pixel.training.rng import draw_rng_state, rng_state, set_rng_state


def draws() -> list[float]:
    return [float(torch.rand(1)), float(np.random.rand()), random.random()]  # noqa: NPY002


def test_random_states_survive_a_file(tmp_path: Path) -> None:
    random.gauss(0, 1)  # leaves a second value behind, part of the state
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [*draws(), random.gauss(0, 1)]
    assert draws() != expected[:3]
    set_rng_state(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert [*draws(), random.gauss(0, 1)] == expected


def test_drawn_states_follow_from_the_numbers_alone() -> None:
    found = {}
    for numbers in ((1, 3, 0), (1, 3, 1), (1, 4, 0)):
        draw_rng_state(*numbers)
        found[numbers] = draws()
    draw_rng_state(1, 3, 0)
    assert draws() == found[1, 3, 0]
    assert len({tuple(values) for values in found.values()}) == 3
