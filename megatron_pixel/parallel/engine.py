"""DeepSpeed's own settings joined with ours, and the engine made of both.

A file of ``ds_configs/`` holds what is DeepSpeed's alone: ZeRO stage, offload, buckets. Batch sizes, precision,
optimizer and schedule stand in the config tree only; a file that says something else about them is refused with both
places named.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import OptimizerConfig, TrainingConfig

_NEVER = 1 << 60
"""Steps between DeepSpeed's own progress lines: the loop has its own."""

_SECTIONS = {
    "optimizer": "optimizer.*",
    "scheduler": "optimizer.schedule and optimizer.warmup_steps",
    "data_types": "training.precision",
    "torch_autocast": "training.precision",
    "amp": "training.precision",
    "tensor_parallel": "parallel.tensor",
    "load_universal": "checkpoint.resume",
}
"""Sections that may not stand in a DeepSpeed file, whatever they say, and where their subject stands instead."""


class DeepSpeedFile:
    """A DeepSpeed JSON file, checked against the settings that stand in the config tree.

    Args:
        path: the file; looked for below the working directory, then below the project's root.

    Raises:
        UserError: no such file, or no JSON object in it.
    """

    def __init__(self, path: str) -> None:
        self.path = _locate(path)
        self._text = self.path.read_text(encoding="utf-8")
        try:
            self.content: dict[str, Any] = json.loads(self._text)
        except ValueError as error:
            raise UserError(f"deepspeed_config {self.path} is not JSON: {error}") from error
        if not isinstance(self.content, dict):
            raise UserError(f"deepspeed_config {self.path} holds no JSON object")

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 1 where the file names none.

        Raises:
            UserError: stage 0, which reports no gradient norm and clips wrongly over several ranks, or no stage at all.
        """
        stage = self.content.get("zero_optimization", {}).get("stage", 1)
        if stage not in (1, 2, 3):
            raise UserError(
                f"{self._place('stage')}: zero_optimization.stage is {json.dumps(stage)}; valid: 1, 2 or 3 "
                "(1 costs nothing more than 0, also on one process)"
            )
        return int(stage)

    @property
    def offloads_optimizer(self) -> bool:
        """Whether the optimizer runs on the host's processor."""
        device = self.content.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
        return str(device) != "none"

    @property
    def touches_all(self) -> bool:
        """Whether every parameter must take part in every micro-batch: else gradients are silently lost.

        ZeRO 3 reduces a parameter when the module that owns it runs; an offloaded optimizer gets the gradients of a
        step only for the parameters that its last micro-batch has used.
        """
        return self.zero_stage == 3 or self.offloads_optimizer

    def check(self, training: TrainingConfig, optimizer: OptimizerConfig, accumulation: int) -> None:
        """Refuse what contradicts the config tree.

        Raises:
            UserError: one line a contradiction, each with both places and both values.
        """
        if self._enabled("fp16"):
            raise UserError(
                f"{self._place('fp16')}: fp16 is not supported (the loss would need scaling); "
                "take it out and use training.precision bf16 or fp32"
            )
        problems = [
            f"{self._place(key)}: {key} is {json.dumps(self.content[key])}, but {name} is {value}"
            for key, name, value in (
                ("train_batch_size", "training.global_batch_rows", training.global_batch_rows),
                ("train_micro_batch_size_per_gpu", "training.micro_batch_rows", training.micro_batch_rows),
                ("gradient_accumulation_steps", "what training.* gives for this layout", accumulation),
                ("gradient_clipping", "optimizer.clip_grad", optimizer.clip_grad),
            )
            if key in self.content and self.content[key] != value
        ]
        bf16 = training.precision == "bf16"
        problems += [
            f"{self._place(key)}: {key}.enabled is {json.dumps(self._enabled(key))}, "
            f"but training.precision is {training.precision}"
            for key in ("bf16", "bfloat16")
            if key in self.content and self._enabled(key) != bf16
        ]
        problems += [
            f"{self._place(key)}: {key} is {json.dumps(self.content[key])}, but this is set by {name}"
            for key, name in _SECTIONS.items()
            if key in self.content
        ]
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise UserError(
                f"deepspeed_config contradicts the settings of the run:{lines}\n"
                "Take these keys out of the file: the config tree alone sets them"
            )

    def _enabled(self, section: str) -> bool:
        return bool(self.content.get(section, {}).get("enabled", False))

    def _place(self, key: str) -> str:
        for number, line in enumerate(self._text.splitlines(), start=1):
            if f'"{key}"' in line:
                return f"{self.path}:{number}"
        return str(self.path)


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
        # torch's AdamW needs no compiler on the machine. For an optimizer beside a GPU, on the host, DeepSpeed has one.
        parameters |= {"torch_adam": True, **({"fused": True} if cuda else {})}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.micro_batch_rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": optimizer.clip_grad,
        "optimizer": {"type": "AdamW", "params": parameters},
        "bf16": {**file.content.get("bf16", {}), "enabled": bf16},
        "zero_optimization": {**file.content.get("zero_optimization", {}), "stage": file.zero_stage},
        "steps_per_print": file.content.get("steps_per_print", _NEVER),
    }
    if bf16:
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
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

    # An all-reduce for CPU ranks that DeepSpeed would compile first, where it finds a compiler: gloo has one already.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
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
            "deepspeed_config asks for asynchronous checkpoints, which are not supported: take 'checkpoint' out"
        )
    return engine


def set_learning_rate(engine: Any, value: float) -> None:
    """Set the learning rate of the step that comes next."""
    for group in engine.optimizer.param_groups:
        group["lr"] = value


def _locate(path: str) -> Path:
    root = Path(__file__).resolve().parents[2]
    for candidate in (Path(path), root / path):
        if candidate.is_file():
            return candidate
    known = ", ".join(f"ds_configs/{file.name}" for file in sorted((root / "ds_configs").glob("*.json")))
    raise UserError(f"deepspeed_config: there is no file {path}; the project has {known}")
