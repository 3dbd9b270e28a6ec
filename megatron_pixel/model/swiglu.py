"""SwiGLU that keeps for its backward pass what the product in front of it has made, and nothing of its own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        result = torch.empty_like(both)
        gate_gradient, up_gradient = result.chunk(2, dim=-1)
        torch.ops.aten.silu_backward.grad_input(gradient * up, gate, grad_input=gate_gradient)
        torch.mul(F.silu(gate), gradient, out=up_gradient)
        return result


def swiglu(both: Tensor) -> Tensor:
    """``silu(gate) * up`` of [..., 2 f] that holds gate, then up; [..., f].

    The activated gate is computed again in the backward pass: autograd would keep it, and copies of both halves.
    """
    if torch.compiler.is_compiling():  # which decides by itself what to keep, and joins it with what stands around it
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(both)
