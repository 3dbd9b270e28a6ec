"""Matrix products of linear layers, by oneDNN where torch takes a slower library.

On a CPU torch hands fp32 products to its BLAS, and half-precision ones to oneDNN, which it is built with. oneDNN is the
faster one in fp32 too, for most shapes, but torch shows it only in the operation that its compiler puts into graphs.
That operation is used here, in this module alone; where it is missing, products are torch's own.
``benchmarks/levers.py`` measures what it gives.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

LEAST = 1 << 24
"""Multiplications of a product from which on oneDNN is taken; below, a call's own cost eats the gain."""

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def times_transposed(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right.T`` of [m, k] and [n, k], with fp32 sums.

    ``left`` is copied where it does not lie row after row.
    """
    if _taken(left, right):
        return _onednn(left, right, None, "none", [], "")
    return left @ right.t()


def weight_gradient(gradient: Tensor, inputs: Tensor) -> Tensor:
    """``gradient.T @ inputs`` of [n, out] and [n, in]: the gradient of a linear layer's weight."""
    # oneDNN wants the first factor row after row: to turn a wide one costs more than is gained.
    if gradient.shape[1] <= inputs.shape[1]:
        return times_transposed(gradient.t(), inputs.t())
    return gradient.t() @ inputs


def _taken(left: Tensor, right: Tensor) -> bool:
    return (
        _onednn is not None
        and left.dtype == right.dtype == torch.float32
        and left.device.type == "cpu"
        and left.shape[0] * left.shape[1] * right.shape[0] >= LEAST
        and torch.backends.mkldnn.enabled
    )


class OneDNNLinear:
    """Mixed into megatron-core's parallel linear layers: their products on a CPU are those of this module.

    Megatron-core calls ``_forward_impl`` between its communication of inputs and of outputs; only the sum of the
    inputs' gradient over tensor-parallel ranks lies inside.
    """

    def _forward_impl(self, input: Tensor, weight: Tensor, **settings: Any) -> Tensor:
        known = settings["bias"] is None and not settings["sequence_parallel"]
        group = settings["tp_group"] if settings["allreduce_dgrad"] else None
        if known and group is None and torch.compiler.is_compiling():
            return F.linear(input, weight)  # a compiler chooses the library by itself
        if known and input.device.type == "cpu":
            return linear(input, weight, group)
        return super()._forward_impl(input=input, weight=weight, **settings)  # type: ignore[misc]


def linear(inputs: Tensor, weight: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """``inputs @ weight.T`` of [..., in] and [out, in], with products of this module forward and backward.

    Args:
        inputs: as above; their gradient is summed over ``group``, if there is one.
        weight: as above.
        group: tensor-parallel ranks that have the same inputs and other weights.
    """
    output: Tensor = _Linear.apply(inputs, weight, group)
    return output


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.save_for_backward(inputs, weight)
        ctx.group = group
        return times_transposed(inputs.flatten(0, -2), weight).view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        inputs, weight = ctx.saved_tensors
        gradient = gradient.flatten(0, -2)
        input_gradient, handle = None, None
        if ctx.needs_input_grad[0]:
            input_gradient = times_transposed(gradient, weight.t()).view(inputs.shape)
            if ctx.group is not None:
                handle = dist.all_reduce(input_gradient, group=ctx.group, async_op=True)
        found = weight_gradient(gradient, inputs.flatten(0, -2)) if ctx.needs_input_grad[1] else None
        if handle is not None:
            handle.wait()
        return input_gradient, found, None
