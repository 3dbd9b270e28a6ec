"""What may change between a checkpoint and the run that resumes from it."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import flatten
from megatron_pixel.config.schema import RunConfig

FREE_TO_CHANGE = (
    "run.dir",
    "parallel",
    "deepspeed_config",
    "training.micro_batch_rows",
    "training.stop_after",
    "checkpoint",
    "logging",
    "evaluation",
    "data.prefetch",
)
"""Names, or whole sections, that leave the weights, the rows and their order as they are."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is spread over processes; the files of a checkpoint follow it."""

    data: int
    tensor: int
    pipeline: int
    zero_stage: int

    def __str__(self) -> str:
        return f"data {self.data}, tensor {self.tensor}, pipeline {self.pipeline}, ZeRO {self.zero_stage}"


def changes(saved: dict[str, Any], config: RunConfig) -> list[tuple[str, Any, Any]]:
    """The (name, saved value, new value) of settings that differ and are not free to change, in the schema's order.

    A setting that one side does not know counts as unchanged when the other side holds its default: a checkpoint
    outlives the program version that wrote it.
    """
    before, now, defaults = _flat(saved), flatten(config), flatten(RunConfig())
    names = list(now) + [name for name in before if name not in now]
    pairs = [(name, before.get(name, defaults.get(name)), now.get(name)) for name in names]
    return [(name, old, new) for name, old, new in pairs if old != new and not _named(name, FREE_TO_CHANGE)]


def refuse_changes(saved: dict[str, Any], config: RunConfig, checkpoint: Path) -> list[str]:
    """Refuse changes that nobody allowed; returns a line for each that ``checkpoint.allow_changes`` let pass.

    Raises:
        UserError: lists every refused change with both values and the way to allow it.
    """
    allowed = config.checkpoint.allow_changes
    found = changes(saved, config)
    refused = [(name, old, new) for name, old, new in found if not _named(name, allowed)]
    if refused:
        lines = "".join(f"\n  {name}: {old} in the checkpoint, {new} now" for name, old, new in refused)
        names = " ".join(name for name, _, _ in refused)
        raise UserError(
            f"{checkpoint} was trained with other settings:{lines}\n"
            f"Put them back, or allow the change by name: --checkpoint.allow_changes {names}"
        )
    return [f"{name}: {old} -> {new}" for name, old, new in found]


def refuse_other_layout(saved: dict[str, int], layout: Layout, checkpoint: Path) -> None:
    """Raise UserError unless the checkpoint was written by the same layout."""
    written = Layout(**saved)
    if written != layout:
        raise UserError(
            f"{checkpoint} was written by another layout ({written}; this run: {layout}), "
            "and changing it is not supported yet: start as many processes, with the same parallel.* and ZeRO stage"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _named(name: str, names: Iterable[str]) -> bool:
    return any(name == entry or name.startswith(entry + ".") for entry in names)
