"""The released architecture written out in plain torch, head by head: an oracle that shares no code with the package.

Weights are those of a folder in the released layout, under their released names.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

Weights = dict[str, Tensor]


class Plain:
    """A folder, read with the ``safetensors`` package."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights: Weights = {}
        for path in sorted(folder.glob("*.safetensors")):
            self.weights |= {name: tensor.float() for name, tensor in load_file(path).items()}

    def patches(self, strip: Tensor) -> Tensor:
        """[n, hidden] of a strip [C, P, P * n] of pixels / 255."""
        prefix = "model.embed_patches.patch_embeddings."
        kernel, bias = self.weights[prefix + "projection.weight"], self.weights[prefix + "projection.bias"]
        rows = F.conv2d(strip[None], kernel, bias, stride=kernel.shape[-1])[0, :, 0].T
        mean, variance = rows.mean(-1, keepdim=True), rows.var(-1, unbiased=False, keepdim=True)
        normed = (rows - mean) / torch.sqrt(variance + 1e-5)
        return normed * self.weights[prefix + "norm.weight"] + self.weights[prefix + "norm.bias"]

    def tokens(self, ids: Tensor) -> Tensor:
        """[n, hidden]."""
        return self.weights["model.embed_tokens.weight"][ids]

    def hidden(self, embedded: Tensor, positions: Tensor, content: Tensor) -> Tensor:
        """States after the final norm of one row.

        Args:
            embedded: [n, hidden].
            positions: integers [n].
            content: bool [n], False at padding.
        """
        heads, groups = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        width = self.config["hidden_size"] // heads
        n = len(embedded)
        allowed = torch.tensor([[j <= i and (bool(content[j]) or i == j) for j in range(n)] for i in range(n)])
        state = embedded
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}."
            normed = self._norm(state, name + "input_layernorm.weight")
            query, key, value = (normed @ self.weights[f"{name}self_attn.{part}_proj.weight"].T for part in "qkv")
            outputs = []
            for head in range(heads):
                group = head // (heads // groups)
                q = self._turned(query[:, head * width : (head + 1) * width], positions)
                k = self._turned(key[:, group * width : (group + 1) * width], positions)
                scores = (q @ k.T / math.sqrt(width)).masked_fill(~allowed, -math.inf)
                outputs.append(scores.softmax(-1) @ value[:, group * width : (group + 1) * width])
            state = state + torch.cat(outputs, -1) @ self.weights[name + "self_attn.o_proj.weight"].T
            normed = self._norm(state, name + "post_attention_layernorm.weight")
            gate = normed @ self.weights[name + "mlp.gate_proj.weight"].T
            up = normed @ self.weights[name + "mlp.up_proj.weight"].T
            state = state + (gate * torch.sigmoid(gate) * up) @ self.weights[name + "mlp.down_proj.weight"].T
        return self._norm(state, "model.norm.weight")

    def head(self, name: str, hidden: Tensor) -> Tensor:
        """``lm_token_head``, ``lm_pixel_head``, ``lm_head`` or ``score``."""
        return hidden @ self.weights[f"{name}.weight"].T

    def _norm(self, state: Tensor, name: str) -> Tensor:
        return (
            state / torch.sqrt(state.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]) * self.weights[name]
        )

    def _turned(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Rotary positions: value i of the first half and of the second one are a pair."""
        half = rows.shape[1] // 2
        turned = torch.empty_like(rows)
        for i in range(half):
            angle = positions.double() * self.config["rope_theta"] ** (-i / half)
            cos, sin = angle.cos().float(), angle.sin().float()
            turned[:, i] = rows[:, i] * cos - rows[:, i + half] * sin
            turned[:, i + half] = rows[:, i + half] * cos + rows[:, i] * sin
        return turned
