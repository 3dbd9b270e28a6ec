"""The command line of pretraining. Starts without torch, so that mistakes and ``--help`` cost no seconds."""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from megatron_pixel.config.command_line import print_settings, read_command_line
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.parallel.launch import read_launch

DESCRIPTION = """\
Pretrain a language model on text, on pages of rendered text, or on both.

examples:
  # seconds, no data needed: does everything run here?
  python megatron_pixel/pretrain.py --config megatron_pixel/config/recipes/dualgpt-debug.yaml

  # two processes, or the GPUs of a node
  deepspeed --num_gpus 2 megatron_pixel/pretrain.py --config megatron_pixel/config/recipes/dualgpt-debug.yaml
  torchrun --nproc-per-node 8 megatron_pixel/pretrain.py --config megatron_pixel/config/recipes/dualgpt.yaml

  # another learning rate in another folder, with all the settings that this run would get shown first
  python megatron_pixel/pretrain.py --config RECIPE --optimizer.lr 3e-4 --run.dir runs/lr3e-4 --print-config
  python megatron_pixel/pretrain.py --config RECIPE --optimizer.lr 3e-4 --run.dir runs/lr3e-4

  # end after step 1000; the same command without --training.stop_after goes on from there
  python megatron_pixel/pretrain.py --config RECIPE --training.stop_after 1000

  # what would it need on 4 nodes of 8 GPUs, and how fast would it be? No GPU is needed to ask
  python megatron_pixel/pretrain.py --config RECIPE --dry-run --nodes 4 --gpus 8 --gpu a100

--print-config shows the whole configuration as YAML and ends. --dry-run prints parameters by rank, memory,
communication and speed of a layout and ends; its options are --devices N or --nodes N --gpus N, --gpu NAME,
--efficiency SHARE, --layouts N, --json FILE, and `--dry-run --help` explains them."""


def parse(words: Sequence[str]) -> RunConfig:
    """The checked configuration of the command line; ``--help`` and ``--print-config`` end the program here.

    Raises:
        UserError: see :func:`read_command_line` and :func:`megatron_pixel.parallel.layout.check_layout`.
    """
    rest = [word for word in words if word != "--print-config"]
    if len(rest) < len(words):
        _print_config(rest)
    config = read_command_line(DESCRIPTION, rest)
    # Imported here: its way through the data package takes a moment, which --help need not wait for.
    from megatron_pixel.parallel.layout import check_layout
    from megatron_pixel.training.preflight import check_folder, check_settings

    check_layout(config, read_launch(os.environ).world_size)
    check_folder(Path(config.run.dir))
    check_settings(config)
    return config


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Let rank 0 tell an error that all ranks meet alike.

    The others keep their message back for a moment, in which launchers end them; one that fails alone still speaks.
    """
    try:
        yield
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            raise
        time.sleep(3)
        error.args = (f"rank {rank}: {error}",)
        raise


def _print_config(words: Sequence[str]) -> NoReturn:
    """Show the configuration; its datasets need not be there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", required=True)
    known, overrides = parser.parse_known_args(words)
    print_settings(load_config(known.config, overrides))
