"""The modules of the model that ZeRO 3 meets in a pass: it hangs hooks on each, also on those that own no parameters.

Their names are those of ``named_modules()`` of the list of stages.
"""

from collections.abc import Collection

WHOLE = "whole"
"""The list of stages itself, which has no name."""
EMBEDDING = ("tokens", "patches", "patches.projection", "patches.norm")
LAYER = """
    layer layer.input_layernorm
    layer.self_attention layer.self_attention.linear_qkv layer.self_attention.core_attention
    layer.self_attention.linear_proj
    layer.pre_cross_attn_layernorm layer.cross_attention layer.cross_attn_bda
    layer.pre_mlp_layernorm layer.mlp layer.mlp.linear_fc1 layer.mlp.linear_fc2
""".split()
"""Of a decoder layer; cross attention is empty in all of ours, but its modules are there, and are called."""
WITHOUT_BACKWARD = ("layer.cross_attn_bda",)
"""These hand out a function and no tensor, so a backward pass does not come by."""
NORM = ("norm",)
HEADS = ("heads.token", "heads.token.linear", "heads.patch", "heads.patch.linear")
OBJECTIVES = 2
"""Outputs of the last stage, and of the whole: the backward pass meets a module once for each of its outputs."""


def met_in_a_pass(layers: int, recompute: Collection[int]) -> list[str]:
    """Every module that a micro-batch goes through forward and backward, as often as it is met, in no special order.

    Args:
        layers: decoder layers of the model.
        recompute: those that run forward a second time.
    """
    met = [WHOLE] * (1 + OBJECTIVES)
    stages = [EMBEDDING, *([LAYER] * layers), NORM, HEADS]
    for number, names in enumerate(stages):
        met += [f"{number}"] * (1 + (OBJECTIVES if names is HEADS else 1))
        met += [f"{number}.{name}" for name in names]
        met += [f"{number}.{name}" for name in names if name not in WITHOUT_BACKWARD]
    return met + [f"{number}.{name}" for number in recompute for name in LAYER]
