"""What the optimizer of a DeepSpeed engine holds on this rank: which piece of which parameter lies where.

ZeRO cuts flat buffers of parameters into partitions, in a different way at each stage. Whatever the stage, the rank
ends up with a few flat fp32 buffers, AdamW's two moments of the same length, and for each parameter at most one
contiguous piece of its tensor-parallel share in one of them. :class:`Partitions` tells that, so that a checkpoint's
reader and writer need to know nothing else of ZeRO.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.mesh import ModelParallelUnit
from megatron_pixel.parallel.sharding import MOMENTS, Piece, Split, split_of


@dataclass(frozen=True)
class Held:
    """A parameter that lives, at least partly, on this rank."""

    parameter: Any
    """The model's own tensor, in the precision of training."""
    shape: tuple[int, ...]
    """Of the full parameter."""
    split: Split
    piece: Piece | None
    """None where the optimizer partitions of other ranks hold all of it."""


class Partitions:
    """The optimizer of ``engine``, seen as pieces.

    Args:
        engine: a DeepSpeed engine, with or without a pipeline, at ZeRO 1, 2 or 3, fp32 or bf16.

    Raises:
        UserError: the optimizer's state lies on NVMe, out of reach.
    """

    def __init__(self, engine: Any) -> None:
        self._optimizer = engine.optimizer
        if getattr(self._optimizer, "swap_optimizer", False):
            raise UserError("deepspeed_config offloads to nvme, whose checkpoints are not supported: offload to cpu")
        unit = ModelParallelUnit()
        self.tensor_size = unit.get_model_parallel_world_size()
        self.tensor_rank = unit.get_model_parallel_rank()
        self._stage3 = hasattr(self._optimizer, "fp32_partitioned_groups_flat")
        self._bf16 = hasattr(self._optimizer, "fp32_groups_flat_partition")
        self.buffers: list[Tensor] = list(
            self._optimizer.fp32_partitioned_groups_flat
            if self._stage3
            else self._optimizer.fp32_groups_flat_partition
            if self._bf16
            else self._optimizer.single_partition_of_fp32_groups
        )
        self.held = {name: self._held(name, parameter) for name, parameter in engine.module.named_parameters()}
        self._dtype = next(engine.module.parameters()).dtype

    @property
    def kind(self) -> str:
        """The engine's kind of optimizer, which decides how its file is laid out."""
        return "stage3" if self._stage3 else "bf16" if self._bf16 else "stage12"

    @property
    def steps(self) -> int:
        """Steps that AdamW has taken, 0 before the first.

        Raises:
            ValueError: its buffers disagree.
        """
        counts = {int(self.state(buffer).get("step", 0)) for buffer in self.buffers}
        if len(counts) != 1:
            raise ValueError(f"the partitions of one optimizer have taken different numbers of steps: {sorted(counts)}")
        return counts.pop()

    def state(self, buffer: Tensor) -> dict[str, Any]:
        """AdamW's state of a buffer; empty before its first step."""
        return self._optimizer.optimizer.state.get(buffer, {})

    def describe(self) -> dict[str, Any]:
        """All of it as JSON: two ranks whose descriptions are equal can read each other's optimizer files."""
        return {
            "kind": self.kind,
            "stage": 3 if self._stage3 else 2 if getattr(self._optimizer, "partition_gradients", False) else 1,
            "optimizer": type(self._optimizer.optimizer).__name__,
            "dtype": str(self._dtype).removeprefix("torch."),
            "device": self.buffers[0].device.type,
            "tensor_rank": self.tensor_rank,
            "tensor_size": self.tensor_size,
            "parameters": {
                name: {
                    "shape": list(held.shape),
                    "split": asdict(held.split),
                    "piece": None if held.piece is None else asdict(held.piece),
                }
                for name, held in self.held.items()
            },
        }

    def begin_writing(self, steps: int) -> None:
        """Make ready for :meth:`write`: moments get their memory, parameters that are gathered are let go.

        Args:
            steps: that AdamW shall count as taken; before the first it holds no moments.
        """
        if self._stage3:
            self._optimizer.checkpoint_event_prologue()
        adamw = self._optimizer.optimizer
        for buffer in self.buffers:
            if not steps:
                adamw.state.pop(buffer, None)
                continue
            state = adamw.state[buffer]
            count: Any = steps
            if isinstance(adamw, torch.optim.Optimizer) and type(adamw).__module__.startswith("torch."):
                # torch counts in a tensor, which its fused form wants on the device.
                fused = any(group.get("fused") or group.get("capturable") for group in adamw.param_groups)
                count = torch.tensor(float(steps), device=buffer.device if fused else "cpu")
            state["step"] = count
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(buffer)

    def wants(self, name: str, what: str) -> bool:
        """Whether this rank keeps any of a parameter's values; arguments as of :meth:`write`.

        At ZeRO 1 and 2 the model has all weights of its share, whoever optimizes them.
        """
        return self.held[name].piece is not None or (what == "fp32" and not self._stage3)

    def write(self, name: str, what: str, share: Tensor) -> None:
        """Put values of a parameter where the optimizer, and for weights the model, keep them.

        Args:
            name: of a parameter in ``held``.
            what: ``fp32`` or one of ``MOMENTS``.
            share: fp32, this rank's tensor-parallel share of the full values.
        """
        held = self.held[name]
        if held.piece is not None:
            buffer = self.buffers[held.piece.buffer]
            target = buffer if what == "fp32" else self.state(buffer)[what]
            values = share.reshape(-1)[held.piece.start : held.piece.start + held.piece.count]
            target.data[held.piece.offset : held.piece.offset + held.piece.count].copy_(values)
        if what == "fp32" and not self._stage3:
            held.parameter.data.copy_(share)

    def end_writing(self) -> None:
        """After the last :meth:`write`: the model's own partitions follow the optimizer's. Collective."""
        if not self._stage3:
            return
        optimizer = self._optimizer
        for number, buffer in enumerate(self.buffers):
            flat = optimizer.fp16_partitioned_groups_flat[number]
            flat.data.copy_(buffer.data)
            group = optimizer.fp16_partitioned_groups[number]
            for partition, values in zip(group, optimizer.unflatten(flat, group), strict=True):
                partition.data = values.data
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].partition(optimizer.persistent_parameters)
        optimizer.checkpoint_event_epilogue()

    def _held(self, name: str, parameter: Any) -> Held:
        split = split_of(name)
        if self._stage3:
            local, piece = tuple(parameter.ds_shape), self._stage3_piece(parameter)
        else:
            local, piece = tuple(parameter.shape), _linked_piece(parameter)
        return Held(parameter, split.full_shape(local, self.tensor_size), split, piece)

    def _stage3_piece(self, parameter: Any) -> Piece | None:
        # Every rank keeps a stretch of the same length; the last ones run past the end.
        buffer, offset, length = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
        start = length * dist.get_rank(self._optimizer.dp_process_group)
        count = min(length, parameter.ds_numel - start)
        return Piece(start, count, buffer, offset) if count > 0 else None


def _linked_piece(parameter: Any) -> Piece | None:
    """At ZeRO 1 and 2 DeepSpeed links each parameter to its piece."""
    link = parameter._hp_mapping
    if link is None:
        return None
    here, there = link.lp_fragment_address, link.hp_fragment_address
    return Piece(here.start, here.numel, link.param_group_index, there.start)
