"""How long a step should take on a named GPU: a roofline for computing, rings for communication.

::

    micro-batch = products / (efficiency x peak) + other / bandwidth + tensor-parallel sums     on the slowest stage
    pipeline    = (m + p - 1) x micro-batch + sends              m micro-batches, p pipeline ranks
    optimizer   = 28 bytes a value of the rank's partition / bandwidth
    gradients   = ring(bytes), at ZeRO 2 and 3 up to HIDDEN of it behind the backward pass, as far as that lasts
    weights     = ring(bytes), at ZeRO 3 likewise, behind computing
    step        = pipeline + what of gradients and weights is not hidden + optimizer
    ring        = factor x bytes x (n - 1) / n / rate + messages x latency,   factor 2 for an all-reduce, else 1

``products`` counts matrix products, recomputed ones included; ``other`` the memory traffic of all other operations:
each byte that is kept for the backward pass is taken to be moved ``TRAFFIC`` times. The rate of a ring is the device's
link inside a node; between nodes its network, times the ranks of the group on a node, as they share adapters.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.activations import layer_bytes
from megatron_pixel.planning.communication import Traffic, group_size, traffic
from megatron_pixel.planning.devices import Device
from megatron_pixel.planning.memory import optimizer_bytes
from megatron_pixel.planning.setting import Setting, Targets, has_patches, has_tokens

EFFICIENCY = 0.6
"""Share of the peak that large matrix products reach. Assumed."""
TRAFFIC = 8.0
"""How often a byte kept for the backward pass is moved: written once and read a few times in both passes. Assumed."""
LATENCY = {"node": 10e-6, "network": 25e-6}
"""Seconds of an operation of no size. Assumed."""


@dataclass(frozen=True)
class Speed:
    """Of one step; seconds."""

    compute: float
    """On the slowest stage, all micro-batches."""
    tensor: float
    """Sums between tensor-parallel ranks, likewise; nothing hides them."""
    bubble: float
    """Waiting for other pipeline ranks, and sends."""
    exposed: float
    """Gradients and weights on their way that computing does not hide."""
    optimizer: float
    rows: int
    """Of a step over all devices."""
    flops: float
    """The model's own operations in a step on each device, without those that are repeated."""

    @property
    def seconds(self) -> float:
        """A step."""
        return self.compute + self.tensor + self.bubble + self.exposed + self.optimizer

    @property
    def rows_per_second(self) -> float:
        """Over all devices."""
        return self.rows / self.seconds


def speed(setting: Setting, device: Device, efficiency: float = EFFICIENCY) -> Speed:
    """What a step should take.

    Args:
        setting: the run in its layout.
        device: that it runs on.
        efficiency: share of the peak that matrix products reach.
    """
    targets, count = setting.full_targets, len(setting.kinds)
    rate = device.peak(setting.bf16) * efficiency
    compute = tensor = 0.0
    for pipe in range(setting.pipeline):
        here = sum(
            times
            * (products(setting, pipe, kind, targets[kind]) / rate + other(setting, pipe, kind) / device.bandwidth)
            for kind, times in Counter(setting.kinds).items()
        )
        sums = ring_seconds(
            setting, device, (part for part in traffic(setting, pipe) if part.kind in ("tensor", "loss"))
        )
        if here + sums > compute + tensor:
            compute, tensor = here, sums
    sends = ring_seconds(setting, device, (p for p in traffic(setting, 0) if p.kind == "pipeline"))
    waiting = (setting.pipeline - 1) / count * (compute + tensor) + (sends if setting.pipeline > 1 else 0.0)
    exposed = max(_exposed(setting, pipe, device, compute) for pipe in range(setting.pipeline))
    parameters = max(optimizer_bytes(setting, pipe) for pipe in range(setting.pipeline)) / 12
    return Speed(
        compute=compute,
        tensor=tensor,
        bubble=waiting,
        exposed=exposed,
        # Weight, two moments and gradient read, weight and moments written; an offloaded optimizer reads the host's.
        optimizer=28 * parameters / (HOST_BANDWIDTH if setting.zero.offload else device.bandwidth),
        rows=setting.rows * count * setting.data,
        flops=sum(own_flops(setting, targets, kind) for kind in setting.kinds) * setting.data / setting.devices,
    )


