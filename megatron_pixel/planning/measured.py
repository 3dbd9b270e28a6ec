"""Times of one device that were measured, against the roofline's: what ``benchmarks/training.py --json`` writes."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig, RunConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.constants import Constants
from megatron_pixel.planning.devices import DEVICES, Device
from megatron_pixel.planning.setting import Setting
from megatron_pixel.planning.speed import micro_batch_seconds, optimizer_seconds


def read_measured(path: Path, config: RunConfig) -> tuple[Device, Constants]:
    """The device of a measurement, and constants that bring the roofline to what was measured there.

    A kind of row that was not measured takes the mean of the others' factors.

    Args:
        path: a result of ``benchmarks/training.py``.
        config: a run, for all that the measurement does not say.

    Raises:
        UserError: it cannot be read, lacks a figure, or was measured on no GPU of the table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--measured: {path} cannot be read: {error}") from error
    found = content.get("bf16", content) if isinstance(content, dict) else {}
    try:
        if found["precision"] != "bf16":
            raise UserError(f"--measured: {path} was measured in {found['precision']}; predictions are for bf16")
        device = _device(path, found["device"])
        model = ModelConfig(**found["model"])
        kinds = {kind: found[kind.name.lower()] for kind in Kind if kind.name.lower() in found}
        factors = {kind: _factor(config, model, device, kind, entry) for kind, entry in kinds.items()}
        steps = [_optimizer(config, model, device, kind, entry) for kind, entry in kinds.items()]
    except (KeyError, TypeError) as error:
        raise UserError(f"--measured: {path} lacks {error}: benchmarks/training.py --json writes it") from error
    if not factors:
        raise UserError(
            f"--measured: {path} holds no kind of row: run benchmarks/training.py with --kinds text pixel pair"
        )
    mean = sum(factors.values()) / len(factors)
    everything = {kind: factors.get(kind, mean) for kind in Kind}
    return device, Constants(measured=everything, optimizer=sum(steps) / len(steps))


def _device(path: Path, title: str) -> Device:
    names = title.upper().replace("-", " ").split()
    fitting = [device for name, device in DEVICES.items() if name.partition("-")[0].upper() in names]
    if not fitting:
        raise UserError(
            f"--measured: {path} was measured on {title!r}; the table has {', '.join(DEVICES)}. Without --measured, "
            "predictions start from the roofline of --gpu"
        )
    small = [device for device in fitting if "40GB" in names and device.memory == 40e9]
    return small[0] if small else fitting[0]


def _factor(config: RunConfig, model: ModelConfig, device: Device, kind: Kind, entry: Mapping[str, Any]) -> float:
    setting = _setting(config, model, kind, entry["rows"])
    return float(entry["micro_batch_seconds"]) / micro_batch_seconds(setting, device, 0, kind, Constants())


def _optimizer(config: RunConfig, model: ModelConfig, device: Device, kind: Kind, entry: Mapping[str, Any]) -> float:
    setting = _setting(config, model, kind, entry["rows"])
    return float(entry["optimizer_seconds"]) / optimizer_seconds(setting, device, Constants())


def _setting(config: RunConfig, model: ModelConfig, kind: Kind, rows: int) -> Setting:
    """One device, one micro-batch of a kind."""
    parts = ["0", "0", "0"]
    parts[list(Kind).index(kind)] = "1"
    half = model.seq_length // 2
    changed = dataclasses.replace(
        config,
        model=model,
        pair=dataclasses.replace(config.pair, patches=half, tokens=half),
        data=dataclasses.replace(config.data, mixture=":".join(parts), synthetic=True),
        parallel=dataclasses.replace(config.parallel, tensor=1, pipeline=1, activation_checkpointing="none"),
        training=dataclasses.replace(config.training, micro_batch_rows=rows, global_batch_rows=rows, precision="bf16"),
        deepspeed_config="ds_configs/zero1.json",
    )
    return Setting.of(changed, 1, 1)
