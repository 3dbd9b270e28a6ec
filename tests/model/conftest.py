"""One process with a mesh of size one, and small models."""

from collections.abc import Iterator

import pytest

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.parallel.mesh import Mesh
from tests.alone import alone


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[Mesh]:
    with alone() as here:
        yield here


@pytest.fixture
def small() -> ModelConfig:
    """2 layers, 4 heads over 2 key-value heads, patches of 4 x 4 x 3, rows of 16."""
    return ModelConfig(
        layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=40, seq_length=16, patch_size=4, num_channels=3
    )
