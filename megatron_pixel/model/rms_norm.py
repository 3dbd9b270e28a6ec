"""RMSNorm on CPUs, in stretches of rows that stay in the cache between one operation and the next.

PyTorch has no CPU kernel for it: its operations each go over all rows in fp32, and autograd keeps two such copies.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CACHED = 1 << 19
"""Values that each operation works on at a time: 2 MB in fp32, of which up to three are in use. Fewer would leave the
threads little to share, and cost calls."""


def rms_norm(states: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``states / sqrt(mean(states ** 2) + eps) * weight`` over the last dimension.

    Computed in fp32, or in fp64 where the states are, and rounded once to their dtype, as PyTorch's. For the backward
    pass it keeps the states and the inverse deviation of each row.

    Args:
        states: [..., h], of any floating dtype; elsewhere than on a CPU this is PyTorch's own.
        weight: [h].
        eps: added to the mean square.
    """
    if states.device.type != "cpu" or torch.compiler.is_compiling():  # which joins the operations by itself
        return F.rms_norm(states, weight.shape, weight, eps)
    return _RMSNorm.apply(states, weight, eps)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows, wide, exact = _prepared(states, weight)
        n, h = rows.shape
        output = torch.empty_like(rows)
        inverse = torch.empty(n, 1, dtype=exact)
        step = max(1, CACHED // h)
        scratch = torch.empty(min(step, n), h, dtype=exact)
        for begin in range(0, n, step):
            part = slice(begin, begin + step)
            row, deviation = rows[part], inverse[part]
            values = scratch[: len(row)].copy_(row)
            torch.linalg.vector_norm(values, dim=-1, keepdim=True, out=deviation)
            deviation.square_().div_(h).add_(eps).rsqrt_()
            output[part] = values.mul_(deviation).mul_(wide)
        ctx.save_for_backward(states, weight, inverse)
        return output.view(states.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Of ``y = x r w``, ``r`` the inverse deviation: ``dx = r (g w - x r^2 mean(g w x))``, ``dw = sum(g x r)``."""
        states, weight, inverse = ctx.saved_tensors
        rows, wide, exact = _prepared(states, weight)
        gradients = gradient.reshape(rows.shape)
        n, h = rows.shape
        result, summed = torch.empty_like(rows), torch.zeros(h, dtype=exact)
        step = max(1, CACHED // h)
        scratch = torch.empty(3, min(step, n), h, dtype=exact)
        for begin in range(0, n, step):
            part = slice(begin, begin + step)
            x, g, both = scratch[:, : len(rows[part])]
            x.copy_(rows[part])
            g.copy_(gradients[part])
            deviation = inverse[part]
            torch.mul(x, g, out=both)
            summed += torch.mv(both.t(), deviation[:, 0])
            mean = torch.mv(both, wide).unsqueeze(1).div_(h)
            result[part] = g.mul_(wide).addcmul_(x, mean.mul_(deviation.square()), value=-1).mul_(deviation)
        return result.view(states.shape), summed.to(weight.dtype), None


def _prepared(states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, torch.dtype]:
    """The rows [n, h], the weight in the dtype that is computed in, and that dtype."""
    exact = torch.promote_types(states.dtype, torch.float32)
    return states.reshape(-1, states.shape[-1]), weight.to(exact), exact
