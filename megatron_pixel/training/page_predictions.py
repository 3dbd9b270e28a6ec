"""What a checkpoint makes of one page: predictions, errors, attention, on this one process."""

from collections.abc import Iterator

import numpy as np
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import LossConfig, ModelConfig, ParallelConfig
from megatron_pixel.data.mixture import HeldoutReader
from megatron_pixel.data.rows import Kind, MicroBatch, Origin, pixel_row, stack_rows
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.execution import WholeModel
from megatron_pixel.parallel.mesh import mesh
from megatron_pixel.training.canonical import Source, load_weights
from megatron_pixel.training.evaluation import Evaluator
from megatron_pixel.training.pages import PredictedPage


class OnePage(HeldoutReader):
    """A reader with one pixel row and nothing else."""

    def __init__(self, patches: np.ndarray, model: ModelConfig, origin: Origin) -> None:
        self._batch = stack_rows(Kind.PIXEL, [pixel_row(patches, model.seq_length, origin)])

    @property
    def source_names(self) -> dict[Kind, list[str]]:
        """The page belongs to no source."""
        return {}

    def num_rows(self, kind: Kind) -> int:
        """One pixel row."""
        return int(kind == Kind.PIXEL)

    def num_batches(self, kind: Kind, dp_size: int) -> int:
        """In one batch."""
        return self.num_rows(kind)

    def batches(self, kind: Kind, dp_rank: int = 0, dp_size: int = 1) -> Iterator[MicroBatch]:
        """The batch."""
        return iter([self._batch] if kind == Kind.PIXEL else [])


def predict_page(
    source: Source, model: ModelConfig, patches: np.ndarray, origin: Origin, layer: int | None = None
) -> PredictedPage:
    """Predictions for a page from the true patches before each.

    Args:
        source: weights.
        model: shape of the model.
        patches: uint8 [n, P, P, C] in the channels of the model, n at most ``model.seq_length``.
        origin: where the page comes from.
        layer: decoder layer, counted from 1, whose attention is wanted too.

    Raises:
        UserError: page, layer and model do not fit.
    """
    n, size, _, channels = patches.shape
    if size != model.patch_size or channels != model.num_channels:
        raise UserError(
            f"pages of {size}-pixel patches in {channels} channel(s), but the model reads {model.patch_size}-pixel "
            f"patches in {model.num_channels}"
        )
    if n > model.seq_length:
        patches = patches[: model.seq_length]
    if layer is not None and not 1 <= layer <= model.layers:
        raise UserError(f"--attention {layer}: the model has layers 1 to {model.layers}")
    with mesh(ParallelConfig()) as here:
        objectives = pretraining_objectives(model, LossConfig())
        module = torch.nn.Sequential(*build_stages(model, objectives, seed=0)).to(here.device)
        load_weights(module, source)
        evaluator = Evaluator(WholeModel(module), OnePage(patches, model, origin), objectives, model, here)
        (page,) = evaluator.run(pages=1, attention=layer).pages
    return page
