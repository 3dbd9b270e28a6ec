"""The shape of a model in Hugging Face's terms, for the benchmarks and tests that compare with its Llama."""

from typing import TYPE_CHECKING, Any

from megatron_pixel.config.schema import ModelConfig

if TYPE_CHECKING:
    from transformers import LlamaConfig


def llama_config(model: ModelConfig, **others: Any) -> "LlamaConfig":
    """``LlamaConfig`` of the decoder that ``model`` describes; ``others`` are arguments of its own, and win."""
    from transformers import LlamaConfig

    shape = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": model.seq_length,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**shape, **others})
