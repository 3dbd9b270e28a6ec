"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math

from megatron_pixel.config.schema import OptimizerConfig


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Learning rate of ``step`` (1 is the first one taken) in a run of ``steps``.

    Warm-up, with ``W = warmup_steps``::

        lr(t) = lr * t / W                                           t <= W

    then, with ``p = (t - W) / (steps - W)`` going from 0 to 1::

        linear:  lr(t) = min_lr + (lr - min_lr) * (1 - p)
        cosine:  lr(t) = min_lr + (lr - min_lr) * (1 + cos(pi p)) / 2

    The peak is reached at step ``W`` and ``min_lr`` at step ``steps``; the first step already learns.
    """
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    if config.schedule == "cosine":
        share = (1.0 + math.cos(math.pi * progress)) / 2.0
    else:
        share = 1.0 - progress
    return config.min_lr + (config.lr - config.min_lr) * share
