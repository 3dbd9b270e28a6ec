"""Changes between the matrix products of a decoder layer: attention, norms, rotary positions."""

from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.levers import Lever, saved
from benchmarks.timing import Work
from megatron_pixel.config.schema import ModelConfig


def between_products(model: ModelConfig, dtype: Any, device: Any) -> Iterator[Lever]:
    """Forward and backward pass of each, on one row."""
    import torch
    import torch.nn.functional as F
    from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb

    from megatron_pixel.model.blocked_attention import causal_attention
    from megatron_pixel.model.layers import transformer_config
    from megatron_pixel.model.rms_norm import rms_norm
    from megatron_pixel.model.rotary import rotary_angles, rotation, turned_heads

    s, h, heads, groups = model.seq_length, model.hidden, model.heads, model.kv_heads
    d = h // heads

    def random(*shape: int) -> Any:
        return torch.randn(shape, device=device).to(dtype).requires_grad_()

    def both(call: Callable[..., Any], *inputs: Any) -> Work:
        gradients = [torch.randn_like(output) for output in call(*inputs)]
        return lambda: torch.autograd.grad(call(*inputs), inputs, gradients)

    def flash(*parts: Any) -> tuple[Any]:
        seen = (part.permute(1, 2, 0, 3) for part in parts)
        return (F.scaled_dot_product_attention(*seen, is_causal=True, enable_gqa=heads != groups),)

    if device.type == "cpu":
        parts = random(s, 1, heads, d), random(s, 1, groups, d), random(s, 1, groups, d)
        blocks = both(lambda *parts: (causal_attention(*parts),), *parts)
        name = "attention: PyTorch's flash kernel -> blocks of queries"
        yield Lever(name, both(flash, *parts), blocks, dtype == torch.bfloat16, saved)
        states, weight = random(s, 1, h), random(h)
        before = both(lambda states, weight: (F.rms_norm(states, (h,), weight, model.norm_eps),), states, weight)
        after = both(lambda states, weight: (rms_norm(states, weight, model.norm_eps),), states, weight)
        yield Lever("norm: PyTorch's -> stretches that stay in the cache", before, after, True, saved)
    angles = rotary_angles(torch.arange(s, device=device)[None], d, model.rope_theta)
    config, fused = transformer_config(model), random(s, 1, (heads + 2 * groups) * d)

    def megatrons(fused: Any) -> tuple[Any, ...]:
        whole = torch.cat((angles, angles), dim=-1).unsqueeze(2)
        query, key, value = fused.unflatten(-1, (groups, -1)).split((heads // groups * d, d, d), dim=-1)
        query = query.reshape(s, 1, heads, d)
        return *(apply_rotary_pos_emb(part, whole, config=config) for part in (query, key)), value

    def ours(fused: Any) -> tuple[Any, ...]:
        return turned_heads(fused, groups, rotation(angles, dtype))

    yield Lever("rotary positions: megatron-core's -> turned as taken", both(megatrons, fused), both(ours, fused), True)
