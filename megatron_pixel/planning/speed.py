"""How long a step should take on a named GPU: a roofline for computing, rings for communication.

::

    micro-batch = products / (efficiency x peak) + other / bandwidth + tensor-parallel sums     on the slowest stage,
                  or what the host takes to start its operations, where that is longer
    pipeline    = the schedule, simulated; (m + p - 1) x micro-batch + sends where all m of p ranks are alike
    optimizer   = 28 bytes a value of the rank's partition / bandwidth
    gradients   = ring(bytes), at ZeRO 2 and 3 up to ``hidden`` of it behind the backward pass, as far as that lasts
    weights     = ring(bytes), at ZeRO 3 likewise, behind computing
    step        = pipeline + what of gradients and weights is not hidden + optimizer
    ring        = factor x bytes x (n - 1) / n / rate + messages x latency,   factor 2 for an all-reduce, else 1

``products`` counts matrix products, recomputed ones included; ``other`` the memory traffic of all other operations:
each byte between two operations of the forward pass is taken to be moved ``traffic`` times. Names of constants are
those of :class:`megatron_pixel.planning.constants.Constants`. The rate of a ring is the device's link inside a node;
between nodes its network, times the ranks of the group on a node, as they share adapters.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.communication import Traffic, group_size, traffic
from megatron_pixel.planning.constants import LATENCY, Constants
from megatron_pixel.planning.devices import Device
from megatron_pixel.planning.memory import optimizer_bytes
from megatron_pixel.planning.pipeline import Passes, simulate
from megatron_pixel.planning.setting import Setting, Targets, has_patches, has_tokens


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


def speed(
    setting: Setting,
    device: Device,
    constants: Constants | None = None,
    parts: Sequence[Sequence[Traffic]] | None = None,
) -> Speed:
    """What a step should take.

    Args:
        setting: the run in its layout.
        device: that it runs on.
        constants: shares of the peaks, by default :class:`Constants`'s own.
        parts: what each pipeline rank sends, by default what this project's runs do.
    """
    constants = constants or Constants()
    sent = parts or [traffic(setting, pipe) for pipe in range(setting.pipeline)]
    ring = partial(ring_seconds, setting, device, constants=constants)
    works = [_passes(setting, device, pipe, constants) for pipe in range(setting.pipeline)]
    sums = [ring(part for part in each if part.kind in ("tensor", "loss")) for each in sent]
    slowest = max(range(setting.pipeline), key=lambda pipe: works[pipe].seconds + sums[pipe])
    compute, tensor = works[slowest].seconds, sums[slowest]
    exposed = max(_exposed(setting, each, ring, compute, constants.hidden) for each in sent)
    targets = setting.full_targets
    return Speed(
        compute=compute,
        tensor=tensor,
        bubble=_waiting(setting, works, sums, [ring(p for p in each if p.kind == "pipeline") for each in sent]),
        exposed=exposed,
        optimizer=optimizer_seconds(setting, device, constants),
        rows=setting.rows * len(setting.kinds) * setting.data,
        flops=sum(own_flops(setting, targets, kind) for kind in setting.kinds) * setting.data / setting.devices,
    )


@dataclass(frozen=True)
class _Work:
    """What a pipeline rank computes in a step."""

    micro_batch: Mapping[Kind, float]
    """Seconds of a micro-batch, both passes."""
    seconds: float
    """Of all micro-batches."""
    forward: float
    """Share of the forward pass."""


def _passes(setting: Setting, device: Device, pipe: int, constants: Constants) -> _Work:
    seconds = {
        kind: constants.measured.get(kind, 1.0) * micro_batch_seconds(setting, device, pipe, kind, constants)
        for kind in set(setting.kinds)
    }
    layers = setting.layers(pipe)
    again = sum(1 for layer in layers if layer in setting.recompute)
    total = sum(times * seconds[kind] for kind, times in Counter(setting.kinds).items())
    return _Work(seconds, total, len(layers) / (3 * len(layers) + again) if layers else 1 / 3)


def micro_batch_seconds(setting: Setting, device: Device, pipe: int, kind: Kind, constants: Constants) -> float:
    """Forward and backward pass of a micro-batch on a pipeline rank by the roofline, without communication."""
    rate = device.peak(setting.bf16) * (constants.efficiency or device.efficiency)
    done = products(setting, pipe, kind, setting.full_targets[kind], constants.attention)
    moved = constants.traffic * touched_bytes(setting, pipe) + logits_bytes(setting, pipe, kind)
    return max(done / rate + moved / device.bandwidth, constants.launch * len(setting.layers(pipe)))


def optimizer_seconds(setting: Setting, device: Device, constants: Constants) -> float:
    """Weight, two moments and gradient read, weight and moments written; an offloaded optimizer reads the host's."""
    parameters = max(optimizer_bytes(setting, pipe) for pipe in range(setting.pipeline)) / 12
    return constants.optimizer * 28 * parameters / (HOST_BANDWIDTH if setting.zero.offload else device.bandwidth)


