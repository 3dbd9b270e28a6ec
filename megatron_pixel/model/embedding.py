"""The first stage: patches and tokens become hidden states of one width."""

import torch
from megatron.core.tensor_parallel import VocabParallelEmbedding, scatter_to_sequence_parallel_region
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor, nn

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.rows import Kind, Modality
from megatron_pixel.model.batch import Header, ModelInputs, Travelling
from megatron_pixel.model.seeding import stage_seed


class PatchEmbedder(nn.Module):
    """Linear projection of the pixels of a patch, then LayerNorm.

    With patches flattened in row, column, channel order the projection equals a ``Conv2d`` whose kernel and stride are
    the patch size; its weight is the kernel permuted from [h, C, P, P] to [h, P, P, C]. Initialized xavier-uniform over
    the flattened kernel, as in the released model, with a zero bias.
    """

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        self.projection = nn.Linear(model.patch_size**2 * model.num_channels, model.hidden)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.norm = nn.LayerNorm(model.hidden, eps=1e-5)

    def forward(self, patches: Tensor) -> Tensor:
        """uint8 [..., d] to [..., h] in the dtype of the weights; pixels enter as value / 255."""
        # 0..255 are exact in bfloat16, so dividing after the cast rounds once, as dividing in fp32 would.
        pixels = patches.to(self.projection.weight.dtype).div_(255)
        return self.norm(self.projection(pixels))


class Embedding(nn.Module):
    """Reads :class:`ModelInputs`, hands on :class:`Travelling`. Rows of one kind touch only the embedder they need."""

    def __init__(
        self, model: ModelConfig, transformer: TransformerConfig, seed: int, stage: int, touch_all: bool
    ) -> None:
        super().__init__()
        self.touch_all = touch_all
        self.scatters = transformer.sequence_parallel
        with stage_seed(seed, stage):
            self.tokens = VocabParallelEmbedding(
                model.vocab_size, model.hidden, init_method=transformer.init_method, config=transformer
            )
            self.patches = PatchEmbedder(model)

    def forward(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        batch = ModelInputs(*inputs)
        kind = Header.read(batch.header).kind
        if kind == Kind.TEXT:
            embedded = self.tokens(batch.tokens)
        elif kind == Kind.PIXEL:
            embedded = self.patches(batch.patches)
        else:
            is_patch = (batch.modality == Modality.PATCH).unsqueeze(-1)
            embedded = torch.where(is_patch, self.patches(batch.patches), self.tokens(batch.tokens))
        if self.touch_all and kind != Kind.PAIR:
            embedded = embedded + 0 * self._left_out(kind, batch.tokens)
        hidden = embedded.transpose(0, 1).contiguous()  # [b, s, h] -> [s, b, h]
        if self.scatters:
            hidden = scatter_to_sequence_parallel_region(hidden)  # [s / tensor_parallel, b, h]
        tokens = batch.tokens.int()
        return tuple(Travelling(hidden, tokens, batch.position_ids, batch.segment_ids, batch.targets, batch.header))

    def _left_out(self, kind: Kind, tokens: Tensor) -> Tensor:
        """One position, [1, 1, h], through the embedder that rows of this kind leave out.

        ZeRO 3 gathers and reduces a parameter when the module that owns it runs; where it does not run, gradients go
        wrong without a word.
        """
        if kind == Kind.TEXT:
            return self.patches(tokens.new_zeros(1, 1, self.patches.projection.in_features, dtype=torch.uint8))
        return self.tokens(tokens.new_zeros(1, 1))
