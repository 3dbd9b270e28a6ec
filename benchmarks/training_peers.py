"""The peers of ``training.py``: other implementations of the same model, trained on the same rows by the same engine.

Each gets what a careful user would give it: labels shifted beforehand, rows and positions of targets worked out on the
host, no mask where plain causal attention does the same, no cache, and the optimizer, precision and DeepSpeed settings
of our run, from the same functions.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.llama_config import llama_config
from benchmarks.training_run import accumulate, rows_of
from megatron_pixel.config.schema import ModelConfig, RunConfig
from megatron_pixel.data.mixture import MixtureReader
from megatron_pixel.data.rows import Kind, MicroBatch, target_masks
from megatron_pixel.parallel.clock import Clock
from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile
from megatron_pixel.parallel.engine import build_engine, merged_config
from megatron_pixel.parallel.mesh import Mesh

IGNORED = -100
"""Label of a position that predicts nothing, as PyTorch's cross entropy has it."""


class PeerModel(nn.Module, ABC):
    """A model whose ``forward`` gives the loss of a micro-batch."""

    kinds: tuple[str, ...]
    """Measurements that it can take part in."""

    @abstractmethod
    def inputs(self, rows: MicroBatch, end_patch: bool) -> dict[str, Tensor]:
        """Arguments of ``forward``: tensors on the host."""


class HuggingFace(PeerModel):
    """``LlamaForCausalLM`` with SDPA attention.

    Text rows are its own ``forward`` with labels. For rows with patches it gets what the paper's released model adds to
    it: a linear projection of the pixels with LayerNorm in front of the same decoder, and a linear head at the patches.
    """

    kinds = ("text", "pixel", "pair", "mix")

    def __init__(self, model: ModelConfig) -> None:
        from transformers import LlamaForCausalLM

        super().__init__()
        values = model.patch_size**2 * model.num_channels
        self.llama = LlamaForCausalLM(llama_config(model, use_cache=False, attn_implementation="sdpa"))
        self.projection = nn.Linear(values, model.hidden)
        self.norm = nn.LayerNorm(model.hidden, eps=1e-5)
        self.pixel_head = nn.Linear(model.hidden, values, bias=False)

    def inputs(self, rows: MicroBatch, end_patch: bool) -> dict[str, Tensor]:
        tokens, patches = target_masks(rows.modality, rows.segment_ids, end_patch)
        found: dict[str, Tensor] = {}
        if rows.kind == Kind.TEXT:
            following = np.full_like(rows.tokens, IGNORED)
            following[:, :-1] = np.where(tokens[:, :-1], rows.tokens[:, 1:], IGNORED)
            return {"tokens": torch.from_numpy(rows.tokens), "labels": torch.from_numpy(following)}
        found["patches"] = torch.from_numpy(rows.patches)
        found["patch_places"] = torch.from_numpy(np.flatnonzero(patches))
        if rows.kind == Kind.PAIR:
            found["tokens"] = torch.from_numpy(rows.tokens)
            found["is_patch"] = torch.from_numpy(rows.modality == 2)
            found["token_places"] = torch.from_numpy(np.flatnonzero(tokens))
        return found

    def forward(
        self,
        tokens: Tensor | None = None,
        labels: Tensor | None = None,
        patches: Tensor | None = None,
        patch_places: Tensor | None = None,
        is_patch: Tensor | None = None,
        token_places: Tensor | None = None,
    ) -> Tensor:
        if labels is not None:
            # The argument `labels` only switches the loss on; `shift_labels` are those that it takes.
            return self.llama(input_ids=tokens, labels=labels, shift_labels=labels).loss
        assert patches is not None
        assert patch_places is not None
        embedded = self.norm(self.projection(patches.to(self.projection.weight.dtype).div_(255)))
        if is_patch is not None:
            embedded = torch.where(is_patch.unsqueeze(-1), embedded, self.llama.model.embed_tokens(tokens))
        hidden = self.llama.model(inputs_embeds=embedded).last_hidden_state.flatten(0, 1)
        pixels = patches.flatten(0, 1).index_select(0, patch_places + 1).float() / 255
        variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
        predicted = self.pixel_head(hidden.index_select(0, patch_places)).float()
        loss = F.mse_loss(predicted, (pixels - mean) / (variance + 1e-6).sqrt())
        if tokens is not None and token_places is not None:
            logits = self.llama.lm_head(hidden.index_select(0, token_places)).float()
            loss = loss + F.cross_entropy(logits, tokens.flatten().index_select(0, token_places + 1))
        return loss


