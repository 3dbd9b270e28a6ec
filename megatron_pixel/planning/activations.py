"""What a micro-batch keeps for its backward pass: the tensors that PyTorch's autograd saves, summed up by shape.

Per position, with ``h`` hidden, ``k`` key-value width, ``d`` head width, ``f`` ffn, ``a`` heads, ``t`` tensor-parallel
ranks and ``w`` bytes of an activation, a decoder layer keeps::

    norms        2 x (input h w, its inverse deviation 4, output h w)
    attention    turned queries and keys, and values (h + 2k) w / t, the context h w / t, a sum of exponents 4 a / t,
                 cosines and sines 2 d w
    SwiGLU       gate and up 2f w / t, and their product f w / t

In bf16 on a CPU attention keeps its probabilities, for rows of the lengths for which they fit. The token head keeps no
logits: the gradients of its hidden states and of its weight are there before the backward pass. A test holds these sums
against saved-tensor hooks.
"""

from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.setting import Setting, has_patches, has_tokens

HEAD_CHUNK = 2048
"""Token targets whose logits exist at a time: ``CHUNK`` of ``model/token_loss.py``, which would import torch."""
HEAD_CACHED = 1 << 19
"""Logits that a CPU turns into probabilities at a time: ``CACHED`` there."""
HEAD_ALIGNED = 16
"""Targets are filled up to a multiple of this: ``ALIGNED`` there."""
BLOCK, LEAST, MOST = 64, 256, 2048
"""Of ``model/blocked_attention.py``: query positions at a time, and the lengths of rows that it takes."""


def kept(setting: Setting, pipe: int, kind: Kind, targets: tuple[int, int], cuda: bool = True) -> int:
    """Bytes that a micro-batch of a kind keeps on a pipeline rank from its forward to its backward pass.

    Args:
        setting: the run in its layout.
        pipe: pipeline rank.
        kind: of the rows.
        targets: token targets and patch targets of the micro-batch.
        cuda: kernels of CUDA devices, which keep less; else those of CPUs.
    """
    model, n = setting.model, setting.positions
    layers = setting.layers(pipe)
    again = sum(1 for layer in layers if layer in setting.recompute)
    total = (len(layers) - again) * layer_bytes(setting, cuda) + again * setting.width * n * _residual(setting)
    if setting.is_first(pipe):
        total += _embedding(setting, kind)
    if setting.is_last(pipe):
        total += n * _norm(setting)
        values = model.patch_size**2 * model.num_channels
        tokens, patches = targets
        width = setting.width * model.hidden + 8  # the hidden state of each target, or its gradient, and its place
        if has_tokens(kind) or setting.touch_all:
            total += max(tokens, 1) * width + setting.width * model.hidden * model.vocab_size // setting.tensor
        if has_patches(kind) or setting.touch_all:
            total += max(patches, 1) * width + patches * 4 * values
    return int(total)


def layer_bytes(setting: Setting, cuda: bool = True) -> int:
    """Bytes that a decoder layer keeps of a micro-batch."""
    model, w, t = setting.model, setting.width, setting.tensor
    h, f, d = model.hidden, model.ffn, model.hidden // model.heads
    k = model.kv_heads * d
    norms = 2 * (_norm(setting) + w * _residual(setting))
    attention = 2 * w * (h + k) / t + 2 * w * d + 4 * model.heads / t
    if setting.bf16 and not cuda and LEAST <= model.seq_length <= MOST:
        # Half a square, and half of the blocks on its diagonal.
        attention += w * model.heads / t * (model.seq_length + BLOCK) / 2
    return int(setting.positions * (norms + attention + 3 * w * f / t))


def most_transient(setting: Setting, pipe: int, kind: Kind, targets: tuple[int, int], cuda: bool = True) -> int:
    """Bytes that come on top for a moment: a layer that is computed again, or the logits and their gradients."""
    again = any(layer in setting.recompute for layer in setting.layers(pipe))
    layer = layer_bytes(setting, cuda) if again else 0
    head = head_transient(setting, targets[0], cuda) if setting.is_last(pipe) and has_tokens(kind) else 0
    return max(layer, head)


def head_transient(setting: Setting, targets: int, cuda: bool = True) -> int:
    """Bytes on top of what the token head keeps while it computes its loss and, with it, its gradients.

    The logits of a chunk of targets become probabilities in fp32 and then, in place, their own gradient; then a product
    of them is the chunk's part of the weight's gradient. Of several chunks that is summed up in fp32: a second tensor
    where the weight is bf16.
    """
    model, w = setting.model, setting.width
    vocabulary = model.vocab_size // setting.tensor
    weight = model.hidden * vocabulary

    def most(chunk: int, summed: int, product: int) -> int:
        rows = chunk if cuda or setting.tensor > 1 else min(chunk, max(1, HEAD_CACHED // vocabulary))
        if setting.tensor > 1:
            copies = 1 if setting.bf16 else 0  # logits of fp32 are taken in place
        else:
            # Of several stretches the last one's probabilities are still there; CPUs convert in a step of its own.
            copies = 1 + (rows < chunk) + (setting.bf16 and not cuda)
        return w * chunk * vocabulary + summed + max(4 * copies * rows * vocabulary, product)

    missing = -targets % HEAD_ALIGNED
    targets += missing
    filled_up = w * targets * model.hidden if missing else 0
    first, rest = min(targets, HEAD_CHUNK), min(max(targets - HEAD_CHUNK, 0), HEAD_CHUNK)
    converted = 4 * weight if rest and setting.bf16 else 0
    found = most(first, 0, w * weight + converted)
    if rest:
        found = max(found, most(rest, 4 * weight, w * weight if setting.bf16 else 0))
    return filled_up + found - w * weight


def _norm(setting: Setting) -> float:
    """Bytes of a position that an RMSNorm keeps of its input."""
    return setting.width * _residual(setting) + 4


def _residual(setting: Setting) -> float:
    """Values of a position outside of attention and feed-forward layers on a rank."""
    return setting.model.hidden / (setting.tensor if setting.sequence_parallel else 1)


def _embedding(setting: Setting, kind: Kind) -> int:
    model, w, n = setting.model, setting.width, setting.positions
    values = model.patch_size**2 * model.num_channels
    total = 0
    if has_tokens(kind):
        total += 8 * n + (n if setting.tensor > 1 else 0)
    if has_patches(kind):
        total += n * (w * values + w * model.hidden + 2 * w)
    return total + (n if kind == Kind.PAIR else 0)
