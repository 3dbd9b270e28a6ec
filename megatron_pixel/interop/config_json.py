"""``config.json``: the shape of a model as a released checkpoint tells it, read and written."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import megatron_pixel
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig, PairConfig
from megatron_pixel.interop.names import Layout

CONFIG = "config.json"
MODEL_TYPES: dict[str, Layout] = {"ernie-pixel": "released", "llama": "llama"}
EXTRA = "megatron_pixel"
"""Key under which ``config.json`` keeps what Hugging Face's keys have no place for."""
MODELLING = "modeling_ernie_pixel"
IMAGE_WIDTH = 1024
"""Patches of a released image, 16 x 16384 pixels: more than any model reads."""
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden",
    "intermediate_size": "ffn",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "max_position_embeddings": "seq_length",
}
"""Keys of Llama's to ours."""
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "rope_scaling": (None,),
    "pretraining_tp": (1,),
}
"""Keys that may be absent, and the only values that this architecture has."""


@dataclass(frozen=True)
class Described:
    """What ``config.json`` says."""

    layout: Layout
    model: ModelConfig
    pair: PairConfig
    label_names: tuple[str, ...]
    """Of a classifier; () for a pretraining model."""
    tied: bool
    """Whether the token head is the token embedding."""
    extra: dict[str, Any]
    """What this program wrote there itself; empty for others' checkpoints."""


def read_config(folder: Path) -> Described:
    """Read and check ``config.json``.

    Raises:
        UserError: there is none, or the model is another architecture; every key that does not fit is named.
    """
    path = folder / CONFIG
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        kind = told["model_type"]
    except FileNotFoundError:
        raise UserError(f"{folder} is no checkpoint: it has no {CONFIG}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} describes no model: {type(error).__name__} {error}") from None
    if kind not in MODEL_TYPES:
        raise UserError(f"{path}: model_type {kind!r} is none of {', '.join(MODEL_TYPES)}")
    layout = MODEL_TYPES[kind]
    told.setdefault("num_key_value_heads", told.get("num_attention_heads"))
    problems = [f"{key}: not there" for key in _SIZES if told.get(key) is None]
    problems += [
        f"{key}: {told[key]!r}, where only {allowed[0]!r} is possible"
        for key, allowed in _FIXED.items()
        if told.get(key, allowed[0]) not in allowed
    ]
    problems += _rope_problems(told)
    problems += [f"{key}: {told[key]!r} is no size" for key in _SIZES if _no_size(told.get(key))]
    if problems:
        raise UserError("\n  ".join([f"{path} describes a model that does not fit:", *problems]))
    model = _model(told)
    width = told.get("head_dim") or model.hidden // model.heads
    if width * model.heads != model.hidden or model.heads % model.kv_heads:
        raise UserError(
            f"{path}: hidden_size {model.hidden}, {model.heads} heads of {width}, {model.kv_heads} key-value heads do "
            "not divide as they must"
        )
    extra = told.get(EXTRA) or {}
    return Described(
        layout,
        model,
        PairConfig(**extra["pair"]) if "pair" in extra else _pair(layout, model.seq_length),
        _labels(told),
        bool(told.get("tie_word_embeddings", False)),
        extra,
    )


def _no_size(value: Any) -> bool:
    return value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1)


def _rope(told: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings: newer programs keep them together, older ones the base alone."""
    return told.get("rope_parameters") or {"rope_theta": told.get("rope_theta", 10000.0)}


def _rope_problems(told: dict[str, Any]) -> list[str]:
    rope = _rope(told)
    if rope.get("rope_type", "default") != "default":
        return [f"rope_parameters: type {rope['rope_type']!r}, where only 'default' is possible"]
    return [] if isinstance(rope.get("rope_theta"), int | float) else ["rope_theta: not there"]


def _model(told: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        **{ours: told[key] for key, ours in _SIZES.items()},
        patch_size=told.get("patch_size", 16),
        num_channels=told.get("num_channels", 3),
        patch_target="normalised" if told.get("norm_pix_loss", True) else "raw",
        norm_eps=float(told.get("rms_norm_eps", 1e-6)),  # the default of both released classes
        rope_theta=float(_rope(told)["rope_theta"]),
        init_std=float(told.get("initializer_range", 0.02)),
    )


def _pair(layout: Layout, seq_length: int) -> PairConfig:
    """Pair rows of the released code: the image padded to half the row."""
    half = seq_length // 2
    return PairConfig("released" if layout == "released" else "compact", half, seq_length - half)


def _labels(told: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a classifier, () for any other model."""
    if not any("SequenceClassification" in name for name in told.get("architectures") or ()):
        return ()
    names = told.get("id2label")
    if isinstance(names, dict) and names:
        return tuple(str(names[key]) for key in sorted(names, key=int))
    # Hugging Face leaves both keys out where there are two labels, its default.
    return tuple(f"LABEL_{number}" for number in range(told.get("num_labels", 2)))


def config_json(
    layout: Layout,
    model: ModelConfig,
    pair: PairConfig,
    dtype: str,
    special: dict[str, int],
    label_names: tuple[str, ...] | None = None,
    problem_type: str | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``config.json``.

    Args:
        layout: of the checkpoint.
        model: its shape.
        pair: layout of pair rows, kept for whoever reads the checkpoint with this program.
        dtype: ``torch``'s name of the precision, such as ``bfloat16``.
        special: ``bos_token_id`` and ``eos_token_id``; empty without a tokenizer.
        label_names: classes of a classifier; None for a pretraining model.
        problem_type: of a classifier, in Hugging Face's words.
        extra: anything else to keep under ``megatron_pixel``.
    """
    kind = "ForCausalLM" if label_names is None else "ForSequenceClassification"
    content: dict[str, Any] = {
        "architectures": [("ErniePixel" if layout == "released" else "Llama") + kind],
        "model_type": next(kind for kind, found in MODEL_TYPES.items() if found == layout),
    }
    if layout == "released":
        content["auto_map"] = {
            "AutoConfig": f"{MODELLING}.ErniePixelConfig",
            "AutoModel": f"{MODELLING}.ErniePixelModel",
            "AutoModelForCausalLM": f"{MODELLING}.ErniePixelForCausalLM",
            "AutoModelForSequenceClassification": f"{MODELLING}.ErniePixelForSequenceClassification",
        }
    content |= {key: getattr(model, ours) for key, ours in _SIZES.items()}
    content |= {
        "hidden_act": "silu",
        "initializer_range": model.init_std,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "torch_dtype": dtype,
        "bos_token_id": special.get("bos_token_id"),
        "eos_token_id": special.get("eos_token_id"),
        "pad_token_id": None,
    }
    if layout == "released":
        content |= {
            "image_size": [model.patch_size, model.patch_size * IMAGE_WIDTH],
            "patch_size": model.patch_size,
            "num_channels": model.num_channels,
            "norm_pix_loss": model.patch_target == "normalised",
        }
    if label_names is not None:
        content["id2label"] = {str(number): name for number, name in enumerate(label_names)}
        content["label2id"] = {name: number for number, name in enumerate(label_names)}
        content["problem_type"] = problem_type
    content[EXTRA] = {
        "version": megatron_pixel.__version__,
        "pair": {"layout": pair.layout, "patches": pair.patches, "tokens": pair.tokens},
        **(extra or {}),
    }
    return content
