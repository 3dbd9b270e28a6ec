"""The command line of fine-tuning. Starts without torch, so that mistakes and ``--help`` cost no seconds."""

import os
from collections.abc import Sequence
from pathlib import Path

from megatron_pixel.config.command_line import print_settings, recipe_parser
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.loader import build, parse_overrides
from megatron_pixel.config.ranges import Report, check_ranges
from megatron_pixel.config.source import Origin, raise_problems, read_recipe

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


def parse(words: Sequence[str]) -> FinetuningConfig:
    """The checked settings of the command line; ``--help`` and ``--print-config`` end the program here."""
    parser = recipe_parser(
        DESCRIPTION, "%(prog)s [--config RECIPE] [--KEY VALUE ...]", FinetuningConfig, required=False
    )
    parser.add_argument("--paper", choices=SYSTEMS, help="start from the paper's settings for this system and the task")
    parser.add_argument("--print-config", action="store_true", help="show the configuration and end")
    known, overrides = parser.parse_known_args(words)
    config = load(known.config, overrides, known.paper)
    if known.print_config:
        print_settings(config)
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
    report = Report(config, where or {})
    check_ranges(report)
    if config.training.stop_after is not None:
        report.add("training.stop_after", "of pretraining alone; here stopping.patience ends a run early")
    raise_problems(report.problems)
