"""What the tests of this folder ask of two ranks, in one start of two processes: imports cost more than the work."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import deepspeed
import torch
import torch.distributed as dist

from megatron_pixel.config.schema import LossConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainingConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.model import compiling as compiler
from megatron_pixel.model.batch import Batch, to_tensors
from megatron_pixel.model.objectives import Objective, losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile
from megatron_pixel.parallel.engine import build_engine, merged_config
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.training.start import compile_as_asked
from tests.distributed.harness import use_store
from tests.distributed.tiny_run import tiny
from tests.model.helpers import rows_of

MODEL = ModelConfig(
    layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=40, seq_length=16, patch_size=4, num_channels=3
)
LAYOUTS = {"data": ParallelConfig(), "tensor": ParallelConfig(tensor=2), "pipe": ParallelConfig(pipeline=2)}
ZERO_STAGES = (1, 2, 3)
UNTOUCHED = 0
STEPS = [[Kind.TEXT, Kind.PIXEL], [Kind.PAIR, Kind.TEXT], [Kind.PIXEL, Kind.PIXEL]]
"""Kinds of the micro-batches of each step. The last step leaves the token embedding and the token head out."""
OPTIMIZER = OptimizerConfig(lr=1e-3, beta2=0.99, eps=1e-6, clip_grad=0.5)


def everything() -> dict[str, Any]:
    """All that the tests need: this rank's place in each layout, what it measured in two of them, ZeRO's weights."""
    result: dict[str, Any] = {"places": {}}
    for i, (name, parallel) in enumerate(LAYOUTS.items()):
        use_store(i)
        with mesh(parallel) as here:
            result["places"][name] = place(here)
            if name == "data":
                result["one"] = measure(here)
                result["zero"] = zero_differences(here)
                result["compiling"] = {name: compiling(here, name) for name in ("compiler", "memory")}
            elif name == "tensor":
                result["two"] = measure(here)
                # Megatron asks for the current CUDA device; all else of it works on this one.
                torch.cuda.current_device = lambda: torch.device("cpu")
                result["by position"] = measure(here, sequence_parallel=True)
    return result


def place(here: Mesh) -> dict[str, Any]:
    """Ranks and sizes along pipe, data and tensor, as the mesh and as DeepSpeed's adapter tell them."""
    total = torch.tensor([here.rank + 1])
    dist.all_reduce(total, group=here.data_group)
    return {
        "ranks": (here.pipe_rank, here.data_rank, here.tensor_rank),
        "sizes": (here.pipe_size, here.data_size, here.tensor_size),
        "main": here.is_main,
        "sum_over_data_group": total.item(),
        "mpu": (
            here.mpu.get_model_parallel_rank(),
            here.mpu.get_model_parallel_world_size(),
            dist.get_world_size(here.mpu.get_model_parallel_group()),
            here.mpu.get_data_parallel_world_size(),
        ),
    }


def measure(here: Mesh, sequence_parallel: bool = False) -> dict[str, Any]:
    """Weights of this rank, and for each kind of rows its losses and gradients, as arrays."""
    objectives = pretraining_objectives(MODEL, LossConfig())
    stages = build_stages(
        MODEL, objectives, seed=3, tensor_parallel=here.tensor_size, sequence_parallel=sequence_parallel
    )
    network = torch.nn.Sequential(*stages)
    result: dict[str, Any] = {"weights": {}, "split": {}, "losses": {}, "gradients": {}}
    for name, parameter in network.named_parameters():
        result["weights"][name] = parameter.detach().numpy().copy()
        if getattr(parameter, "tensor_model_parallel", False):
            result["split"][name] = (parameter.partition_dim, parameter.partition_stride)
    for kind in Kind:
        batch = to_tensors(rows_of(kind, MODEL), objectives)
        parts = losses(network(batch.inputs), batch.labels, objectives)
        result["losses"][kind] = {name: part.sum.item() for name, part in parts.items()}
        network.zero_grad()
        sum(part.sum / part.count for part in parts.values()).backward()
        result["gradients"][kind] = {
            name: parameter.grad.numpy().copy()
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        }
    return result


