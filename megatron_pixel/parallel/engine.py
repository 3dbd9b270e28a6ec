"""DeepSpeed's own settings joined with ours, and the engine made of both."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import OptimizerConfig, TrainingConfig
from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile

_NEVER = 1 << 60
"""Steps between DeepSpeed's own progress lines: the loop has its own."""


def merged_config(
    file: DeepSpeedFile, training: TrainingConfig, optimizer: OptimizerConfig, accumulation: int, cuda: bool
) -> dict[str, Any]:
    """The configuration that DeepSpeed gets: the file's content and, over it, what the config tree says.

    Args:
        accumulation: micro-batches of a step on each rank.
        cuda: whether the engine runs on CUDA devices.
    """
    bf16 = training.precision == "bf16"
    parameters: dict[str, Any] = {
        "lr": optimizer.lr,
        "betas": [optimizer.beta1, optimizer.beta2],
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
    }
    if not (cuda and file.offloads_optimizer):
        # torch's AdamW needs no compiler on the machine, and fused it reads weights and moments once, on CPUs too. For
        # an optimizer beside a GPU, on the host, DeepSpeed has one of its own.
        parameters |= {"torch_adam": True, "fused": True}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_grad,
        "optimizer": {"type": "AdamW", "params": parameters},
        "bf16": {**file.content.get("bf16", {}), "enabled": bf16},
        "zero_optimization": {**file.content.get("zero_optimization", {}), "stage": file.zero_stage},
        "steps_per_print": file.content.get("steps_per_print", _NEVER),
    }
    if bf16:
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
        # Summed in bf16, gradients would depend on the number of ranks in their third digit.
        ours["communication_data_type"] = file.content.get("communication_data_type", "fp32")
    rest = {key: value for key, value in file.content.items() if key not in ("bfloat16", "fp16", "train_batch_size")}
    return {**rest, **ours}


def parameter_groups(parameters: Iterable[torch.nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors (norms, biases) without, as is the custom; empty groups are left out."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def start_communication() -> None:
    """Let DeepSpeed communicate through the process group that is there; its pipeline needs that before its engine."""
    import deepspeed

    # An all-reduce for CPU ranks that DeepSpeed would compile first, where it finds a compiler: gloo has one already.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed()


def build_engine(model: torch.nn.Module, config: Mapping[str, Any], weight_decay: float, mpu: Any) -> Any:
    """``deepspeed.initialize`` with a merged configuration.

    Args:
        model: the stages in order.
        config: from :func:`merged_config`.
        weight_decay: for matrices; see :func:`parameter_groups`.
        mpu: the process mesh under the names that DeepSpeed asks for; None for a pipeline, which brings its own.

    Returns:
        The DeepSpeedEngine, a PipelineEngine for a pipeline.

    Raises:
        UserError: DeepSpeed refuses a key of the file, or the file asks for asynchronous checkpoints, whose files would
            be hashed before they are written.
    """
    import deepspeed

    start_communication()
    try:
        engine, *_ = deepspeed.initialize(
            model=model,
            model_parameters=parameter_groups(model.parameters(), weight_decay),
            config=dict(config),
            mpu=mpu,
        )
    except ValueError as error:
        # DeepSpeed checks its sections with pydantic, whose errors name the key.
        raise UserError(f"DeepSpeed refuses its configuration: {error}") from error
    if engine.checkpoint_engine.is_decoupled():
        raise UserError(
            "deepspeed_config asks for asynchronous checkpoints of DeepSpeed's own: take 'checkpoint' out, and set "
            "checkpoint.asynchronous"
        )
    return engine


def set_learning_rate(engine: Any, value: float) -> None:
    """Set the learning rate of the step that comes next."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value
