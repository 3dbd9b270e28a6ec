import argparse
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from megatron_pixel.config import (
    RenderingConfig,
    UserError,
    add_dataclass_arguments,
    describe,
    exit_on_user_error,
    from_arguments,
    read_command_line,
)

RECIPES = Path(__file__).parents[2] / "megatron_pixel" / "config" / "recipes"
DEBUG = str(RECIPES / "dualgpt-debug.yaml")


@dataclass
class Inner:
    size: int = 3
    """How large, over
    two lines."""


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    mode: Literal["a", "b"] = "a"
    """100% of it."""
    plain: float | None = None


def test_describe_reads_types_defaults_and_docs() -> None:
    found = {setting.key: (setting.default, setting.doc) for setting in describe(Outer, "top")}
    assert found == {
        "top.inner.size": (3, "How large, over two lines."),
        "top.mode": ("a", "100% of it."),
        "top.plain": (None, ""),
    }


def test_arguments_of_a_dataclass() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--other", type=int)
    add_dataclass_arguments(parser, Outer, "top")
    parsed = parser.parse_args(["--top.inner.size", "4", "--other", "1", "--top.plain=2"])
    assert from_arguments(parsed, Outer, "top") == Outer(Inner(4), "a", 2.0)
    assert "100% of it. (default 'a')" in " ".join(parser.format_help().split())
    with pytest.raises(UserError, match=r"--top\.mode: expected one of a, b, got 'c'"):
        from_arguments(parser.parse_args(["--top.mode", "c"]), Outer, "top")


def test_arguments_of_rendering() -> None:
    parser = argparse.ArgumentParser()
    add_dataclass_arguments(parser, RenderingConfig, "rendering")
    words = ["--rendering.fonts", "a.ttf", "b.ttf", "--rendering.font_size", "null", "--rendering.seq_length", "256"]
    expected = RenderingConfig(fonts=["a.ttf", "b.ttf"], seq_length=256)
    assert from_arguments(parser.parse_args(words), RenderingConfig, "rendering") == expected
    assert from_arguments(parser.parse_args([]), RenderingConfig, "rendering") == RenderingConfig()


def test_settings_may_stand_before_and_after_the_recipe_and_launchers_may_add_a_rank() -> None:
    words = ["--local_rank=1", "--optimizer.lr", "3e-4", "--config", DEBUG, "--checkpoint.milestones", "3", "4"]
    config = read_command_line("Pretrain.", words)
    assert (config.optimizer.lr, config.checkpoint.milestones) == (3e-4, [3, 4])


def test_negative_numbers_are_values() -> None:
    with pytest.raises(UserError, match=r"^command line: optimizer\.lr: -0\.0003 must be above 0$"):
        read_command_line("Pretrain.", ["--optimizer.lr", "-3e-4", "--config", DEBUG])


def test_datasets_must_exist() -> None:
    with pytest.raises(UserError, match=r"data\.pairs: no dataset at data/pairs/c4, data/pairs/pes2o"):
        read_command_line("Pretrain.", ["--config", str(RECIPES / "dualgpt.yaml")])


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        read_command_line("Pretrain a model.", ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Pretrain a model." in text
    assert "--training.precision fp32|bf16" in text
    assert "Key-value heads of grouped-query attention" in text


def test_user_errors_end_a_program_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        read_command_line("Pretrain.", ["--config", DEBUG, "--lr", "1"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: command line: --lr: unknown key (value '1')")


def test_starts_without_the_heavy_libraries() -> None:
    code = "import sys, megatron_pixel.config; sys.exit(bool({'torch', 'deepspeed', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=RECIPES.parents[2]).returncode == 0
