"""What a device holds: weights, gradients, optimizer state, activations, and DeepSpeed's buffers."""

from dataclasses import dataclass

from megatron_pixel.planning.activations import kept, most_transient
from megatron_pixel.planning.communication import bf16_optimizer, flat_size, partition_size
from megatron_pixel.planning.gathering import gathered_in_a_step
from megatron_pixel.planning.parameters import Parameter, groups
from megatron_pixel.planning.setting import Setting, has_patches, has_tokens

RESERVE = 0.08
"""Share of a device's memory that is not for tensors: CUDA's context, NCCL's buffers, holes between blocks."""

JOINED = 500_000_000
"""Values of a message of DeepSpeed's ``BF16_Optimizer``, which knows no ``reduce_bucket_size``."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device, and of the host for it."""

    weights: int
    """In the precision of training; padding of DeepSpeed's flat buffers included."""
    gradients: int
    """Between the micro-batches of a step."""
    optimizer: int
    """fp32 weights and both moments."""
    activations: int
    """Of all micro-batches that are on their way at a time."""
    buffers: int
    """For gradients on their way, weights that are gathered, logits."""
    host: int = 0
    """In the host's memory: an optimizer that is offloaded."""

    @property
    def total(self) -> int:
        """On the device."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.buffers


def memory(setting: Setting, pipe: int, data: int = 0, cuda: bool = True) -> Memory:
    """Of the device at these pipeline and data-parallel ranks; tensor-parallel ranks hold the same.

    Args:
        cuda: kernels of CUDA devices; else those of CPUs, which keep more.
    """
    targets = setting.full_targets
    most = max(kept(setting, pipe, kind, targets[kind], cuda) for kind in set(setting.kinds))
    transient = max(most_transient(setting, pipe, kind, targets[kind], cuda) for kind in set(setting.kinds))
    optimizer = optimizer_bytes(setting, pipe)
    offload = setting.zero.offload
    return Memory(
        weights=weight_bytes(setting, pipe),
        gradients=gradient_bytes(setting, pipe, data),
        optimizer=0 if offload else optimizer,
        activations=most * setting.in_flight(pipe),
        buffers=transient + _buffers(setting, pipe, cuda),
        host=optimizer // 3 * 4 if offload else 0,
    )


def weight_bytes(setting: Setting, pipe: int) -> int:
    """Weights that a rank holds all the time."""
    held = setting.held(pipe)
    if setting.zero.stage == 3:
        return setting.width * sum(partition_size(parameter, setting) for parameter in held)
    return setting.width * sum(flat_size(group, setting) for group in groups(held))


def optimizer_bytes(setting: Setting, pipe: int) -> int:
    """fp32 weights and moments of a rank's partition."""
    held = setting.held(pipe)
    if setting.zero.stage == 3:
        return 12 * sum(partition_size(parameter, setting) for parameter in held)
    return 12 * sum(flat_size(group, setting) // setting.data for group in groups(held))


def gradient_bytes(setting: Setting, pipe: int, data: int = 0) -> int:
    """Gradients between micro-batches: whole at ZeRO 1, the rank's partition at ZeRO 2 and 3."""
    held, t = setting.held(pipe), setting.tensor
    stage = setting.zero.stage
    if stage == 3:
        return 4 * sum(partition_size(parameter, setting) for parameter in held)
    tokens, patches = any(map(has_tokens, setting.kinds)), any(map(has_patches, setting.kinds))
    used = sum(p.share(t) for p in held if setting.touch_all or p.used_by(tokens, patches))
    if bf16_optimizer(setting):
        # Those that autograd has just made, and the flat fp32 sum.
        return 2 * used + 4 * sum(flat_size(group, setting) for group in groups(held))
    if stage == 1:
        return 4 * used
    if setting.zero.offload and not setting.bf16:
        return 0  # they add up on the host
    if setting.bf16:
        return 4 * sum(flat_size(group, setting) // setting.data for group in groups(held))
    return _stage_2_fp32(setting, held, data)


def _stage_2_fp32(setting: Setting, held: list[Parameter], data: int) -> int:
    """Whole parameters of which the rank's partition has any part; in fp32 DeepSpeed does not cut their gradients."""
    first = setting.kinds[0]
    mine: list[Parameter] = []
    for group in groups(held):
        size = flat_size(group, setting) // setting.data
        begin, end, place = data * size, (data + 1) * size, 0
        for parameter in group:
            count = parameter.share(setting.tensor)
            if place < end and place + count > begin:
                mine.append(parameter)
            place += count
    everything = setting.touch_all
    used = [p for p in mine if everything or p.used_by(has_tokens(first), has_patches(first))]
    whole = sum(p.share(setting.tensor) for p in mine)
    # Parameters that the first micro-batch leaves alone get zeros of their own beside the buffer for all.
    return 4 * (whole + (whole - sum(p.share(setting.tensor) for p in used) if used else 0))


def _buffers(setting: Setting, pipe: int, cuda: bool) -> int:
    """DeepSpeed's: they come and go, and are whole at the end of a backward pass.

    The buffer for gradients is of the bucket's size, however few there are; a CPU's pages count once they are written.
    """
    held, zero, wire = setting.held(pipe), setting.zero, setting.communication
    sizes = [sum(p.share(setting.tensor) for p in group) for group in groups(held)]
    if zero.stage == 3:
        live = gathered_in_a_step(setting).most
        bucket = min(zero.bucket, sum(sizes))
        # The bucket, and a copy of it in the order of ranks; weights that are whole.
        return setting.width * live + wire * (zero.bucket + bucket)
    if bf16_optimizer(setting):
        # Gradients of matrices and of vectors are joined to travel, as long as they are few.
        return wire * sum(sizes) if setting.data > 1 and sum(sizes[:1]) <= JOINED else 0
    copies, written = 2 if zero.overlap else 1, min(zero.bucket, sum(sizes))
    joined = wire * written if setting.data > 1 else 0
    return copies * setting.width * (zero.bucket if cuda else written) + joined
