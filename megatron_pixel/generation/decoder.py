"""The decoder for inference, in plain torch on one device: the training model's weights, and a key-value cache.

It needs neither megatron-core nor process groups, so a checkpoint opens in a notebook. Tests hold its outputs equal to
those of the training stages.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig

PATCH_NORM_EPS = 1e-5
"""Of the LayerNorm behind the patch projection."""


@dataclass(frozen=True)
class _Layer:
    """Weights of one decoder layer; ``linear`` ones are [out, in]."""

    norm: Tensor
    qkv: Tensor
    """All queries, then all keys, then all values."""
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


class Cache:
    """Keys and values of the positions that were read, with room for ``capacity``.

    Args:
        decoder: whose positions it holds.
        batch: rows.
        capacity: positions at the most.
        content: bool [batch, n], False at padding among the first n positions; None where there is no padding. What
            comes after them is content.
    """

    def __init__(self, decoder: "Decoder", batch: int, capacity: int, content: Tensor | None = None) -> None:
        model = decoder.model
        shape = (model.layers, 2, batch, model.kv_heads, capacity, model.hidden // model.heads)
        self._values = torch.empty(shape, dtype=decoder.dtype, device=decoder.device)
        self.length = 0
        """Positions held."""
        self.content: Tensor | None = None
        if content is not None and not bool(content.all()):
            self.content = torch.ones(batch, capacity, dtype=torch.bool, device=decoder.device)
            self.content[:, : content.shape[1]] = content

    def put(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [b, groups, s, d] to a layer; returns all that it holds, this included."""
        end = self.length + keys.shape[2]
        held_keys, held_values = self._values[layer]
        held_keys[:, :, self.length : end] = keys
        held_values[:, :, self.length : end] = values
        return held_keys[:, :, :end], held_values[:, :, :end]

    def advance(self, positions: int) -> None:
        """After all layers have put so many positions."""
        self.length += positions


