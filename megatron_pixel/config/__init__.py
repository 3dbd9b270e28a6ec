"""The typed config tree, its YAML recipes, and the way from both and a command line to checked values."""

from megatron_pixel.config.command_line import (
    add_dataclass_arguments,
    describe,
    from_arguments,
    read_command_line,
)
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
from megatron_pixel.config.validation import check_files, validate

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
    "add_dataclass_arguments",
    "apply_overrides",
    "check_files",
    "describe",
    "diff",
    "exit_on_user_error",
    "flatten",
    "from_arguments",
    "load_config",
    "read_command_line",
    "save_config",
    "settings",
    "to_dict",
    "validate",
]
