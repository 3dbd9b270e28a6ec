"""What ZeRO 3 gathers, in cases that can be told by hand; runs are compared in test_measured.py."""

import dataclasses
from pathlib import Path

import pytest

from megatron_pixel.config.loader import load_config
from megatron_pixel.planning.gathering import gathered_in_a_step
from megatron_pixel.planning.setting import Setting, Zero

RECIPES = Path(__file__).parents[2] / "megatron_pixel" / "config" / "recipes"


def setting(system: str, devices: int = 32, **zero: int) -> Setting:
    found = Setting.of(
        load_config(RECIPES / f"{system}.yaml", ["--deepspeed_config", "ds_configs/zero3.json"]), devices, 8
    )
    changed: Zero = dataclasses.replace(found.zero, **zero)
    return dataclasses.replace(found, zero=changed)


def large(of: Setting, at_most: int) -> int:
    """Values of the parameters that are not kept, padded."""
    sizes = (parameter.numel for parameter in of.parameters)
    return sum(-(-size // of.data) * of.data for size in sizes if size > at_most)


def test_a_model_within_the_reuse_distance_is_gathered_once_a_micro_batch() -> None:
    """Small parameters stay, and come once a step from the optimizer."""
    of = setting("textgpt")
    once, small = large(of, 10**5), large(of, 0) - large(of, 10**5)
    assert gathered_in_a_step(of).values == len(of.kinds) * once + small
    assert gathered_in_a_step(of).most == sum(parameter.numel for parameter in of.parameters)


def test_without_reuse_every_layer_is_gathered_forward_and_backward() -> None:
    of = setting("textgpt", max_reuse=0, persistent=0, prefetch=0)
    # The heads too, although they are wanted again at once: at 0 DeepSpeed does not look at all.
    assert gathered_in_a_step(of).values == 2 * len(of.kinds) * large(of, 0)
    assert gathered_in_a_step(of).most < 0.2 * large(of, 0)


def test_mixtures_make_deepspeed_forget_the_order() -> None:
    """Each change between kinds costs it a pass without looking ahead, in which everything is gathered twice."""
    of = setting("dualgpt")
    rounds = gathered_in_a_step(of).values / large(of, 0) / len(of.kinds)
    assert 1.5 < rounds < 2


@pytest.mark.parametrize("system", ["textgpt", "dualgpt"])
def test_one_rank_gathers_nothing(system: str) -> None:
    of = setting(system, devices=1)
    assert gathered_in_a_step(of).values == 0
