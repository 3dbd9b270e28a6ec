"""Model, engine and execution of a layout."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from megatron_pixel.model.stages import StageSpec
from megatron_pixel.parallel.clock import Clock
from megatron_pixel.parallel.engine import build_engine
from megatron_pixel.parallel.execution import PipelineTraining, Training, WholeTraining
from megatron_pixel.parallel.mesh import Mesh


def build_training(
    specs: Sequence[StageSpec], boundaries: Sequence[int], config: Mapping[str, Any], weight_decay: float, mesh: Mesh
) -> tuple[Training, int]:
    """Build this rank's share of the model and the DeepSpeed engine around it; collective.

    Args:
        specs: the whole list of stages.
        boundaries: of the pipeline ranks in it; see :func:`megatron_pixel.parallel.cut.boundaries`.
        config: DeepSpeed's, from :func:`megatron_pixel.parallel.engine.merged_config`.
        weight_decay: for matrices.
        mesh: where this process stands.

    Returns:
        What takes steps, and the parameters of the whole model.
    """
    if mesh.pipe_size > 1:
        # Imported here: it starts DeepSpeed, which only a pipeline needs before its engine.
        from megatron_pixel.parallel.pipeline import PipelinedStages

        training = PipelineTraining(Clock(mesh.device))
        pipeline = PipelinedStages(specs, boundaries, mesh, training.loss)
        parameters = _count_parameters(pipeline, mesh)
        return training.attach(build_engine(pipeline, config, weight_decay, mpu=None)), parameters
    model = nn.Sequential(*(spec.build() for spec in specs)).to(mesh.device)
    parameters = _count_parameters(model, mesh)
    return WholeTraining(build_engine(model, config, weight_decay, mesh.mpu), Clock(mesh.device)), parameters


def _count_parameters(model: nn.Module, mesh: Mesh) -> int:
    """Parameters of the whole model: those that are split count for every tensor-parallel rank."""

    def copies(parameter: Any) -> int:
        return mesh.tensor_size if getattr(parameter, "tensor_model_parallel", False) else 1

    count = sum(parameter.numel() * copies(parameter) for parameter in model.parameters())
    return int(mesh.sum_over_pipeline(torch.tensor(count, device=mesh.device)))
