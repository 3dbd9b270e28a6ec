# Copyright the megatron_pixel contributors. Licensed under the Apache License, Version 2.0.
"""The decoder that reads patches and tokens, for ``transformers`` (``trust_remote_code=True``). Needs nothing else.

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
    model(input_ids=tokens).logits                            # next token, [b, n, vocabulary]
    model(pixel_values=strip).logits_pixel                    # next patch, [b, n, P * P * C]
    model(pixel_values=strip, input_ids=tokens, attention_mask=mask)   # a pair: image first, then text

A strip is a float tensor [b, C, P, P * n] of pixels / 255. A patch is flattened in row, column, channel order. Where
``config.norm_pix_loss`` is true, predicted patches are ``(x - mean) / sqrt(var + 1e-6)`` of the next patch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, LlamaConfig, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, ModelOutput, SequenceClassifierOutputWithPast


class ErniePixelConfig(LlamaConfig):
    """Llama's settings and those of the patches."""

    model_type = "ernie-pixel"

    def __init__(
        self,
        image_size: Sequence[int] = (16, 16384),
        patch_size: int = 16,
        num_channels: int = 3,
        norm_pix_loss: bool = True,
        **kwargs: Any,
    ) -> None:
        self.image_size = list(image_size)
        self.patch_size = patch_size
        self.num_channels = num_channels
        self.norm_pix_loss = norm_pix_loss
        super().__init__(**kwargs)


class PatchEmbeddings(nn.Module):
    """[b, C, P, P * n] to [b, n, hidden]."""

    def __init__(self, config: ErniePixelConfig) -> None:
        super().__init__()
        size = config.patch_size
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=size, stride=size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-5)

    def forward(self, pixel_values: Tensor) -> Tensor:
        projected = self.projection(pixel_values.to(self.projection.weight.dtype))
        return self.norm(projected.flatten(2).transpose(1, 2))


class PixelEmbedding(nn.Module):
    """Keeps the released names of the weights."""

    def __init__(self, config: ErniePixelConfig) -> None:
        super().__init__()
        self.patch_embeddings = PatchEmbeddings(config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.patch_embeddings(pixel_values)


class ErniePixelPreTrainedModel(LlamaPreTrainedModel):
    """Shared settings of the models below."""

    config_class = ErniePixelConfig


class ErniePixelModel(LlamaModel):
    """Llama's decoder with a second embedder."""

    config_class = ErniePixelConfig

    def __init__(self, config: ErniePixelConfig) -> None:
        super().__init__(config)
        self.embed_patches = PixelEmbedding(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """``attention_mask`` [b, n] covers image and text; positions run on over padding, as in training."""
        if inputs_embeds is None:
            parts = []
            if pixel_values is not None:
                parts.append(self.embed_patches(pixel_values))
            if input_ids is not None:
                parts.append(self.embed_tokens(input_ids))
            if not parts:
                raise ValueError("give input_ids, pixel_values or both")
            inputs_embeds = torch.cat(parts, dim=1)
        return super().forward(inputs_embeds=inputs_embeds, attention_mask=attention_mask, **kwargs)


def carried(outputs: BaseModelOutputWithPast) -> dict[str, Any]:
    """What the decoder's output hands on to the output of a head."""
    return {name: getattr(outputs, name) for name in ("past_key_values", "hidden_states", "attentions")}


@dataclass
class ErniePixelCausalLMOutputWithPast(ModelOutput):
    """``logits`` are those of the tokens where there are tokens, else the predicted patches."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    logits_token: Tensor | None = None
    logits_pixel: Tensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple | None = None
    attentions: tuple | None = None


class ErniePixelForCausalLM(ErniePixelPreTrainedModel, GenerationMixin):
    """Two heads: the next token, and the next patch."""

    def __init__(self, config: ErniePixelConfig) -> None:
        super().__init__(config)
        self.model = ErniePixelModel(config)
        self.lm_token_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_pixel_head = nn.Linear(config.hidden_size, config.patch_size**2 * config.num_channels, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_token_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.lm_token_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **kwargs: Any,
    ) -> ErniePixelCausalLMOutputWithPast:
        """``labels`` [b, n], -100 where nothing is to be learnt, give the loss of the next token."""
        outputs = self.model(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
        hidden = outputs.last_hidden_state
        patches = 0 if pixel_values is None else pixel_values.shape[-1] // self.config.patch_size
        logits_pixel = self.lm_pixel_head(hidden[:, :patches]).float() if patches else None
        logits_token = loss = None
        if patches < hidden.shape[1]:
            text = hidden[:, patches:]
            logits_token = self.lm_token_head(text[:, -logits_to_keep:] if logits_to_keep else text).float()
        if labels is not None and logits_token is not None:
            loss = nn.functional.cross_entropy(logits_token[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return ErniePixelCausalLMOutputWithPast(
            loss=loss,
            logits=logits_token if logits_token is not None else logits_pixel,
            logits_token=logits_token,
            logits_pixel=logits_pixel,
            **carried(outputs),
        )


class ErniePixelForSequenceClassification(ErniePixelPreTrainedModel):
    """A linear head on the last real position: the end patch of a page, or the last token."""

    def __init__(self, config: ErniePixelConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = ErniePixelModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """``labels``: class numbers [b], or values [b] where there is one label."""
        outputs = self.model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask, **kwargs)
        hidden = outputs.last_hidden_state
        last = torch.full((len(hidden),), hidden.shape[1] - 1, device=hidden.device)
        if attention_mask is not None:
            numbers = torch.arange(hidden.shape[1], device=hidden.device)
            last = (attention_mask.to(hidden.device) * numbers).argmax(-1)
        logits = self.score(hidden[torch.arange(len(hidden), device=hidden.device), last]).float()
        loss = None
        if labels is not None and self.num_labels == 1:
            loss = nn.functional.mse_loss(logits.squeeze(-1), labels.float())
        elif labels is not None:
            loss = nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            **carried(outputs),
        )
