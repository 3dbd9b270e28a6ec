"""What one step sends: every collective of the model, of DeepSpeed and of the loop, by kind, rank by rank.

Bytes are those of the tensor that an operation works on: what goes into an all-reduce, a reduce-scatter, a broadcast or
a send, what comes out of an all-gather. They are known exactly, and a test holds them against the records of the
profiler. An operation whose group is one rank sends nothing and is left out.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.activations import HEAD_ALIGNED, HEAD_CHUNK
from megatron_pixel.planning.gathering import gathered_in_a_step
from megatron_pixel.planning.parameters import Parameter, groups
from megatron_pixel.planning.setting import Setting, has_patches, has_tokens

OBJECTIVES = 2
"""Next token and next patch."""
KINDS = ("gradients", "weights", "tensor", "loss", "pipeline", "control")
"""Kinds of traffic: see :class:`Traffic`."""


@dataclass(frozen=True)
class Traffic:
    """Some operations of one rank in one step, all alike."""

    kind: str
    """``gradients`` summed over data-parallel ranks; ``weights`` gathered from them; ``tensor``: hidden states and
    their gradients between tensor-parallel ranks; ``loss``: cross entropy over a split vocabulary; ``pipeline``: what
    stages hand on; ``control``: counts, norms, flags."""
    operation: str
    """``all_reduce``, ``all_gather``, ``reduce_scatter``, ``broadcast`` or ``send``."""
    group: str
    """``data``, ``tensor``, ``pipeline``, ``model`` (tensor x pipeline) or ``world``."""
    bytes: int
    messages: int = 1


def traffic(setting: Setting, pipe: int, targets: Sequence[tuple[int, int]] | None = None) -> list[Traffic]:
    """All that a rank takes part in during one step that follows another, without evaluation between them.

    Args:
        setting: the run in its layout.
        pipe: rank along the pipeline; others at its place there do the same.
        targets: token and patch targets of each micro-batch of the step, by default as many as there can be.
    """
    if targets is None:
        return _full_traffic(setting, pipe)
    return _traffic(setting, pipe, [(kind, n, 1) for kind, n in zip(setting.kinds, targets, strict=True)])


@lru_cache(maxsize=1024)
def _full_traffic(setting: Setting, pipe: int) -> list[Traffic]:
    full = setting.full_targets
    return _traffic(setting, pipe, [(kind, full[kind], times) for kind, times in Counter(setting.kinds).items()])


def _traffic(setting: Setting, pipe: int, batches: Sequence[tuple[Kind, tuple[int, int], int]]) -> list[Traffic]:
    found = [*_gradients(setting, pipe), *_weights(setting, pipe)]
    for kind, targets, times in batches:
        for part in _micro_batch(setting, pipe, kind, targets):
            found.append(replace(part, bytes=times * part.bytes, messages=times * part.messages))
    found += [*_norms(setting, pipe), *_comparisons(setting), *_loop(setting)]
    return [part for part in _joined(found) if part.bytes and group_size(setting, part.group) > 1]


def group_size(setting: Setting, group: str) -> int:
    """Ranks of a group."""
    sizes = {
        "data": setting.data,
        "tensor": setting.tensor,
        "pipeline": setting.pipeline,
        "model": setting.tensor * setting.pipeline,
        "world": setting.devices,
    }
    return sizes[group]


def flat_size(group: list[Parameter], setting: Setting) -> int:
    """Values of the flat buffer of a group at ZeRO 1 and 2: padded so that every rank's part begins at 4 bytes."""
    unit = 2 * setting.data
    return -(-sum(parameter.share(setting.tensor) for parameter in group) // unit) * unit


def partition_size(parameter: Parameter, setting: Setting) -> int:
    """Values of a parameter on each rank at ZeRO 3, which cuts parameter by parameter."""
    return -(-parameter.share(setting.tensor) // setting.data)


def bf16_optimizer(setting: Setting) -> bool:
    """Whether DeepSpeed takes its ``BF16_Optimizer``, which accumulates flat fp32 gradients: at ZeRO 1 in bf16."""
    return setting.bf16 and setting.zero.stage == 1 and not setting.zero.offload


def _gradients(setting: Setting, pipe: int) -> Iterator[Traffic]:
    held, wire = setting.held(pipe), setting.communication
    stage = setting.zero.stage
    if bf16_optimizer(setting):
        for group in groups(held):
            yield Traffic("gradients", "all_reduce", "data", wire * flat_size(group, setting))
    elif stage == 1:
        # Parameters without a gradient in this step stay out.
        tokens, patches = any(map(has_tokens, setting.kinds)), any(map(has_patches, setting.kinds))
        yield Traffic("gradients", "all_reduce", "data", wire * _used(setting, held, tokens, patches))
    for kind, times in Counter(setting.kinds).items() if stage > 1 else ():
        if stage == 2:
            used = _used(setting, held, has_tokens(kind), has_patches(kind))
            yield Traffic("gradients", "all_reduce", "data", times * wire * used, times)
        else:
            values = setting.data * sum(partition_size(parameter, setting) for parameter in held)
            yield Traffic("gradients", "reduce_scatter", "data", times * wire * values, times)


def _weights(setting: Setting, pipe: int) -> Iterator[Traffic]:
    if setting.zero.stage < 3:
        for group in groups(setting.held(pipe)):
            yield Traffic("weights", "all_gather", "data", setting.width * flat_size(group, setting))
        return
    gathered = gathered_in_a_step(setting)
    yield Traffic("weights", "all_gather", "data", setting.width * gathered.values, gathered.messages)


def _micro_batch(setting: Setting, pipe: int, kind: Kind, targets: tuple[int, int]) -> Iterator[Traffic]:
    """The model's forward and backward pass, and what stages hand on."""
    h, width = setting.model.hidden, setting.width
    hidden = setting.positions * h * width
    if setting.is_first(pipe):
        if has_tokens(kind):
            yield Traffic("tensor", "all_reduce", "tensor", hidden)
        elif setting.touch_all:
            yield Traffic("tensor", "all_reduce", "tensor", h * width)
    layers = setting.layers(pipe)
    again = sum(1 for layer in layers if layer in setting.recompute)
    # Forward behind the projection and behind the feed-forward layer, backward in front of both. What is computed again
    # stops at the last thing that is needed, in front of its second sum.
    count = 4 * len(layers) + again
    if setting.sequence_parallel:
        yield from _by_position(setting, pipe, hidden, len(layers), again)
    else:
        yield Traffic("tensor", "all_reduce", "tensor", count * hidden, count)
    if setting.is_last(pipe):
        yield from _token_head(setting, kind, targets[0])
    yield from _handed_on(setting, pipe)


def _by_position(setting: Setting, pipe: int, hidden: int, layers: int, again: int) -> Iterator[Traffic]:
    """Sequence parallelism: a gather in front of each split layer, a scatter behind it, and their opposites backward.

    It runs on CUDA devices only, so these sums are not held against a run.
    """
    gathers = 6 * layers + 2 * again + setting.is_first(pipe) + setting.is_last(pipe)
    scatters = 4 * layers + again
    yield Traffic("tensor", "all_gather", "tensor", gathers * hidden, gathers)
    yield Traffic("tensor", "reduce_scatter", "tensor", scatters * hidden, scatters)
    norms = 2 * layers + setting.is_last(pipe)
    yield Traffic("tensor", "all_reduce", "tensor", norms * setting.model.hidden * setting.width, norms)


def _token_head(setting: Setting, kind: Kind, targets: int) -> Iterator[Traffic]:
    """Gradients of the hidden states that the split head has read, and the cross entropy's three sums in fp32."""
    if has_tokens(kind) or setting.touch_all:
        targets = max(targets, 1) if has_tokens(kind) else 1
        yield Traffic("tensor", "all_reduce", "tensor", targets * setting.model.hidden * setting.width)
        filled_up = -(-targets // HEAD_ALIGNED) * HEAD_ALIGNED
        yield Traffic("loss", "all_reduce", "tensor", 3 * 4 * filled_up, 3 * -(-filled_up // HEAD_CHUNK))


def _handed_on(setting: Setting, pipe: int) -> Iterator[Traffic]:
    """Hidden states and their gradients between neighbors; tensor-parallel ranks send a part each and gather it."""
    hidden = setting.positions * setting.model.hidden * setting.width
    hidden //= setting.tensor if setting.sequence_parallel else 1
    # A part travels with its shape, its number and the boundaries of all parts, as 64-bit integers.
    part, messages = (hidden, 1) if setting.tensor == 1 else (hidden // setting.tensor + 8 * (setting.tensor + 7), 2)
    if not setting.is_last(pipe):
        places = setting.positions * (4 + 4 + 4 + 8 * OBJECTIVES) + 8 * (2 + OBJECTIVES)
        yield Traffic("pipeline", "send", "pipeline", part + places, messages + 5)
        yield Traffic("pipeline", "all_gather", "tensor", 2 * hidden, 2)
    if not setting.is_first(pipe):
        yield Traffic("pipeline", "send", "pipeline", part, messages)
        yield Traffic("pipeline", "all_gather", "tensor", hidden)


def _norms(setting: Setting, pipe: int) -> Iterator[Traffic]:
    """The gradient norm, group by group of the optimizer; a pipeline's loss, which DeepSpeed tells all of its ranks."""
    shares = "tensor" if setting.pipeline == 1 else "model"
    if bf16_optimizer(setting):
        yield Traffic("control", "all_reduce", shares, 4)
    else:
        width = 8 if setting.zero.stage == 3 else 4
        if setting.bf16 and setting.zero.stage < 3:
            # Whether a gradient is not finite.
            yield Traffic("control", "all_reduce", "data", 1)
            yield Traffic("control", "all_reduce", shares, 1)
        for group in norm_groups(setting, pipe):
            yield Traffic("control", "all_reduce", "data", width * group)
            yield Traffic("control", "all_reduce", shares, width * group)
    if setting.pipeline > 1:
        if setting.is_last(pipe):
            yield Traffic("control", "all_reduce", "data", 4)
        yield Traffic("control", "broadcast", "pipeline", 2 * 4)


def _comparisons(setting: Setting) -> Iterator[Traffic]:
    if setting.zero.stage == 3:
        yield Traffic("control", "broadcast", "world", 8 * gathered_in_a_step(setting).compared)


def norm_groups(setting: Setting, pipe: int) -> list[int]:
    """For each group of parameters, into how many DeepSpeed cuts it: ZeRO 3 takes so many values at a time."""
    found = []
    for group in groups(setting.held(pipe)):
        parts, values = 0, 0
        for parameter in group if setting.zero.stage == 3 else ():
            values += partition_size(parameter, setting)
            if values >= setting.zero.sub_group:
                parts, values = parts + 1, 0
        found.append(parts + (values > 0 or not parts))
    return found


def _loop(setting: Setting) -> Iterator[Traffic]:
    """The loop's own: targets of the step; losses, gradient norms by stage, figures of all ranks; a signal to stop."""
    yield Traffic("control", "all_reduce", "data", 8 * COUNTS)
    blocks = -(-setting.model.layers // max(1, -(-setting.model.layers // LAYER_BLOCKS)))
    losses = 2 * (LOSSES + setting.losses_by_source)
    yield Traffic("control", "all_reduce", "world", 8 * (losses + STAGES + blocks + FIGURES * setting.devices))
    yield Traffic("control", "all_reduce", "world", 8 * FLAGS)


COUNTS = 6
"""What a step holds: targets, positions, patches, pairs of positions that see each other, a digest of its rows."""
FLAGS = 3
"""A signal or the end of the time; whether the step was skipped, and whether it was taken."""
LOSSES = 4
"""Kinds of loss, each a sum and a count."""
STAGES, LAYER_BLOCKS = 5, 6
"""Stages besides decoder layers whose gradient norm is told, and the most blocks of layers."""
FIGURES = 8
"""Figures of each rank."""


def _used(setting: Setting, held: list[Parameter], tokens: bool, patches: bool) -> int:
    """Values of the parameters that get a gradient."""
    everything = setting.touch_all
    return sum(
        parameter.share(setting.tensor) for parameter in held if everything or parameter.used_by(tokens, patches)
    )


def _joined(parts: list[Traffic]) -> list[Traffic]:
    """One entry for all that differ in bytes only."""
    sums: dict[tuple[str, str, str], list[int]] = {}
    for part in parts:
        entry = sums.setdefault((part.kind, part.operation, part.group), [0, 0])
        entry[0] += part.bytes
        entry[1] += part.messages
    return [Traffic(*key, *values) for key, values in sums.items()]
