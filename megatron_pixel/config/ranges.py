"""Ranges of single settings, whatever tree of settings they stand in, and the report of what is wrong with one."""

from collections.abc import Mapping
from typing import Any

from megatron_pixel.config.keys import settings

AT_LEAST = {
    "model.layers": 1,
    "model.hidden": 1,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.ffn": 1,
    "model.vocab_size": 4,  # unknown, BOS, EOS and one token
    "model.seq_length": 2,
    "model.patch_size": 4,
    "data.prefetch": 1,
    "data.workers": 0,
    "pair.patches": 2,
    "pair.tokens": 2,
    "loss.token_weight": 0,
    "loss.patch_weight": 0,
    "examples.limit": 0,
    "examples.evaluation_limit": 0,
    "optimizer.min_lr": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_grad": 0,
    "training.steps": 1,
    "training.seed": 0,
    "training.global_batch_rows": 1,
    "training.micro_batch_rows": 1,
    "parallel.tensor": 1,
    "parallel.pipeline": 1,
    "evaluation.every": 0,
    "evaluation.rows": 0,
    "stopping.every": 0,
    "stopping.patience": 0,
    "checkpoint.every": 0,
    "checkpoint.keep": 0,
    "logging.every": 1,
    "logging.progress_every": 1,
    "logging.pages": 0,
    "logging.histograms": 0,
    "guards.max_skipped": 1,
    "guards.spike_window": 2,
    "guards.spike_patience": 1,
    "guards.max_rewinds": 0,
    "guards.hang_seconds": 0,
    "guards.slow_ranks_every": 0,
    "guards.slow_ranks_factor": 1,
}
"""The least value of a setting."""
ABOVE_ZERO = (
    "model.norm_eps",
    "model.rope_theta",
    "model.init_std",
    "optimizer.lr",
    "optimizer.eps",
    "parallel.device_memory_gb",
)
BELOW_ONE = ("optimizer.beta1", "optimizer.beta2", "dropout")
_MAX_SEED = 2**32 - 1  # numpy takes no larger one


class Report:
    """Problems found so far, each with the place that its value was written at.

    Args:
        config: a tree of settings.
        where: file and line of each key.
    """

    def __init__(self, config: Any, where: Mapping[str, str]) -> None:
        self.config = config
        self.where = where
        self.problems: list[str] = []
        self.bad: set[str] = set()

    def value(self, key: str) -> Any:
        """What the setting of this dotted name is."""
        section, _, name = key.rpartition(".")
        return getattr(getattr(self.config, section) if section else self.config, name)

    def add(self, key: str, reason: str) -> None:
        """A problem with one setting."""
        place = f"{self.where[key]}: " if key in self.where else ""
        self.problems.append(f"{place}{key}: {reason}")
        self.bad.add(key)

    def fine(self, *keys: str) -> bool:
        """Whether no problem has been found with these keys yet: checks of several values need each one sound."""
        return self.bad.isdisjoint(keys)


def check_ranges(report: Report) -> None:
    """Look at every setting of the report's tree that has a range."""
    present = settings(type(report.config))
    for key, least in AT_LEAST.items():
        # Some settings may be a word instead, such as auto.
        if key in present and not isinstance(report.value(key), str) and report.value(key) < least:
            report.add(key, f"{report.value(key)} is too small; the least is {least}")
    for key in ABOVE_ZERO:
        if key in present and report.value(key) is not None and report.value(key) <= 0:
            report.add(key, f"{report.value(key)} must be above 0")
    for key in BELOW_ONE:
        if key in present and not 0 <= report.value(key) < 1:
            report.add(key, f"{report.value(key)} must be at least 0 and below 1")
    if report.config.training.seed > _MAX_SEED:
        report.add("training.seed", f"{report.config.training.seed} is too large; the largest is {_MAX_SEED}")
