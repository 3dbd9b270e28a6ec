"""How many rows a second a training step takes on this machine: what ``dataloader.py`` compares its loader with."""

import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from megatron_pixel.config.schema import LossConfig, ModelConfig, ParallelConfig
from megatron_pixel.data.rows import MicroBatch
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import mesh

CPU_MODEL = ModelConfig(layers=4)
"""The paper's width with a sixth of its layers: the model of the benchmarks of training on a CPU."""


def step_rows_per_second(batches: Sequence[MicroBatch]) -> float:
    """Rows a second through forward and backward pass in fp32, the median over ``batches`` after the first.

    The optimizer is left out: its time is shared by as many rows as a step has, and a step without it is faster, which
    makes the comparison harder for the loader.
    """
    with mesh(ParallelConfig()) as here:
        objectives = pretraining_objectives(CPU_MODEL, LossConfig())
        network = nn.Sequential(*build_stages(CPU_MODEL, objectives, seed=0)).to(here.device)
        rates = []
        for rows in batches:
            begin = time.perf_counter()
            batch = to_tensors(rows, objectives, here.device)
            terms = losses(network(batch.inputs), batch.labels, objectives)
            torch.stack([term.sum for term in terms.values()]).sum().backward()
            network.zero_grad()
            rates.append(len(rows.rows) / (time.perf_counter() - begin))
    return statistics.median(rates[1:])
