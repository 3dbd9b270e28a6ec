"""All that a plan follows from: model, layout, batch and DeepSpeed's settings, in one checked object."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from megatron_pixel.config.layers import parse_layers
from megatron_pixel.config.mixture import parse_mixture
from megatron_pixel.config.schema import ModelConfig, PairConfig, RunConfig
from megatron_pixel.data.mixture import Mixture
from megatron_pixel.data.rows import Kind
from megatron_pixel.parallel.cut import boundaries
from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile
from megatron_pixel.parallel.layout import data_parallel_size
from megatron_pixel.planning.parameters import Parameter, parameters

Targets = Mapping[Kind, tuple[int, int]]
"""Token targets and patch targets of a micro-batch, by kind."""


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed's ``zero_optimization`` says, with its defaults (``deepspeed/runtime/zero/config.py``)."""

    stage: int
    offload: bool
    """Whether the optimizer runs on the host."""
    overlap: bool
    """Whether gradients travel while the backward pass runs on."""
    bucket: int
    """Values of the buffer that gradients are reduced from."""
    prefetch: int
    """Stage 3: values gathered ahead."""
    persistent: int
    """Stage 3: parameters of at most so many values stay gathered."""
    max_live: int
    """Stage 3: values gathered at a time, as far as gathering ahead goes."""
    sub_group: int
    """Stage 3: values that the optimizer takes at a time."""
    max_reuse: int
    """Stage 3: a parameter that comes again within so many values is not let go."""

    @classmethod
    def of(cls, file: DeepSpeedFile) -> "Zero":
        """The settings of a checked DeepSpeed file."""
        given: Mapping[str, Any] = file.content.get("zero_optimization", {})
        stage = file.zero_stage
        overlap = given.get("overlap_comm")
        return cls(
            stage=stage,
            offload=file.offloads_optimizer,
            overlap=stage == 3 if overlap is None else bool(overlap),
            bucket=int(given.get("reduce_bucket_size", 5e8)),
            prefetch=int(given.get("stage3_prefetch_bucket_size", 5e7)),
            persistent=int(given.get("stage3_param_persistence_threshold", 1e5)),
            max_live=int(given.get("stage3_max_live_parameters", 1e9)),
            sub_group=int(given.get("sub_group_size", 1e9)),
            max_reuse=int(given.get("stage3_max_reuse_distance", 1e9)),
        )


@dataclass(frozen=True, eq=False)
class Setting:
    """A run in a layout; compared by identity, so that what follows from it can be kept."""

    model: ModelConfig
    pair: PairConfig
    tensor: int
    pipeline: int
    data: int
    boundaries: list[int]
    """Of the pipeline ranks in the list of stages."""
    node: int
    """Devices of a node."""
    zero: Zero
    touch_all: bool
    """Whether every parameter takes part in every micro-batch."""
    bf16: bool
    communication: int
    """Bytes of a gradient on its way between data-parallel ranks."""
    kinds: tuple[Kind, ...]
    """Of the micro-batches of a step on each rank."""
    rows: int
    """Of a micro-batch."""
    recompute: frozenset[int]
    """Decoder layers that compute their activations again."""
    sequence_parallel: bool
    losses_by_source: int
    """Losses that are told source by source: those of kinds of several sources."""
    end_patch: bool
    """Whether the last patch of a segment is a target."""

    @classmethod
    def of(cls, config: RunConfig, devices: int, node: int) -> "Setting":
        """The setting of a checked run on ``devices`` devices in nodes of ``node``.

        Raises:
            UserError: the layout cannot run; see :func:`megatron_pixel.parallel.layout.check_layout`.
        """
        parallel, training = config.parallel, config.training
        file = DeepSpeedFile(config.deepspeed_config)
        data = data_parallel_size(parallel, devices)
        bf16 = training.precision == "bf16"
        wire = file.content.get("communication_data_type", "fp32") if bf16 else "fp32"
        return cls(
            model=config.model,
            pair=config.pair,
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            data=data,
            boundaries=boundaries(config),
            node=node,
            zero=Zero.of(file),
            touch_all=file.touches_all,
            bf16=bf16,
            communication=4 if wire == "fp32" else 2,
            kinds=Mixture.from_config(config.data, training, data).schedule(data),
            rows=training.micro_rows,
            recompute=parse_layers(parallel.activation_checkpointing, config.model.layers),
            sequence_parallel="sequence_parallel" in parallel.experimental,
            losses_by_source=_losses_by_source(config),
            end_patch=config.loss.end_patch,
        )

    @property
    def devices(self) -> int:
        """All of them."""
        return self.tensor * self.pipeline * self.data

    @property
    def width(self) -> int:
        """Bytes of a weight or an activation."""
        return 2 if self.bf16 else 4

    @property
    def positions(self) -> int:
        """Of a micro-batch."""
        return self.rows * self.model.seq_length

    def stages(self, pipe: int) -> range:
        """Stages of a pipeline rank."""
        return range(self.boundaries[pipe], self.boundaries[pipe + 1])

    def layers(self, pipe: int) -> list[int]:
        """Decoder layers of a pipeline rank, counted from 1."""
        return [stage for stage in self.stages(pipe) if 1 <= stage <= self.model.layers]

    @cached_property
    def parameters(self) -> list[Parameter]:
        """Of the whole model."""
        return parameters(self.model)

    def held(self, pipe: int) -> list[Parameter]:
        """Parameters of a pipeline rank."""
        return self._held[pipe]

    @cached_property
    def _held(self) -> list[list[Parameter]]:
        spans = [self.stages(pipe) for pipe in range(self.pipeline)]
        return [[parameter for parameter in self.parameters if parameter.stage in stages] for stages in spans]

    def is_first(self, pipe: int) -> bool:
        """Whether this rank has the embedding."""
        return pipe == 0

    def is_last(self, pipe: int) -> bool:
        """Whether this rank has the heads."""
        return pipe == self.pipeline - 1

    def in_flight(self, pipe: int) -> int:
        """Micro-batches whose activations a pipeline rank holds at a time, one forward, one backward."""
        return min(self.pipeline - pipe, len(self.kinds))

    @property
    def full_targets(self) -> Targets:
        """Targets of micro-batches whose rows are full: the most that there can be."""
        s, end = self.model.seq_length, 0 if self.end_patch else 1
        return {
            Kind.TEXT: (self.rows * (s - 1), 0),
            Kind.PIXEL: (0, self.rows * (s - 1 - end)),
            Kind.PAIR: (self.rows * (self.pair.tokens - 1), self.rows * (self.pair.patches - 1 - end)),
        }


def _losses_by_source(config: RunConfig) -> int:
    data = config.data
    if data.synthetic:
        return 0
    parts = zip((data.text, data.pixels, data.pairs), parse_mixture(data.mixture), (1, 1, 2), strict=True)
    return sum(losses * len(sources) for sources, rows, losses in parts if rows and len(sources) > 1)


def has_tokens(kind: Kind) -> bool:
    """Whether rows of this kind hold tokens."""
    return kind != Kind.PIXEL


def has_patches(kind: Kind) -> bool:
    """Whether rows of this kind hold patches."""
    return kind != Kind.TEXT
