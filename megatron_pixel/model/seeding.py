"""Weights that depend on the seed and the stage, not on the layout of the processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def stage_seed(seed: int, stage: int) -> Iterator[None]:
    """Random draws of one stage inside the block; the global generator goes on afterwards as if nothing happened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(np.random.SeedSequence([seed, stage]).generate_state(1)[0]))
        yield