class MegatronCore(PeerModel):
    """megatron-core's ``GPTModel`` with its stock local layers; text rows only, as it reads nothing else.

    The fusions that it has without other packages are on: bias and SwiGLU, and cross entropy.
    """

    kinds = ("text",)

    def __init__(self, model: ModelConfig) -> None:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
        from megatron.core.models.gpt.gpt_model import GPTModel
        from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
        from megatron.core.transformer.transformer_config import TransformerConfig

        super().__init__()
        if torch.cuda.is_available():
            model_parallel_cuda_manual_seed(1234)
        config = TransformerConfig(
            num_layers=model.layers,
            hidden_size=model.hidden,
            num_attention_heads=model.heads,
            num_query_groups=model.kv_heads,
            ffn_hidden_size=model.ffn,
            normalization="RMSNorm",
            layernorm_epsilon=model.norm_eps,
            gated_linear_unit=True,
            activation_func=F.silu,
            add_bias_linear=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            use_cpu_initialization=True,
            bias_activation_fusion=True,
            cross_entropy_loss_fusion=True,
            cross_entropy_fusion_impl="native",
            masked_softmax_fusion=False,
            apply_rope_fusion=False,
            gradient_accumulation_fusion=False,
        )
        self.gpt = GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            model.vocab_size,
            model.seq_length,
            share_embeddings_and_output_weights=False,
            position_embedding_type="rope",
            rotary_base=int(model.rope_theta),
        )

    def inputs(self, rows: MicroBatch, end_patch: bool) -> dict[str, Tensor]:
        tokens, _ = target_masks(rows.modality, rows.segment_ids, end_patch)
        following = np.zeros_like(rows.tokens)
        following[:, :-1] = rows.tokens[:, 1:]
        return {
            "tokens": torch.from_numpy(rows.tokens),
            "positions": torch.from_numpy(rows.position_ids.astype(np.int64)),
            "labels": torch.from_numpy(following),
            "counts": torch.from_numpy(tokens.astype(np.float32)),
        }

    def forward(self, tokens: Tensor, positions: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        losses = self.gpt(tokens, positions, None, labels=labels)
        return (losses.float() * counts).sum() / counts.sum()


PEERS: dict[str, type[PeerModel]] = {"hf": HuggingFace, "megatron_core": MegatronCore}


class Peer:
    """Takes steps of a peer's model under DeepSpeed.

    Args:
        network: the model.
        config: of our run.
        readers: of our run, so that step ``n`` has the rows that our step ``n`` has.
        mesh: where this process stands.
    """

    def __init__(self, network: PeerModel, config: RunConfig, readers: Mapping[str, MixtureReader], mesh: Mesh) -> None:
        self.kinds = network.kinds
        self.readers = readers
        self._steps = dict.fromkeys(readers, 0)
        self._batches: list[dict[str, Tensor]] = []
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self._end_patch, self._device = config.loss.end_patch, mesh.device
        file, optimizer = DeepSpeedFile(config.deepspeed_config), config.optimizer
        merged = merged_config(file, config.training, optimizer, 1, cuda=mesh.device.type == "cuda")
        network = network.to(mesh.device)
        self._engine = build_engine(network, merged, optimizer.weight_decay, mesh.mpu)
        self._network = network
        self._clock = Clock(mesh.device)

    def prepare(self, name: str) -> None:
        """Read the rows of the next step of a kind into pinned memory, as a thread would during the step before."""
        self._steps[name] += 1
        cuda = self._device.type == "cuda"
        self._batches = []
        for rows in rows_of(self.readers[name], self._steps[name]):
            inputs = self._network.inputs(rows, self._end_patch)
            self._batches.append({key: value.pin_memory() if cuda else value for key, value in inputs.items()})

    def take(self, name: str) -> dict[str, float]:
        """The step that is prepared; returns the parts of its time, and its loss."""
        accumulate(self._engine, len(self._batches))
        part = self._clock.part
        losses = []
        for batch in self._batches:
            with part("data"):
                inputs = {key: value.to(self._device, non_blocking=True) for key, value in batch.items()}
            with part("forward"):
                loss = self._engine(**inputs)
            with part("backward"):
                self._engine.backward(loss)
            with part("optimizer"):
                self._engine.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())  # waits for the device, as metrics do
        return {**{f"{name}_seconds": value for name, value in self._clock.read().items()}, "loss": mean}
