from pathlib import Path

import pytest

from megatron_pixel.config import ModelConfig, OptimizerConfig, RunConfig, diff, load_config, save_config
from megatron_pixel.config.mixture import parse_mixture, parse_source, rows_per_kind

RECIPES = Path(__file__).parents[2] / "megatron_pixel" / "config" / "recipes"
SYSTEMS = ("textgpt", "pixelgpt", "monogpt", "dualgpt")


def rows(config: RunConfig) -> tuple[int, int, int]:
    return rows_per_kind(parse_mixture(config.data.mixture), config.training.global_batch_rows)


def test_the_twelve_recipes_are_there_and_a_large_one() -> None:
    expected = {f"{system}{size}.yaml" for system in SYSTEMS for size in ("", "-tiny", "-debug")}
    assert {path.name for path in RECIPES.glob("*.yaml")} == expected | {"dualgpt-7b.yaml"}


def test_the_large_recipe_changes_the_shape_and_its_optimizer_only() -> None:
    config = load_config(RECIPES / "dualgpt-7b.yaml")
    changed = diff(load_config(RECIPES / "dualgpt.yaml"), config)
    assert {key.partition(".")[0] for key in changed} == {"run", "model", "parallel", "optimizer"}
    assert rows(config) == (4096, 4096, 2048)


@pytest.mark.parametrize("size", ["", "-tiny", "-debug"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_recipe_loads_and_survives_saving(system: str, size: str, tmp_path: Path) -> None:
    config = load_config(RECIPES / f"{system}{size}.yaml")
    assert config.run.dir == f"runs/{system}{size}"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("size", ["", "-tiny", "-debug"])
@pytest.mark.parametrize(
    ("system", "kinds"),
    [
        ("textgpt", (True, False, False)),
        ("pixelgpt", (False, True, False)),
        ("monogpt", (True, True, False)),
        ("dualgpt", (True, True, True)),
    ],
)
def test_table_10_and_its_data(system: str, kinds: tuple[bool, bool, bool], size: str) -> None:
    config = load_config(RECIPES / f"{system}{size}.yaml")
    assert tuple(count > 0 for count in rows(config)) == kinds
    if not config.data.synthetic:
        assert (bool(config.data.text), bool(config.data.pixels), bool(config.data.pairs)) == kinds


@pytest.mark.parametrize(
    ("system", "per_kind", "steps"),
    [
        ("textgpt", (4096, 0, 0), 10000),
        ("pixelgpt", (0, 4096, 0), 50000),
        ("monogpt", (4096, 4096, 0), 10000),
        ("dualgpt", (4096, 4096, 2048), 9600),
    ],
)
def test_full_recipes_have_the_papers_settings(system: str, per_kind: tuple[int, int, int], steps: int) -> None:
    config = load_config(RECIPES / f"{system}.yaml")
    assert config.model == ModelConfig(
        layers=24, hidden=1024, heads=16, kv_heads=8, ffn=2816, vocab_size=32000, seq_length=1024, patch_size=16,
        num_channels=3, patch_target="normalised", norm_eps=1e-5, rope_theta=10000.0, init_std=0.02,
    )  # fmt: skip
    assert config.optimizer == OptimizerConfig(
        lr=5e-4, min_lr=0.0, warmup_steps=200, schedule="linear", beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0,
        clip_grad=1.0,
    )  # fmt: skip
    assert config.training.precision == "bf16"
    assert rows(config) == per_kind
    assert config.training.steps == steps
    assert all(count % (config.training.micro_batch_rows * 32) == 0 for count in per_kind), "32 data-parallel devices"
    assert max(config.checkpoint.milestones) == steps
    for entries in (config.data.text, config.data.pixels, config.data.pairs):
        assert all(parse_source(entry).prefix.startswith("data/") for entry in entries)


def test_dualgpt_budget_is_the_papers() -> None:
    config = load_config(RECIPES / "dualgpt.yaml")
    million = 10**6
    text, pixel, pair = (4 * million, 4 * million, 2 * million)
    share = config.pair.patches / (config.pair.patches + config.pair.tokens)
    assert config.training.steps * text == 38.4e9
    assert config.training.steps * (pixel + pair * share) == 48e9
    assert config.training.steps * pair * (1 - share) == 9.6e9


@pytest.mark.parametrize("system", SYSTEMS)
def test_debug_recipes_fit_every_layout_of_four_processes(system: str) -> None:
    for size in (1, 2, 4):
        for tensor in (1, 2):
            for pipeline in (1, 2, 4):
                if tensor * pipeline <= size and size % (tensor * pipeline) == 0:
                    words = [f"--parallel.tensor={tensor}", f"--parallel.pipeline={pipeline}"]
                    config = load_config(RECIPES / f"{system}-debug.yaml", words)
                    data_parallel = size // tensor // pipeline
                    assert all(
                        count % (config.training.micro_batch_rows * data_parallel) == 0 for count in rows(config)
                    )


@pytest.mark.parametrize("system", SYSTEMS)
def test_tiny_recipes_fit_two_processes(system: str) -> None:
    config = load_config(RECIPES / f"{system}-tiny.yaml")
    assert all(count % (config.training.micro_batch_rows * 2) == 0 for count in rows(config))


def test_recipes_of_one_size_differ_only_where_the_systems_do() -> None:
    for size in ("", "-tiny", "-debug"):
        text = load_config(RECIPES / f"textgpt{size}.yaml")
        for system in SYSTEMS[1:]:
            changed = {key.partition(".")[0] for key in diff(text, load_config(RECIPES / f"{system}{size}.yaml"))}
            assert changed <= {"run", "data", "training", "checkpoint"}
