from pathlib import Path

import pytest

from megatron_pixel.config import to_dict
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import apply_overrides
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.training.resume import changes, refuse_changes, refuse_other_data

HERE = Path("runs/x/checkpoints/step-00000003")
SAVED = to_dict(RunConfig())


def changed(*words: str) -> RunConfig:
    return apply_overrides(RunConfig, "", words)


@pytest.mark.parametrize(
    "words",
    [
        ("--parallel.tensor", "2"),
        ("--deepspeed_config", "ds_configs/zero2.json"),
        ("--training.micro_batch_rows", "4"),
        ("--training.stop_after", "5"),
        ("--checkpoint.every", "7"),
        ("--checkpoint.milestones", "1", "2"),
        ("--logging.every", "2"),
        ("--evaluation.rows", "3"),
        ("--run.dir", "elsewhere"),
        ("--data.prefetch", "9"),
    ],
)
def test_free_to_change(words: tuple[str, ...]) -> None:
    assert refuse_changes(SAVED, changed(*words), HERE) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.hidden", "2048"),
        ("data.mixture", "1:1:0"),
        ("data.text", "a"),
        ("pair.tokens", "256"),
        ("loss.end_patch", "false"),
        ("optimizer.lr", "1e-3"),
        ("training.seed", "5"),
        ("training.steps", "20000"),
        ("training.global_batch_rows", "8192"),
        ("training.precision", "fp32"),
    ],
)
def test_refused_unless_allowed_by_name(name: str, value: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_changes(SAVED, changed(f"--{name}", value), HERE)
    assert f"--checkpoint.allow_changes {name}" in str(error.value)
    assert "in the checkpoint" in str(error.value)
    (line,) = refuse_changes(SAVED, changed(f"--{name}", value, "--checkpoint.allow_changes", name), HERE)
    assert line.startswith(f"{name}: ")
    section = name.partition(".")[0]
    assert refuse_changes(SAVED, changed(f"--{name}", value, "--checkpoint.allow_changes", section), HERE) == [line]


def test_all_refused_changes_are_listed_with_both_values() -> None:
    config = changed(
        "--optimizer.lr", "1e-3", "--training.seed", "5", "--model.ffn", "8", "--checkpoint.allow_changes", "model"
    )
    with pytest.raises(UserError) as error:
        refuse_changes(SAVED, config, HERE)
    assert "optimizer.lr: 0.0005 in the checkpoint, 0.001 now" in str(error.value)
    assert "training.seed: 1234 in the checkpoint, 5 now" in str(error.value)
    assert "model.ffn" not in str(error.value)


def test_a_setting_that_the_checkpoint_does_not_know_had_its_default() -> None:
    old = to_dict(RunConfig())
    del old["optimizer"]["schedule"]
    old["optimizer"]["gone_since"] = None
    assert changes(old, RunConfig()) == []
    assert changes(old, changed("--optimizer.schedule", "cosine")) == [("optimizer.schedule", "linear", "cosine")]


FACTS = {
    "data.text[0]": {"tokenizer": "a.model (sha256 00)"},
    "data.pixels[0]": {"fonts": ["Sans.ttf (sha256 11)"], "dpi": 120},
}


def test_the_same_data_pass() -> None:
    assert refuse_other_data(FACTS, FACTS, [], HERE) == []
    assert refuse_other_data({}, FACTS, [], HERE) == [], "a checkpoint of made-up rows knows of no datasets"


def test_another_tokenizer_or_font_is_named_and_refused() -> None:
    other = {
        "data.text[0]": {"tokenizer": "b.model (sha256 22)"},
        "data.pixels[0]": {"fonts": ["Sans.ttf (sha256 33)"], "dpi": 120},
    }
    with pytest.raises(UserError) as error:
        refuse_other_data(FACTS, other, ["data.text", "data"], HERE)
    said = str(error.value)
    assert "data.text[0] tokenizer: a.model (sha256 00) in the checkpoint, b.model (sha256 22) now" in said
    assert "data.pixels[0] fonts: ['Sans.ttf (sha256 11)'] in the checkpoint, ['Sans.ttf (sha256 33)'] now" in said
    assert "dpi" not in said
    assert said.endswith("--checkpoint.allow_changes data.pixels.fonts data.text.tokenizer")
    lines = refuse_other_data(FACTS, other, ["data.pixels.fonts", "data.text.tokenizer"], HERE)
    assert len(lines) == 2