def zero_differences(here: Mesh) -> dict[int, tuple[float, str]]:
    """By ZeRO stage, the largest difference of any weight after ``STEPS`` from plain PyTorch's, and its name.

    Under the key ``UNTOUCHED``: at ZeRO 3, where what the rows do not need is not run, as it is not at stages 1 and 2.
    """
    objectives = pretraining_objectives(MODEL, LossConfig())
    expected = plain_weights(objectives)
    result = {}
    for key, stage, touch_all in [*((stage, stage, stage == 3) for stage in ZERO_STAGES), (UNTOUCHED, 3, False)]:
        weights = zero_weights(stage, here, objectives, touch_all)
        result[key] = max(((weights[name] - value).abs().max().item(), name) for name, value in expected.items())
    return result


def compiling(here: Mesh, lacking: str) -> tuple[str, str]:
    """Type and message of what ends this rank's start where the second one, alone, lacks a compiler or memory."""

    def no_compiler(*_: Any) -> None:
        raise RuntimeError("No working C++ compiler found\nand more")

    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    config = tiny("not made", "--training.compile=layers")
    stages = torch.nn.Sequential(
        *build_stages(config.model, pretraining_objectives(config.model, LossConfig()), seed=3)
    )
    torch._dynamo.reset()
    compiler.BACKEND = no_compiler if lacking == "compiler" and here.rank else "aot_eager"
    try:
        with patch.object(compiler, "_run_once", no_memory) if lacking == "memory" and here.rank else nullcontext():
            compile_as_asked(config, stages)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", "compiled"


def plain_weights(objectives: tuple[Objective, ...]) -> dict[str, torch.Tensor]:
    """Weights after ``STEPS`` over the rows of both ranks."""
    network = torch.nn.Sequential(*build_stages(MODEL, objectives, seed=3))
    betas = (OPTIMIZER.beta1, OPTIMIZER.beta2)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=OPTIMIZER.lr, betas=betas, eps=OPTIMIZER.eps, weight_decay=0.0
    )
    for step in range(len(STEPS)):
        # A parameter that no row touched moves on by its momentum, as it does in DeepSpeed's flat buffers.
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        ranks = batches(step, objectives)
        counts = step_counts(ranks)
        for batch in (batch for rank in ranks for batch in rank):
            parts = losses(network(batch.inputs), batch.labels, objectives)
            sum(part.sum / counts[name] for name, part in parts.items()).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), OPTIMIZER.clip_grad)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


def zero_weights(stage: int, here: Mesh, objectives: tuple[Objective, ...], touch_all: bool) -> dict[str, torch.Tensor]:
    """The same through DeepSpeed; every rank reads its own rows."""
    network = torch.nn.Sequential(*build_stages(MODEL, objectives, seed=3, touch_all=touch_all))
    training = TrainingConfig(precision="fp32", micro_batch_rows=3, global_batch_rows=12)
    config = merged_config(DeepSpeedFile(f"ds_configs/zero{stage}.json"), training, OPTIMIZER, 2, cuda=False)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    engine = build_engine(network, config, weight_decay=0.0, mpu=here.mpu)
    for step in range(len(STEPS)):
        ranks = batches(step, objectives)
        counts = step_counts(ranks)
        for batch in ranks[here.data_rank]:
            parts = losses(engine(tuple(batch.inputs)), batch.labels, objectives)
            scale = here.data_size * len(STEPS[step])
            engine.backward(sum(part.sum * scale / max(1, counts.get(name, 0)) for name, part in parts.items()))
            engine.step()
    weights = {}
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            weights[name] = parameter.detach().clone()
    return weights


def batches(step: int, objectives: tuple[Objective, ...]) -> list[list[Batch]]:
    """Of every rank, the micro-batches of ``step``."""
    return [
        [
            to_tensors(rows_of(kind, MODEL, seed=100 * step + 10 * i + rank), objectives)
            for i, kind in enumerate(STEPS[step])
        ]
        for rank in range(2)
    ]


def step_counts(ranks: list[list[Batch]]) -> dict[str, int]:
    """Targets of a step over all ranks, by objective."""
    counts: dict[str, int] = {}
    for batch in (batch for rank in ranks for batch in rank):
        for name, count in batch.counts.items():
            counts[name] = counts.get(name, 0) + count
    return counts
