"""The typed config tree, its YAML recipes, and the way from both and a command line to checked values."""

from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.keys import Setting, settings
from megatron_pixel.config.loader import apply_overrides, diff, flatten, load_config, save_config, to_dict
from megatron_pixel.config.schema import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PairConfig,
    ParallelConfig,
    RenderingConfig,
    RunConfig,
    RunSection,
    TrainingConfig,
)
from megatron_pixel.config.validation import check_files, check_world, validate

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PairConfig",
    "ParallelConfig",
    "RenderingConfig",
    "RunConfig",
    "RunSection",
    "Setting",
    "TrainingConfig",
    "UserError",
    "apply_overrides",
    "check_files",
    "check_world",
    "diff",
    "exit_on_user_error",
    "flatten",
    "load_config",
    "save_config",
    "settings",
    "to_dict",
    "validate",
]
