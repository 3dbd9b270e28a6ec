"""``training.compile: layers``: the decoder layers through ``torch.compile``, one code for all of them.

Whole models take minutes to compile, and anew for every change. A layer takes as long as one layer, and all layers run
its code: they differ in their weights alone, which are inputs of it. Only training is compiled. Evaluation is a small
share of a run, and what looks into layers there finds them as they are.
"""

import time

import torch
from torch import Tensor, nn

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.model.attention import Documents
from megatron_pixel.model.batch import Header, Travelling
from megatron_pixel.model.layers import DecoderLayer, run_layer

BACKEND = "inductor"
"""Of ``torch.compile``; it writes C++ for CPUs and Triton for CUDA devices."""
WANTS = {
    "cpu": "a C++ compiler with OpenMP (g++, or the one that the variable CXX names)",
    "cuda": "Triton and a C compiler",
}
"""What it wants on a kind of device."""


def compile_layers(stages: nn.Module, model: ModelConfig, rows: int, dtype: torch.dtype, masked: bool) -> float:
    """Let the decoder layers of a model that is going to be trained run compiled code, and compile it.

    Nothing of the model changes, its parameters' names among it, and no random numbers are drawn.

    Args:
        stages: this rank's; holds a decoder layer at least.
        model: its shape.
        rows: of a micro-batch.
        dtype: of the hidden states.
        masked: whether some rows need an attention mask, for which there is a code of its own.

    Returns:
        Seconds that it took.

    Raises:
        UserError: it cannot be compiled here.
    """
    begin = time.perf_counter()
    layers = [stage for stage in stages.modules() if isinstance(stage, DecoderLayer)]

    def run(layer: nn.Module, hidden: Tensor, seen: Tensor | Documents | None, angles: Tensor) -> Tensor:
        # A dimension of one has a stride that says nothing, but for which the layer would be compiled once more.
        return compiled(layer, hidden.view(hidden.shape), seen, angles)

    for layer in layers:
        layer.run = run
    device = next(layers[0].parameters()).device
    try:
        # Whole, or not at all: ranks that cut a layer differently would fill ZeRO's buckets in different orders, and
        # add up gradients of different weights.
        compiled = torch.compile(run_layer, backend=BACKEND, dynamic=False, fullgraph=True)
        for inner_padding in (False, True) if masked else (False,):
            _run_once(layers[0], model, rows, dtype, inner_padding)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compilers' errors have no type in common
        raise UserError(
            f"training.compile: a decoder layer cannot be compiled here: {_reason(error)}\n"
            f"torch.compile wants {WANTS[device.type]}: install what is lacking, or set --training.compile none"
        ) from error
    return time.perf_counter() - begin


def _run_once(layer: DecoderLayer, model: ModelConfig, rows: int, dtype: torch.dtype, inner_padding: bool) -> None:
    """Forward and backward pass over rows of nothing, which compile; the gradients go nowhere."""
    device = next(layer.parameters()).device
    s = model.seq_length
    hidden = torch.zeros(s, rows, model.hidden, dtype=dtype, device=device, requires_grad=True)
    whole = torch.zeros(rows, s, dtype=torch.int32, device=device)
    places = torch.arange(s, dtype=torch.int32, device=device).repeat(rows, 1)
    header = Header(Kind.TEXT, inner_padding, ()).tensor()
    output, *_ = layer(tuple(Travelling(hidden, whole, places, whole, whole, header)))
    wanted = [hidden, *(parameter for parameter in layer.parameters() if parameter.requires_grad)]
    torch.autograd.grad(output, wanted, torch.zeros_like(output))


def _reason(error: BaseException) -> str:
    """The first line of what the compiler was stopped by."""
    while isinstance(inner := getattr(error, "inner_exception", None), BaseException):
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
