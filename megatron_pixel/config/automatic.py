"""Settings that may be left to the program (``auto``): which are, the least that they can become, and their values.

The memory model and the predictor decide (``megatron_pixel.planning.choice``), once, before anything is built; from
there on, and in the run's folder, the settings are plain values.
"""

import dataclasses

from megatron_pixel.config.schema import RunConfig

AUTO = "auto"
ROWS = "training.micro_batch_rows"
LAYERS = "parallel.activation_checkpointing"


def automatic(config: RunConfig) -> list[str]:
    """Dotted names of the settings that are left to the program."""
    values = {ROWS: config.training.micro_batch_rows, LAYERS: config.parallel.activation_checkpointing}
    return [name for name, value in values.items() if value == AUTO]


def decided(config: RunConfig, rows: int, layers: str) -> RunConfig:
    """A copy whose automatic settings have these values; the others stay as they are.

    Args:
        rows: for ``training.micro_batch_rows``.
        layers: for ``parallel.activation_checkpointing``.
    """
    names = automatic(config)
    training, parallel = config.training, config.parallel
    return dataclasses.replace(
        config,
        training=dataclasses.replace(training, micro_batch_rows=rows) if ROWS in names else training,
        parallel=dataclasses.replace(parallel, activation_checkpointing=layers) if LAYERS in names else parallel,
    )


def least(config: RunConfig) -> RunConfig:
    """The values that need the least memory: where these cannot run, no others can."""
    return decided(config, 1, "all")
