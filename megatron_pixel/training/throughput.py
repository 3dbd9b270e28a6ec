"""How much work a step is, and how much of the device it uses."""

from __future__ import annotations

import resource
import sys
from typing import TYPE_CHECKING

from megatron_pixel.config.schema import ModelConfig

if TYPE_CHECKING:
    import torch  # plans of runs start without it

PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "A40": 150.0,
    "L4": 121.0,
    "A10": 125.0,
}
"""Dense bf16 peak in 10^12 operations a second by a part of the device's name (data sheets); the first match counts."""


def flops_per_step(
    model: ModelConfig,
    positions: int,
    token_targets: int,
    patch_targets: int,
    patches: int,
    attended: int | None = None,
) -> float:
    """Floating-point operations of the forward and backward pass over one step's rows.

    The model's own work, as in PaLM (appendix B): a multiply-add counts 2, the backward pass twice the forward, so a
    weight costs 6 per position that uses it; padding, recomputation and the optimizer count nothing. With h = hidden,
    a = kv_heads / heads, f = ffn, L = layers, d = patch_size^2 * num_channels, V = vocab_size::

        layers      6 * L * (2 h^2 + 2 a h^2 + 3 h f)     per position
        attention   6 * L * 2 * h                         per pair of a position and one that it attends to
        embedder    6 * d * h                             per patch
        heads       6 * V * h per token target, 6 * d * h per patch target

    A row of n positions has n (n + 1) / 2 such pairs: the causal triangle, which is what is computed. Formulas that
    count the whole square, as PaLM's does, make attention twice as large and utilization look better.

    Args:
        model: shape of the model.
        positions: positions of the step that hold a token or a patch.
        token_targets, patch_targets: positions whose prediction counts in the loss.
        patches: positions that hold a patch.
        attended: pairs as above; by default those of full rows of ``model.seq_length``.
    """
    if attended is None:
        attended = positions * (model.seq_length + 1) // 2
    h = model.hidden
    pixels = model.patch_size**2 * model.num_channels
    weights = h * (2 * h + 2 * h * model.kv_heads // model.heads + 3 * model.ffn)
    layers = model.layers * (weights * positions + 2 * h * attended)
    return 6.0 * (layers + pixels * h * (patches + patch_targets) + model.vocab_size * h * token_targets)


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Peak of a known device in bf16, else None: there is no utilization without it."""
    if device.type != "cuda" or precision != "bf16":
        return None
    import torch

    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def memory_gb(device: torch.device) -> float:
    """Largest memory so far in 10^9 bytes: allocated tensors on a GPU, the resident process on a CPU."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
