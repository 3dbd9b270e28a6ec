"""What compiled layers do not go with is said before anything is built."""

from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import load_config
from megatron_pixel.parallel.layout import check_layout

RECIPE = Path(__file__).resolve().parents[2] / "megatron_pixel" / "config" / "recipes" / "dualgpt-debug.yaml"
COMPILED = "--training.compile=layers"


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("--data.packing=documents", "each number of documents would be compiled anew"),
        (
            "--parallel.tensor=2",
            "parallel.tensor is 2: torch.compile does not take the sums over",
        ),
    ],
)
def test_settings_that_layers_are_not_compiled_under(word: str, reason: str) -> None:
    load_config(RECIPE, [word])
    with pytest.raises(UserError, match=f"training.compile: layers, but .*{reason}.*set training.compile none"):
        load_config(RECIPE, [word, COMPILED])


def test_zero_3_is_refused() -> None:
    check_layout(load_config(RECIPE, [COMPILED, "--deepspeed_config=ds_configs/zero2.json"]), 1)
    config = load_config(RECIPE, [COMPILED, "--deepspeed_config=ds_configs/zero3.json"])
    with pytest.raises(UserError, match=r"zero3\.json:\d+: .*stage is 3, but training\.compile is layers"):
        check_layout(config, 1)