def _waiting(setting: Setting, works: Sequence[_Work], sums: Sequence[float], sends: Sequence[float]) -> float:
    """What the pipeline adds to the slowest rank's own work: its schedule, simulated."""
    if setting.pipeline == 1:
        return 0.0
    count = len(setting.kinds)
    shown = setting.kinds[: max(4 * setting.pipeline, 16)]
    passes = []
    for work, between in zip(works, sums, strict=True):
        each = [work.micro_batch[kind] + between / count for kind in shown]
        passes.append(Passes([work.forward * t for t in each], [(1 - work.forward) * t for t in each]))
    # Hidden states travel with their places, gradients alone; both take about as long.
    one = max(sends) / count / 2
    simulated = simulate(passes, one, one)
    # Once a pipeline is full it goes on at the pace of its slowest rank, and of what that rank sends.
    rest = (1 - len(shown) / count) * max(sends)
    return simulated.seconds - max(simulated.busy) + rest


HOST_BANDWIDTH = 25e9
"""Bytes a second of the host's memory for each device, and of the way there. Assumed."""


def bubble(setting: Setting) -> float:
    """Share of a step in which a pipeline rank waits: (p - 1) / (m + p - 1)."""
    return (setting.pipeline - 1) / (len(setting.kinds) + setting.pipeline - 1)


def products(setting: Setting, pipe: int, kind: Kind, targets: tuple[int, int], attention: float = 1.0) -> float:
    """Operations of a rank's matrix products in a micro-batch, forward and backward; a multiply-add is two.

    Those of attention count 1 / ``attention`` times, as they take so long.
    """
    model, n = setting.model, setting.positions
    h, values = model.hidden, model.patch_size**2 * model.num_channels
    layers = setting.layers(pipe)
    runs = 3 * len(layers) + sum(1 for layer in layers if layer in setting.recompute)
    weights = 2 * h * h + 2 * h * h * model.kv_heads // model.heads + 3 * h * model.ffn
    # Causal: half of the two products of s x s.
    total = 2.0 * n * runs * (weights + h * model.seq_length / attention) / setting.tensor
    if setting.is_first(pipe) and has_patches(kind):
        total += 4.0 * n * values * h  # pixels need no gradient
    if setting.is_last(pipe):
        total += 6.0 * h * (targets[0] * model.vocab_size / setting.tensor + targets[1] * values)
    return total


def touched_bytes(setting: Setting, pipe: int) -> float:
    """Bytes of the tensors between the operations of a rank's layers, each once; computing again makes a third again.

    They are those of PyTorch's own operations, one kernel each: what ``traffic`` was fitted on. What a micro-batch
    keeps (``activations.py``) is less, where operations are fused.
    """
    model, w, t = setting.model, setting.width, setting.tensor
    h, k = model.hidden, model.kv_heads * (model.hidden // model.heads)
    norms = 2 * (2 * w * h / (t if setting.sequence_parallel else 1) + 4)
    attention = w * (3 * h + 3 * k) / t + 4 * w * h / model.heads + 4 * model.heads / t
    layers = setting.layers(pipe)
    again = sum(1 for layer in layers if layer in setting.recompute)
    return setting.positions * (norms + attention + 5 * w * model.ffn / t) * (len(layers) + again / 3)


def logits_bytes(setting: Setting, pipe: int, kind: Kind) -> float:
    """Bytes that the cross entropy over the vocabulary moves."""
    if not (setting.is_last(pipe) and has_tokens(kind)):
        return 0.0
    return 5 * 4 * setting.full_targets[kind][0] * setting.model.vocab_size / setting.tensor


def own_flops(setting: Setting, targets: Targets, kind: Kind) -> float:
    """The model's own operations for a micro-batch: the formula of ``training/throughput.py``."""
    from megatron_pixel.training.throughput import flops_per_step

    tokens, patches = targets[kind]
    held = {Kind.TEXT: 0, Kind.PIXEL: setting.model.seq_length, Kind.PAIR: setting.pair.patches}[kind]
    return flops_per_step(setting.model, setting.positions, tokens, patches, setting.rows * held)


def ring_seconds(setting: Setting, device: Device, parts: Iterable[Traffic], constants: Constants) -> float:
    """Time of operations one after the other."""
    link, network = constants.node * device.link, constants.network * device.network
    total = 0.0
    for part in parts:
        ranks = group_size(setting, part.group)
        near = ranks_on_a_node(setting, part.group)
        rate = link if near >= ranks else min(link, network * near)
        latency = LATENCY["node" if near >= ranks else "network"]
        factor = 1.0 if part.operation == "send" else (ranks - 1) / ranks * (2 if part.operation == "all_reduce" else 1)
        total += factor * part.bytes / rate + part.messages * latency
    return total


def ranks_on_a_node(setting: Setting, group: str) -> int:
    """Ranks of a group that share a node: tensor counts fastest, then data, then the pipeline."""
    stride = {"data": setting.tensor, "pipeline": setting.tensor * setting.data}.get(group, 1)
    size = group_size(setting, group)
    return max(1, min(size, setting.node // stride))


def _exposed(
    setting: Setting,
    sent: Sequence[Traffic],
    ring: Callable[[Iterable[Traffic]], float],
    compute: float,
    hidden: float,
) -> float:
    """Time of gradients and weights on their way that nothing hides."""
    gradients = ring(part for part in sent if part.kind == "gradients")
    weights = ring(part for part in sent if part.kind == "weights")

    def left(seconds: float, beside: float) -> float:
        return max(seconds - beside, (1 - hidden) * seconds)

    if setting.zero.stage == 3:
        return left(gradients + weights, compute) if setting.zero.overlap else gradients + weights
    if setting.zero.stage == 2 and setting.zero.overlap:
        return left(gradients, 2 / 3 * compute) + weights
    return gradients + weights
