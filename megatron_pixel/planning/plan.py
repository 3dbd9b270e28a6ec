"""A plan: all that the dry-run tells of a run in a layout."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from megatron_pixel.planning.communication import KINDS, Traffic, traffic
from megatron_pixel.planning.constants import Constants
from megatron_pixel.planning.devices import Device
from megatron_pixel.planning.memory import RESERVE, Memory, memory
from megatron_pixel.planning.setting import Setting
from megatron_pixel.planning.speed import Speed, bubble, speed


@dataclass(frozen=True)
class Plan:
    """A setting on a device."""

    setting: Setting
    device: Device
    constants: Constants = field(default_factory=Constants)

    @cached_property
    def memory(self) -> list[Memory]:
        """By pipeline rank: of the data-parallel rank that holds most."""
        return [self.memory_of(pipe) for pipe in range(self.setting.pipeline)]

    def memory_of(self, pipe: int) -> Memory:
        """Of one pipeline rank, likewise."""
        ranks = range(self.setting.data) if self._uneven else (0,)
        found = (memory(self.setting, pipe, data, self.device.cuda) for data in ranks)
        return max(found, key=lambda each: each.total)

    @property
    def _uneven(self) -> bool:
        """Whether data-parallel ranks hold different amounts: in fp32 at ZeRO 2 alone."""
        return self.setting.zero.stage == 2 and not self.setting.bf16

    @cached_property
    def traffic(self) -> list[list[Traffic]]:
        """By pipeline rank."""
        return [traffic(self.setting, pipe) for pipe in range(self.setting.pipeline)]

    @cached_property
    def speed(self) -> Speed:
        """Of a step."""
        return speed(self.setting, self.device, self.constants)

    @property
    def efficiency(self) -> float:
        """Share of the peak that matrix products reach."""
        return self.constants.efficiency or self.device.efficiency

    @property
    def usable(self) -> float:
        """Bytes of the device for tensors."""
        return self.device.memory * (1 - RESERVE)

    @property
    def most(self) -> int:
        """Bytes on the fullest device."""
        return max(found.total for found in self.memory)

    @property
    def fits(self) -> bool:
        """Whether every device's share fits its memory."""
        return self.most <= self.usable

    def sent(self, pipe: int) -> Mapping[str, int]:
        """Bytes of a step by kind."""
        sums = dict.fromkeys(KINDS, 0)
        for part in self.traffic[pipe]:
            sums[part.kind] += part.bytes
        return sums

    def ranks(self, pipe: int) -> range:
        """Global ranks at a place along the pipeline."""
        each = self.setting.tensor * self.setting.data
        return range(pipe * each, (pipe + 1) * each)

    def parameters(self, pipe: int) -> int:
        """Of a rank: its share of those of its stages."""
        return sum(parameter.share(self.setting.tensor) for parameter in self.setting.held(pipe))

    def describe(self) -> dict[str, Any]:
        """All of it for JSON; bytes, seconds, values."""
        setting, found = self.setting, self.speed
        return {
            "layout": {
                "devices": setting.devices,
                "devices_per_node": setting.node,
                "tensor": setting.tensor,
                "pipeline": setting.pipeline,
                "data": setting.data,
                "zero": setting.zero.stage,
                "offload": setting.zero.offload,
                "micro_batch_rows": setting.rows,
                "micro_batches": len(setting.kinds),
                "recomputed_layers": sorted(setting.recompute),
            },
            "device": asdict(self.device),
            "parameters": {
                "all": sum(parameter.numel for parameter in setting.parameters),
                "by_stage": self._by_stage(),
                "by_rank": [self.parameters(pipe) for pipe in range(setting.pipeline)],
            },
            "ranks": [
                {
                    "pipeline_rank": pipe,
                    "ranks": [self.ranks(pipe).start, self.ranks(pipe).stop - 1],
                    "stages": [setting.stages(pipe).start, setting.stages(pipe).stop - 1],
                    "memory": {**asdict(self.memory[pipe]), "total": self.memory[pipe].total},
                    "sent": [asdict(part) for part in self.traffic[pipe]],
                }
                for pipe in range(setting.pipeline)
            ],
            "bubble": bubble(setting),
            "speed": {
                **asdict(found),
                "seconds": found.seconds,
                "rows_per_second": found.rows_per_second,
                "mfu": self.mfu,
                "efficiency": self.efficiency,
            },
            "usable_memory": self.usable,
            "fits": self.fits,
        }

    @property
    def mfu(self) -> float:
        """Share of the peak that the model's own operations take."""
        return self.speed.flops / self.speed.seconds / self.device.peak(self.setting.bf16)

    def _by_stage(self) -> dict[str, int]:
        sums: dict[str, int] = {}
        last = self.setting.model.layers
        for parameter in self.setting.parameters:
            stage = parameter.stage
            name = {0: "embedding", last + 1: "norm", last + 2: "heads"}.get(stage, f"layer {stage}")
            sums[name] = sums.get(name, 0) + parameter.numel
        return sums
