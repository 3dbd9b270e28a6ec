"""The attention weights of one decoder layer, taken while rows pass through it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor, nn

from megatron_pixel.model.layers import DecoderLayer
from megatron_pixel.parallel.mesh import Mesh


class AttentionProbe:
    """Attention of a layer over the first rows that pass, mean over its heads, in any layout.

    Core attention computes no weights that could be looked at; they are computed anew from its queries and keys.

    Args:
        model: this rank's stages.
        layer: number of the decoder layer, counted from 1.
        rows: how many rows to look at.
        mesh: where this process stands.
    """

    def __init__(self, model: nn.Module, layer: int, rows: int, mesh: Mesh) -> None:
        found = (module for module in model.modules() if isinstance(module, DecoderLayer))
        self._layer: Any = next((module for module in found if module.layer.layer_number == layer), None)
        self._left, self._mesh = rows, mesh
        self._maps: list[Tensor] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While rows pass whose attention is wanted."""
        if self._layer is None or self._mesh.data_rank != 0:
            yield
            return
        core = self._layer.layer.self_attention.core_attention
        handle = core.register_forward_pre_hook(self._look)
        try:
            yield
        finally:
            handle.remove()

    def maps(self) -> list[np.ndarray]:
        """float16 [s, s] of each row, on the ranks of data-parallel rank 0, in a pipeline on all ranks; collective."""
        if self._maps and self._mesh.tensor_size > 1:
            stacked = torch.stack(self._maps)
            dist.all_reduce(stacked, group=parallel_state.get_tensor_model_parallel_group())
            self._maps = list(stacked / self._mesh.tensor_size)
        found = [weights.to(torch.float16).cpu().numpy() for weights in self._maps]
        if self._mesh.pipe_size > 1:
            found = [weights for part in self._mesh.gather(found) for weights in part]
        return found

    @torch.no_grad()
    def _look(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        query, key, _, mask = arguments[:4]
        for row in range(min(self._left, query.shape[1])):
            self._maps.append(attention_weights(query[:, row], key[:, row], None if mask is None else mask[row, 0]))
        self._left = max(0, self._left - query.shape[1])


def attention_weights(query: Tensor, key: Tensor, hidden: Tensor | None) -> Tensor:
    """What each position looks at, float32 [s, s], mean over heads.

    Args:
        query: [s, heads, d].
        key: [s, groups, d]; heads share those of their group.
        hidden: bool [s, s], True where a position does not see another; None for causal attention.
    """
    s, heads, width = query.shape
    groups = key.shape[1]
    if hidden is None:
        hidden = torch.ones(s, s, dtype=torch.bool, device=query.device).triu(1)
    total = torch.zeros(s, s, device=query.device)
    for head in range(heads):  # one at a time: a long row has a million weights a head
        scores = query[:, head].float() @ key[:, head * groups // heads].float().T / width**0.5
        total += scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return total / heads