class Decoder:
    """Embedders, layers, final norm and heads.

    Args:
        model: its shape.
        read: gives a parameter by its name in :mod:`megatron_pixel.model.stages`, fp32 on the CPU.
        names: of the parameters that there are: embedders and heads may be absent.
        device: where it runs.
        dtype: of weights and activations.
    """

    def __init__(
        self,
        model: ModelConfig,
        read: Callable[[str], Tensor],
        names: set[str],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model, self.device, self.dtype = model, torch.device(device), dtype
        self._width = model.hidden // model.heads

        def weight(name: str) -> Tensor:
            return read(name).to(self.device, dtype)

        self._tokens = weight("0.tokens.weight")
        self._patches = None
        if "0.patches.projection.weight" in names:
            parts = ("projection.weight", "projection.bias", "norm.weight", "norm.bias")
            self._patches = [weight(f"0.patches.{part}") for part in parts]
        self._layers = [self._layer(number, weight) for number in range(1, model.layers + 1)]
        last = model.layers + 2
        self._norm = weight(f"{last - 1}.norm.weight")
        self._heads = {
            head: weight(name) for head in ("token", "patch", "score") if (name := _head(last, head)) in names
        }
        exponents = torch.arange(0, self._width, 2, dtype=torch.float32, device=self.device) / self._width
        self._frequencies = 1.0 / model.rope_theta**exponents

    def _layer(self, number: int, weight: Callable[[str], Tensor]) -> _Layer:
        prefix, model = f"{number}.layer.", self.model
        per_group = model.heads // model.kv_heads
        qkv = weight(f"{prefix}self_attention.linear_qkv.weight")
        grouped = qkv.view(model.kv_heads, per_group + 2, self._width, model.hidden)
        parts = (grouped[:, :per_group], grouped[:, per_group], grouped[:, per_group + 1])
        return _Layer(
            weight(f"{prefix}input_layernorm.weight"),
            torch.cat([part.reshape(-1, model.hidden) for part in parts]),
            weight(f"{prefix}self_attention.linear_proj.weight"),
            weight(f"{prefix}pre_mlp_layernorm.weight"),
            weight(f"{prefix}mlp.linear_fc1.weight"),
            weight(f"{prefix}mlp.linear_fc2.weight"),
        )

    def has(self, head: str) -> bool:
        """Whether there is a head ``token``, ``patch`` or ``score``."""
        return head in self._heads

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """int64 [..., n] to [..., n, hidden]."""
        return F.embedding(tokens.to(self.device), self._tokens)

    def embed_patches(self, patches: Tensor) -> Tensor:
        """uint8 [..., n, P * P * C] in row, column, channel order to [..., n, hidden].

        Raises:
            UserError: the model has no patch embedder.
        """
        if self._patches is None:
            raise UserError("this model reads no pixels: it has no patch embedder")
        projection, bias, norm, norm_bias = self._patches
        pixels = patches.to(self.device, self.dtype) / 255
        return F.layer_norm(F.linear(pixels, projection, bias), norm.shape, norm, norm_bias, PATCH_NORM_EPS)

    def head(self, name: str, hidden: Tensor) -> Tensor:
        """``token``: logits [..., vocabulary]; ``patch``: values [..., P * P * C]; ``score``: [..., labels]; fp32.

        Raises:
            UserError: the model has no such head.
        """
        if name not in self._heads:
            raise UserError(f"this model has no {name} head; it has {', '.join(self._heads) or 'none'}")
        return F.linear(hidden, self._heads[name]).float()

    def forward(
        self, embedded: Tensor, position_ids: Tensor, cache: Cache | None = None, content: Tensor | None = None
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            embedded: [b, s, hidden] from the embedders.
            position_ids: integers [b, s].
            cache: holds the positions before these, and takes these.
            content: bool [b, s], False at padding, where there is no cache; None where there is none. A cache knows of
                its padding itself.

        Returns:
            [b, s, hidden]; meaningless at padding.
        """
        length = embedded.shape[1]
        before = 0 if cache is None else cache.length
        if cache is not None and cache.content is not None:
            content = cache.content[:, : before + length]
        mask = _mask(length, before, content, self.device)
        angles = position_ids.to(self.device)[..., None].float() * self._frequencies
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # [b, 1, s, d]
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        hidden = embedded
        for number, layer in enumerate(self._layers):
            normed = F.rms_norm(hidden, layer.norm.shape, layer.norm, self.model.norm_eps)
            hidden = hidden + self._attend(number, layer, normed, cos, sin, mask, cache)
            normed = F.rms_norm(hidden, layer.mlp_norm.shape, layer.mlp_norm, self.model.norm_eps)
            gate, up = F.linear(normed, layer.gate_up).chunk(2, dim=-1)
            hidden = hidden + F.linear(F.silu(gate) * up, layer.down)
        if cache is not None:
            cache.advance(length)
        return F.rms_norm(hidden, self._norm.shape, self._norm, self.model.norm_eps)

    def _attend(
        self,
        number: int,
        layer: _Layer,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        model, width = self.model, self._width
        batch, length, _ = hidden.shape
        heads = F.linear(hidden, layer.qkv).view(batch, length, -1, width).transpose(1, 2)  # [b, heads, s, d]
        turned, value = heads.split((model.heads + model.kv_heads, model.kv_heads), dim=1)
        turned = turned * cos + _half_turned(turned) * sin
        query, key = turned.split((model.heads, model.kv_heads), dim=1)
        if cache is not None:
            key, value = cache.put(number, key, value)
        if length == 1 and (mask is None or model.heads == model.kv_heads):
            # The queries of a group stand in for positions: keys and values need no copies.
            context = F.scaled_dot_product_attention(
                query.view(batch, model.kv_heads, -1, width), key, value, attn_mask=mask
            ).view(batch, 1, -1)
            return F.linear(context, layer.out)
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and length > 1,
            enable_gqa=model.heads != model.kv_heads,
        )
        return F.linear(context.transpose(1, 2).reshape(batch, length, -1), layer.out)


def _head(last: int, head: str) -> str:
    return f"{last}.heads.{head}.linear.weight"


def _half_turned(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _mask(length: int, before: int, content: Tensor | None, device: torch.device) -> Tensor | None:
    """bool [b or 1, 1, length, before + length], True where a position sees another; None where plain causal attention
    (of several positions without any before them) or none at all (of one position) does the same."""
    if content is None and (length == 1 or before == 0):
        return None
    whole = before + length
    seen = torch.ones(length, whole, dtype=torch.bool, device=device).tril(before)
    if content is None:
        return seen[None, None]
    own = torch.eye(whole, dtype=torch.bool, device=device)[before:]
    # Padding sees itself: softmax over nothing is not a number.
    return ((seen & content.to(device)[:, None, :]) | own)[:, None]
