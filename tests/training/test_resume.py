import dataclasses
from pathlib import Path

import pytest

from megatron_pixel.config import to_dict
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import apply_overrides
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.training.resume import Layout, changes, refuse_changes, refuse_other_layout

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


@pytest.mark.parametrize("name", ["data", "tensor", "pipeline", "zero_stage"])
def test_another_layout_is_refused_in_one_line(name: str) -> None:
    layout = Layout(2, 1, 1, 1)
    refuse_other_layout(dataclasses.asdict(layout), layout, HERE)
    with pytest.raises(UserError, match="written by another layout") as error:
        refuse_other_layout(dataclasses.asdict(layout) | {name: 3}, layout, HERE)
    assert "\n" not in str(error.value)
