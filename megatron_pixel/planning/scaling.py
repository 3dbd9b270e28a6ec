"""How a run scales on paper: one layout on 8 to 1,024 devices, each the fastest micro-batch that fits."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.config.validation import validate
from megatron_pixel.parallel.layout import check_layout
from megatron_pixel.planning.communication import group_size
from megatron_pixel.planning.constants import Constants
from megatron_pixel.planning.devices import Device
from megatron_pixel.planning.plan import Plan
from megatron_pixel.planning.setting import Setting
from megatron_pixel.planning.speed import ranks_on_a_node

MICRO_BATCHES = (64, 32, 16, 8, 4, 2, 1)
"""Rows of a micro-batch that are tried."""


@dataclass(frozen=True)
class Layout:
    """How devices are shared out; data parallelism takes what tensor and pipeline parallelism leave."""

    tensor: int = 1
    pipeline: int = 1
    zero: str = "zero1"

    def __str__(self) -> str:
        parts = [f"tensor {self.tensor}"] if self.tensor > 1 else []
        parts += [f"pipeline {self.pipeline}"] if self.pipeline > 1 else []
        return " x ".join([*parts, f"data, ZeRO {self.zero.removeprefix('zero')}"])


@dataclass(frozen=True)
class Point:
    """A layout on some devices."""

    layout: Layout
    plan: Plan
    alone: float
    """Seconds in which one device with room for everything would compute the same step, nothing sent."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.plan.speed.seconds

    @property
    def efficiency(self) -> float:
        """Of each device, against the one that is alone."""
        return self.alone / (self.plan.setting.devices * self.seconds)

    @property
    def positions_per_second(self) -> float:
        """Tokens and patches of all devices."""
        return self.plan.speed.rows_per_second * self.plan.setting.model.seq_length

    @property
    def sent(self) -> Mapping[str, float]:
        """Bytes of the tensors that the busiest rank sends in a step: inside its node, and in groups beyond it."""
        setting = self.plan.setting
        most = {"node": 0.0, "network": 0.0}
        for parts in self.plan.traffic:
            here = {"node": 0.0, "network": 0.0}
            for part in parts:
                inside = ranks_on_a_node(setting, part.group) >= group_size(setting, part.group)
                here["node" if inside else "network"] += part.bytes
            most = {link: max(most[link], here[link]) for link in most}
        return most

    @property
    def losses(self) -> Mapping[str, float]:
        """Where the seconds beyond the device that is alone go, as shares of the step."""
        found, devices = self.plan.speed, self.plan.setting.devices
        parts = {
            "tensor-parallel sums": found.tensor,
            "pipeline": found.bubble,
            "gradients and weights": found.exposed,
            "optimizer": found.optimizer,
            # What is computed again, and stages of unequal length.
            "uneven or repeated work": max(0.0, found.compute - self.alone / devices),
        }
        return {name: value / found.seconds for name, value in parts.items()}

    @property
    def limit(self) -> str:
        """The greatest of the losses; computing where they are less than a twentieth together."""
        name, share = max(self.losses.items(), key=lambda item: item[1])
        return f"{name}, {share:.0%}" if self.efficiency < 0.95 else "computing"

    def describe(self) -> dict[str, Any]:
        """For JSON."""
        setting, sent = self.plan.setting, self.sent
        return {
            "devices": setting.devices,
            "tensor": setting.tensor,
            "pipeline": setting.pipeline,
            "data": setting.data,
            "zero": setting.zero.stage,
            "micro_batch_rows": setting.rows,
            "micro_batches": len(setting.kinds),
            "recomputed_layers": len(setting.recompute),
            "step_seconds": self.seconds,
            "efficiency": self.efficiency,
            "positions_per_second": self.positions_per_second,
            "mfu": self.plan.mfu,
            "node_bytes": sent["node"],
            "network_bytes": sent["network"],
            "pipeline_share": self.plan.speed.bubble / self.seconds,
            "limit": self.limit,
            "device_gigabytes": self.plan.most / 1e9,
        }


def point(
    config: RunConfig, layout: Layout, devices: int, node: int, device: Device, constants: Constants
) -> Point | None:
    """The layout on so many devices with the micro-batch that is fastest there; None where nothing can run or fits.

    All decoder layers are computed again where nothing fits without.
    """
    for recompute in ("none", "all"):
        found = []
        for rows in MICRO_BATCHES:
            plan = _plan(config, layout, rows, recompute, devices, node, device, constants)
            if plan is not None and plan.fits:
                found.append(plan)
        if found:
            plan = min(found, key=lambda plan: plan.speed.seconds)
            return Point(layout, plan, alone(config, device, constants))
    return None


def alone(config: RunConfig, device: Device, constants: Constants) -> float:
    """Seconds of the same step on one device, whatever its memory: the work of all, nothing repeated, nothing sent."""
    for rows in MICRO_BATCHES:
        plan = _plan(config, Layout(), rows, "none", 1, 1, device, constants)
        if plan is not None:
            return plan.speed.seconds
    raise UserError("training.global_batch_rows: no micro-batch divides the rows of a step")


def curve(
    config: RunConfig, layout: Layout, counts: Sequence[int], node: int, device: Device, constants: Constants
) -> list[Point]:
    """The layout on each of these numbers of devices, as far as it can run there."""
    points = (point(config, layout, count, min(node, count), device, constants) for count in counts)
    return [found for found in points if found is not None]


def _plan(
    config: RunConfig,
    layout: Layout,
    rows: int,
    recompute: str,
    devices: int,
    node: int,
    device: Device,
    constants: Constants,
) -> Plan | None:
    """None where these settings cannot run."""
    parallel = dataclasses.replace(
        config.parallel, tensor=layout.tensor, pipeline=layout.pipeline, activation_checkpointing=recompute
    )
    changed = dataclasses.replace(
        config,
        parallel=parallel,
        training=dataclasses.replace(config.training, micro_batch_rows=rows),
        deepspeed_config=f"ds_configs/{layout.zero}.json",
    )
    try:
        validate(changed)
        check_layout(changed, devices)
        return Plan(Setting.of(changed, devices, node), device, constants)
    except UserError:
        return None
