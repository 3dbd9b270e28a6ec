"""What may change between a checkpoint and the run that resumes from it."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
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
    "training.compile",
    "training.stop_after",
    "checkpoint",
    "logging",
    "profile",
    "guards",
    "evaluation",
    "data.prefetch",
    "data.workers",
)
"""Names, or whole sections, that leave the weights, the rows and their order as they are."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a run is spread over processes."""

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


def refuse_changes(
    saved: dict[str, Any], config: RunConfig, checkpoint: Path, sections: Collection[str] | None = None
) -> list[str]:
    """Refuse changes that nobody allowed; returns a line for each that ``checkpoint.allow_changes`` let pass.

    Args:
        saved: settings of the checkpoint.
        config: settings of this run.
        checkpoint: for the message.
        sections: compare these alone, as the checkpoint knows no others; None compares all.

    Raises:
        UserError: lists every refused change with both values and the way to allow it.
    """
    allowed = config.checkpoint.allow_changes
    found = [change for change in changes(saved, config) if sections is None or _named(change[0], sections)]
    refused = [(name, old, new) for name, old, new in found if not _named(name, allowed)]
    if refused:
        lines = "".join(f"\n  {name}: {old} in the checkpoint, {new} now" for name, old, new in refused)
        names = " ".join(name for name, _, _ in refused)
        raise UserError(
            f"{checkpoint} was trained with other settings:{lines}\n"
            f"Put them back, or allow the change by name: --checkpoint.allow_changes {names}"
        )
    return [f"{name}: {old} -> {new}" for name, old, new in found]


def refuse_other_data(
    saved: Mapping[str, Any], data: Mapping[str, Any], allowed: Collection[str], checkpoint: Path
) -> list[str]:
    """Refuse datasets made with another tokenizer, other fonts or other rendering settings than the checkpoint's.

    Args:
        saved, data: from :func:`megatron_pixel.training.data_facts.data_facts`, of the checkpoint and of this run.
        allowed: ``checkpoint.allow_changes``. Here a name counts for itself alone: who allows ``data.text``, because
            the dataset has moved, has not said that its tokenizer may be another one.

    Returns:
        A line for each difference that was allowed.

    Raises:
        UserError: lists every difference that was not.
    """
    found = [
        (f"{place.partition('[')[0]}.{name}", f"{place} {name}: {before} in the checkpoint, {now} now")
        for place in saved
        if place in data
        for name in saved[place] | data[place]
        if (before := saved[place].get(name)) != (now := data[place].get(name))
    ]
    refused = [(name, line) for name, line in found if name not in allowed]
    if refused:
        lines = "".join(f"\n  {line}" for _, line in refused)
        names = " ".join(sorted({name for name, _ in refused}))
        raise UserError(
            f"{checkpoint} was trained on data that was made otherwise:{lines}\n"
            f"Use the datasets it was trained on, or allow the change by name: --checkpoint.allow_changes {names}"
        )
    return [line for _, line in found]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def _named(name: str, names: Iterable[str]) -> bool:
    return any(name == entry or name.startswith(entry + ".") for entry in names)
