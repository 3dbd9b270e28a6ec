"""A file of ``ds_configs/``: DeepSpeed's own settings, checked against ours. Starts without torch.

Such a file holds what is DeepSpeed's alone: ZeRO stage, offload, buckets. Batch sizes, precision, optimizer and
schedule stand in the config tree only; a file that says something else about them is refused with both places named.
"""

import json
from pathlib import Path
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import OptimizerConfig, ParallelConfig, TrainingConfig

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

    def check_pipeline(self, parallel: ParallelConfig) -> None:
        """Refuse what does not go with a pipeline, whose gradients are whole until the step ends.

        Raises:
            UserError: ZeRO stage 2 or 3, or an optimizer on the host, with more than one pipeline stage.
        """
        if parallel.pipeline == 1:
            return
        ways_out = "; set deepspeed_config to ds_configs/zero1.json, or parallel.pipeline to 1"
        if self.zero_stage > 1:
            raise UserError(
                f"{self._place('stage')}: zero_optimization.stage is {self.zero_stage}, but parallel.pipeline is "
                f"{parallel.pipeline}: a pipeline goes with stage 1 only{ways_out}"
            )
        if self.offloads_optimizer:
            raise UserError(
                f"{self._place('offload_optimizer')}: offload_optimizer is set, but parallel.pipeline is "
                f"{parallel.pipeline}: a pipeline keeps its optimizer on the device{ways_out}"
            )

    def check_automatic(self) -> None:
        """Refuse sizes of micro-batches while ``training.micro_batch_rows`` is ``auto``.

        Raises:
            UserError: the file fixes them.
        """
        for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
            if key in self.content:
                raise UserError(
                    f"{self._place(key)}: {key} is {json.dumps(self.content[key])}, but training.micro_batch_rows is "
                    "auto: take this key out, or set training.micro_batch_rows to a number"
                )

    def check_compiling(self, training: TrainingConfig) -> None:
        """Refuse compiled layers under ZeRO 3, which gathers weights in hooks that the compiler would cut through.

        Raises:
            UserError: both are set.
        """
        if training.compile != "none" and self.zero_stage == 3:
            raise UserError(
                f"{self._place('stage')}: zero_optimization.stage is 3, but training.compile is {training.compile}: "
                "compiled layers go with stages 1 and 2; set training.compile to none, or deepspeed_config to "
                "ds_configs/zero2.json"
            )

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


def _locate(path: str) -> Path:
    root = Path(__file__).resolve().parents[2]
    for candidate in (Path(path), root / path):
        if candidate.is_file():
            return candidate
    known = ", ".join(f"ds_configs/{file.name}" for file in sorted((root / "ds_configs").glob("*.json")))
    raise UserError(f"deepspeed_config: there is no file {path}; the project has {known}")
