from itertools import pairwise, product
from pathlib import Path

import pytest

from megatron_pixel.config.loader import load_config
from megatron_pixel.parallel.cut import boundaries, costs_at_the_ends, cut
from megatron_pixel.planning.devices import find_device
from megatron_pixel.planning.setting import Setting
from megatron_pixel.planning.speed import products, speed

RECIPE = Path(__file__).parents[2] / "megatron_pixel" / "config" / "recipes" / "dualgpt.yaml"


@pytest.mark.parametrize(
    ("layers", "pipeline", "expected"),
    [
        (4, 1, [0, 7]),
        (4, 2, [0, 3, 7]),
        (5, 2, [0, 4, 8]),
        (24, 4, [0, 7, 13, 19, 27]),
        (10, 4, [0, 4, 7, 9, 13]),
        (3, 3, [0, 2, 3, 6]),
    ],
)
def test_layers_are_shared_out_evenly(layers: int, pipeline: int, expected: list[int]) -> None:
    assert cut(layers, pipeline) == expected


@pytest.mark.parametrize(
    ("layers", "pipeline", "first", "last"), [(7, 3, 0.3, 1.4), (6, 4, 0.0, 2.8), (8, 2, 0.1, 5.0)]
)
def test_no_other_cut_has_a_cheaper_most_costly_rank(layers: int, pipeline: int, first: float, last: float) -> None:
    def worst(counts: list[int]) -> float:
        return max(count + first * (i == 0) + last * (i == pipeline - 1) for i, count in enumerate(counts))

    found = cut(layers, pipeline, first, last)
    counts = [b - a for a, b in pairwise(found)]
    counts[0] -= 1
    counts[-1] -= 2
    assert sum(counts) == layers
    others = product(range(1, layers + 1), repeat=pipeline)
    assert worst(counts) == min(worst(list(other)) for other in others if sum(other) == layers)


def test_a_cut_by_cost_gives_the_heads_fewer_layers_and_takes_less_time() -> None:
    words = ["--parallel.pipeline", "4"]
    even, costly = (load_config(RECIPE, [*words, "--parallel.pipeline_cut", by]) for by in ("layers", "cost"))
    assert boundaries(even) == [0, 7, 13, 19, 27]
    assert boundaries(costly) == [0, 7, 14, 20, 27]
    # At 64,000 the heads are more than a layer also by the time that their products take, which run at full rate.
    words += ["--model.vocab_size", "64000"]
    even, costly = (load_config(RECIPE, [*words, "--parallel.pipeline_cut", by]) for by in ("layers", "cost"))
    times = [speed(Setting.of(config, 32, 8), find_device("a100")).seconds for config in (even, costly)]
    assert times[1] < 0.95 * times[0]


def test_the_costs_are_those_of_the_plan() -> None:
    """Counted there operation by operation: of a model of one layer, and of the layer alone."""
    config = load_config(RECIPE, ["--model.layers", "1"])
    setting = Setting.of(config, 1, 1)
    whole = sum(products(setting, 0, kind, setting.full_targets[kind]) for kind in setting.kinds)
    model = config.model
    h = model.hidden
    weights = 3 * h * h + 3 * h * model.ffn + h * model.seq_length
    layer = 6 * weights * setting.positions * len(setting.kinds)
    assert sum(costs_at_the_ends(config)) == pytest.approx(whole / layer - 1, rel=0.01)
