"""Cross entropy of the next token straight from hidden states: the logits of all targets never exist at once.

At a vocabulary of 32,000 the logits are the largest tensor of a text row, and their gradient another one. Both live
here only for ``CHUNK`` targets at a time, in one buffer: logits become the gradient of the loss in place, and from it
come the gradients of hidden states and weight, already in the forward pass. So nothing is computed twice.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from megatron_pixel.model.products import times_transposed

CHUNK = 2048
"""Targets whose logits exist at a time: enough for matrix products to run at their full rate."""
CACHED = 1 << 19
"""Logits that a CPU turns into probabilities at a time: 2 MB in fp32, which stay in its cache meanwhile."""
ALIGNED = 16
"""Targets come in multiples of this: a text row has 1,023, at which products of oneDNN and MKL lose up to a third."""


class HeadLoss(NamedTuple):
    """What a head hands out that computes its loss itself."""

    sum: Tensor
    """fp32 scalar with its graph: the loss summed over the targets."""
    each: Tensor
    """fp32 [n] without a graph: the loss of each target."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, ids: Tensor) -> HeadLoss:
    """Cross entropy over the logits ``hidden @ weight.T``, in nats.

    Losses and probabilities are fp32. The weight's gradient is summed over chunks in fp32. Only the sum has a gradient,
    and its backward pass runs once: it hands out the buffers of the forward pass.

    Args:
        hidden: [n, h]; under tensor parallelism the same on all ranks, and its gradient is summed over them.
        weight: [v, h], this tensor-parallel rank's share of the vocabulary, in the order of ranks.
        ids: integers [n], what is to be predicted, in the whole vocabulary.
    """
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    return HeadLoss(*_LinearCrossEntropy.apply(hidden, weight, ids, wanted))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, ids: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
        targets = len(hidden)
        if missing := -targets % ALIGNED:
            # Hidden states of zero add nothing to the weight's gradient, whatever their logits are.
            hidden, ids = F.pad(hidden, (0, 0, 0, missing)), F.pad(ids, (0, missing))
        n = len(hidden)
        each = torch.empty(n, dtype=torch.float32, device=hidden.device)
        hidden_gradient = torch.empty_like(hidden) if wanted else None
        weight_gradient: Tensor | None = None
        for begin in range(0, n, CHUNK):
            part = slice(begin, begin + CHUNK)
            logits = times_transposed(hidden[part], weight)
            each[part] = _losses(logits, ids[part], wanted)
            if hidden_gradient is None:
                continue
            hidden_gradient[part] = times_transposed(logits, weight.t())
            if n <= CHUNK:
                weight_gradient = logits.t() @ hidden
            elif weight.dtype == torch.float32:
                # In place, or the sum would be as slow as a product.
                weight_gradient = torch.zeros_like(weight) if weight_gradient is None else weight_gradient
                weight_gradient.addmm_(logits.t(), hidden[part])
            elif weight_gradient is None:
                weight_gradient = (logits.t() @ hidden[part]).float()
            else:
                weight_gradient.add_(logits.t() @ hidden[part])
            del logits  # or it would stand beside those of the next chunk
        if hidden_gradient is not None and weight_gradient is not None:
            ctx.save_for_backward(hidden_gradient[:targets], weight_gradient.to(weight.dtype))
        each = each[:targets]
        ctx.mark_non_differentiable(each)
        ctx.set_materialize_grads(False)
        return each.sum(), each

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        hidden_gradient.mul_(gradient)
        handle = None
        if parallel_state.get_tensor_model_parallel_world_size() > 1:
            group = parallel_state.get_tensor_model_parallel_group()
            handle = dist.all_reduce(hidden_gradient, group=group, async_op=True)
        weight_gradient.mul_(gradient)
        if handle is not None:
            handle.wait()
        return hidden_gradient, weight_gradient, None, None


def _losses(logits: Tensor, ids: Tensor, wanted: bool) -> Tensor:
    """Losses of some targets, fp32 [n]; where ``wanted``, logits [n, v] become the gradient of their sum, in place."""
    if parallel_state.get_tensor_model_parallel_world_size() > 1:
        return _split_losses(logits, ids, wanted)
    n, v = logits.shape
    rows = n if logits.is_cuda else max(1, CACHED // v)
    each = torch.empty(n, dtype=torch.float32, device=logits.device)
    for begin in range(0, n, rows):
        part = slice(begin, begin + rows)
        values = logits[part]
        probabilities = torch.softmax(values, -1, dtype=torch.float32)
        # The probability of the largest logit is 1 / sum(exp(logits - largest)), and never small.
        margins = values.amax(-1).float() - values.gather(1, ids[part, None]).squeeze(1).float()
        each[part] = margins - probabilities.amax(-1).log()
        if wanted:
            values.copy_(probabilities)
    if wanted:
        # The probability of the target less one, exactly also where that is small. By index: on CPUs scatter_ converts
        # the whole of a bf16 tensor to fp32 and back.
        logits[torch.arange(n, device=logits.device), ids] = torch.expm1(-each).to(logits.dtype)
    return each


def _split_losses(logits: Tensor, ids: Tensor, wanted: bool) -> Tensor:
    """The same where every tensor-parallel rank has the logits of its share of the vocabulary."""
    group = parallel_state.get_tensor_model_parallel_group()
    v = logits.shape[1]
    places = ids.long() - parallel_state.get_tensor_model_parallel_rank() * v
    mine = (places >= 0) & (places < v)
    places = torch.where(mine, places, 0)[:, None]
    values = logits.float()
    greatest = values.amax(-1)
    dist.all_reduce(greatest, op=dist.ReduceOp.MAX, group=group)
    values -= greatest[:, None]
    predicted = torch.where(mine, values.gather(1, places).squeeze(1), 0.0)
    values.exp_()
    total = values.sum(-1)
    dist.all_reduce(predicted, group=group)
    dist.all_reduce(total, group=group)
    each = total.log() - predicted
    if wanted:
        values /= total[:, None]
        target = torch.where(mine, torch.expm1(-each), values.gather(1, places).squeeze(1))
        logits.copy_(values.scatter_(1, places, target[:, None]))
    return each
