"""Rows of made-up content, and the models built from a config, for the tests of this folder."""

import numpy as np
import torch
from torch import nn

from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.data.rows import Kind, MicroBatch, Row, padding_row, pair_row, pixel_row, stack_rows, text_row
from megatron_pixel.model.batch import Batch, to_tensors
from megatron_pixel.model.objectives import Objective, pretraining_objectives
from megatron_pixel.model.stages import build_stages


def page(rng: np.random.Generator, model: ModelConfig, patches: int) -> np.ndarray:
    """uint8 [patches, P, P, C], noise and a black end patch."""
    shape = (patches, model.patch_size, model.patch_size, model.num_channels)
    values = rng.integers(0, 256, shape, dtype=np.uint8)
    values[-1] = 0
    return values


def rows_of(kind: Kind, model: ModelConfig, seed: int = 0, layout: str = "compact", padded: bool = True) -> MicroBatch:
    """Three rows of ``kind``, of different lengths; the last one is padding alone if ``padded``."""
    rng = np.random.default_rng(seed)
    s = model.seq_length
    rows: list[Row] = []
    for i, length in enumerate((s, s // 2 + 1) if padded else (s, s)):
        if kind == Kind.TEXT:
            tokens = rng.integers(3, model.vocab_size, length)
            rows.append(text_row(tokens, np.array([0, 5]), s, ("text", i)))
        elif kind == Kind.PIXEL:
            rows.append(pixel_row(page(rng, model, length), s, ("pixel", i)))
        else:
            pixels, tokens = page(rng, model, length // 2 - 1), rng.integers(3, model.vocab_size, length // 2)
            rows.append(pair_row(pixels, tokens, s, ("pair", i), layout=layout, patch_cap=s // 2))
    if padded:
        rows.append(padding_row(s, 0 if kind == Kind.TEXT else model.patch_size**2 * model.num_channels))
    return stack_rows(kind, rows)


def build(
    model: ModelConfig, seed: int = 1, touch_all: bool = False, loss: LossConfig | None = None
) -> tuple[nn.Sequential, tuple[Objective, ...]]:
    """The model at pipe size 1 and its objectives."""
    objectives = pretraining_objectives(model, loss or LossConfig())
    return nn.Sequential(*build_stages(model, objectives, seed, touch_all=touch_all)), objectives


def batch_of(kind: Kind, model: ModelConfig, objectives: tuple[Objective, ...], **options: object) -> Batch:
    """:func:`rows_of` as tensors."""
    return to_tensors(rows_of(kind, model, **options), objectives)  # type: ignore[arg-type]


def hidden_states(network: nn.Sequential, batch: Batch) -> torch.Tensor:
    """States after the final norm, [b, s, h]."""
    return network[:-1](batch.inputs)[0].transpose(0, 1)
