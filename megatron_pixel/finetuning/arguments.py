"""The command line of fine-tuning. Starts without torch, so that mistakes and ``--help`` cost no seconds."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from megatron_pixel.config.command_line import describe, format_settings
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.loader import build, parse_overrides, to_dict
from megatron_pixel.config.source import Origin, read_recipe
from megatron_pixel.config.values import ConfigDumper

DESCRIPTION = """\
Fine-tune a pretrained model on labelled texts and score it.

examples:
  # SST-2 from a folder with GLUE's train.tsv and dev.tsv, reading images of the text
  python megatron_pixel/finetune.py --checkpoint runs/pixelgpt --task sst2 --examples.path data/glue/SST-2 \\
      --modality pixel --run.dir runs/sst2-pixel

  # your own files: one or two text columns and a label, or a number to regress
  python megatron_pixel/finetune.py --checkpoint runs/demo --task custom --modality text \\
      --examples.train train.jsonl --examples.evaluation dev.jsonl --examples.columns question answer

  # the same on the GPUs of a node
  torchrun --nproc-per-node 8 megatron_pixel/finetune.py --checkpoint runs/pixelgpt --task mnli ...

  # with the paper's settings for the task (Tables 12 to 14)
  python megatron_pixel/finetune.py --paper pixelgpt --checkpoint runs/pixelgpt --task sst2 --modality pixel ...

  # many settings side by side: finetune.py search --help

--print-config shows the whole configuration as YAML and ends. docs/finetuning.md has the layouts of all tasks."""

SYSTEMS = ("textgpt", "pixelgpt", "monogpt", "dualgpt")
_AT_LEAST = {
    "examples.limit": 0,
    "examples.evaluation_limit": 0,
    "optimizer.min_lr": 0,
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0,
    "optimizer.clip_grad": 0,
    "training.steps": 1,
    "training.seed": 0,
    "training.global_batch_rows": 1,
    "training.micro_batch_rows": 1,
    "stopping.every": 0,
    "stopping.patience": 0,
}


def parse(words: Sequence[str]) -> FinetuningConfig:
    """The checked settings of the command line; ``--help`` and ``--print-config`` end the program here."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION,
        usage="%(prog)s [--config RECIPE] [--KEY VALUE ...]",
        epilog="settings:\n" + format_settings(describe(FinetuningConfig)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="RECIPE", help="YAML file with settings; the command line goes over it")
    parser.add_argument("--paper", choices=SYSTEMS, help="start from the paper's settings for this system and the task")
    parser.add_argument("--print-config", action="store_true", help="show the configuration and end")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    known, overrides = parser.parse_known_args(words)
    config = load(known.config, overrides, known.paper)
    if known.print_config:
        sys.stdout.write(yaml.dump(to_dict(config), Dumper=ConfigDumper, sort_keys=False, allow_unicode=True))
        raise SystemExit(0)
    return config


def load(
    recipe: str | os.PathLike[str] | None, overrides: Sequence[str] = (), paper: str | None = None
) -> FinetuningConfig:
    """Settings from a recipe and dotted overrides, checked; ``paper`` names the system whose settings stand below them.

    Raises:
        UserError: unknown keys, wrong types, values out of range; all at once.
    """
    origins: dict[str, Origin] = read_recipe(Path(recipe), FinetuningConfig) if recipe else {}
    origins.update(parse_overrides(overrides, FinetuningConfig))
    if paper:
        from megatron_pixel.finetuning.grid import paper_settings

        asked = build(FinetuningConfig, origins)
        best, where = paper_settings(paper, asked.task, asked.modality, asked.examples.setting)
        origins = {key: Origin(value, where) for key, value in best.items()} | origins
    config = build(FinetuningConfig, origins)
    check(config, {key: origin.where for key, origin in origins.items()})
    return config


def check(config: FinetuningConfig, where: dict[str, str] | None = None) -> None:
    """Raise UserError for values out of range."""
    problems = []

    def place(key: str) -> str:
        return f"{where[key]}: " if where and key in where else ""

    for key, least in _AT_LEAST.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        if value < least:
            problems.append(f"{place(key)}{key}: {value} is less than {least}")
    if config.optimizer.lr <= 0:
        problems.append(f"{place('optimizer.lr')}optimizer.lr: {config.optimizer.lr} is not above 0")
    if not 0 <= config.dropout < 1:
        problems.append(f"{place('dropout')}dropout: {config.dropout} is outside 0 to 1")
    if config.training.stop_after is not None:
        problems.append("training.stop_after: of pretraining alone; here stopping.patience ends a run early")
    if problems:
        raise UserError("\n  ".join(problems))