HOST_BANDWIDTH = 25e9
"""Bytes a second of the host's memory for each device, and of the way there. Assumed."""
HIDDEN = 0.75
"""The most of a communication that computing hides: it begins late, ends late, and both want the memory. Assumed."""


def bubble(setting: Setting) -> float:
    """Share of a step in which a pipeline rank waits: (p - 1) / (m + p - 1)."""
    return (setting.pipeline - 1) / (len(setting.kinds) + setting.pipeline - 1)


def products(setting: Setting, pipe: int, kind: Kind, targets: tuple[int, int]) -> float:
    """Operations of a rank's matrix products in a micro-batch, forward and backward; a multiply-add is two."""
    model, n = setting.model, setting.positions
    h, values = model.hidden, model.patch_size**2 * model.num_channels
    layers = setting.layers(pipe)
    runs = 3 * len(layers) + sum(1 for layer in layers if layer in setting.recompute)
    weights = 2 * h * h + 2 * h * h * model.kv_heads // model.heads + 3 * h * model.ffn
    # Causal: half of the two products of s x s.
    total = 2.0 * n * runs * (weights + h * model.seq_length) / setting.tensor
    if setting.is_first(pipe) and has_patches(kind):
        total += 4.0 * n * values * h  # pixels need no gradient
    if setting.is_last(pipe):
        total += 6.0 * h * (targets[0] * model.vocab_size / setting.tensor + targets[1] * values)
    return total


def other(setting: Setting, pipe: int, kind: Kind) -> float:
    """Bytes that the operations of a micro-batch move besides matrix products."""
    layers = setting.layers(pipe)
    total = TRAFFIC * layer_bytes(setting) * len(layers)
    total += TRAFFIC / 3 * layer_bytes(setting) * sum(1 for layer in layers if layer in setting.recompute)
    if setting.is_last(pipe) and has_tokens(kind):
        total += 5 * 4 * setting.full_targets[kind][0] * setting.model.vocab_size / setting.tensor
    return total


def own_flops(setting: Setting, targets: Targets, kind: Kind) -> float:
    """The model's own operations for a micro-batch: the formula of ``training/throughput.py``."""
    from megatron_pixel.training.throughput import flops_per_step

    tokens, patches = targets[kind]
    held = {Kind.TEXT: 0, Kind.PIXEL: setting.model.seq_length, Kind.PAIR: setting.pair.patches}[kind]
    return flops_per_step(setting.model, setting.positions, tokens, patches, setting.rows * held)


def ring_seconds(setting: Setting, device: Device, parts: Iterable[Traffic]) -> float:
    """Time of operations one after the other."""
    total = 0.0
    for part in parts:
        ranks = group_size(setting, part.group)
        near = _ranks_on_a_node(setting, part.group)
        rate = device.link if near >= ranks else min(device.link, device.network * near)
        latency = LATENCY["node" if near >= ranks else "network"]
        factor = 1.0 if part.operation == "send" else (ranks - 1) / ranks * (2 if part.operation == "all_reduce" else 1)
        total += factor * part.bytes / rate + part.messages * latency
    return total


def _ranks_on_a_node(setting: Setting, group: str) -> int:
    """Ranks of a group that share a node: tensor counts fastest, then data, then the pipeline."""
    stride = {"data": setting.tensor, "pipeline": setting.tensor * setting.data}.get(group, 1)
    size = group_size(setting, group)
    return max(1, min(size, setting.node // stride))


def _exposed(setting: Setting, pipe: int, device: Device, compute: float) -> float:
    """Time of gradients and weights on their way that nothing hides."""
    parts = traffic(setting, pipe)
    gradients = ring_seconds(setting, device, (part for part in parts if part.kind == "gradients"))
    weights = ring_seconds(setting, device, (part for part in parts if part.kind == "weights"))
    if setting.zero.stage == 3:
        return _not_hidden(gradients + weights, compute) if setting.zero.overlap else gradients + weights
    if setting.zero.stage == 2 and setting.zero.overlap:
        return _not_hidden(gradients, 2 / 3 * compute) + weights
    return gradients + weights


def _not_hidden(seconds: float, compute: float) -> float:
    return max(seconds - compute, (1 - HIDDEN) * seconds)
