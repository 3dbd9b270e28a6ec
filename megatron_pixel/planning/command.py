"""``pretrain.py --dry-run``: its command line."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from megatron_pixel.config.automatic import automatic
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import load_config
from megatron_pixel.parallel.layout import check_layout
from megatron_pixel.planning.choice import choose
from megatron_pixel.planning.constants import Constants
from megatron_pixel.planning.devices import DEVICES, find_device
from megatron_pixel.planning.fitting import nearest_fit, other_layouts
from megatron_pixel.planning.plan import Plan
from megatron_pixel.planning.report import comparison, report
from megatron_pixel.planning.setting import Setting

DESCRIPTION = """\
What a run will need and send, told without its devices: parameters by stage and rank, memory of a device, bytes that a
step communicates, the pipeline's bubble, and the rows/s to expect.

examples:
  python megatron_pixel/pretrain.py --config megatron_pixel/config/recipes/dualgpt.yaml --dry-run --nodes 4 --gpu a100
  python megatron_pixel/pretrain.py --config RECIPE --dry-run --devices 1024 --parallel.tensor 4 --json plan.json
  python megatron_pixel/pretrain.py --config RECIPE --dry-run --gpu h100 --training.micro_batch_rows auto

All settings of a run may follow as dotted names; `pretrain.py --help` explains them. Datasets need not be there."""


def read_arguments(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Options of the dry-run, and the settings of the run that follow them.

    Raises:
        UserError: numbers of devices that contradict each other.
    """
    parser = argparse.ArgumentParser(
        prog="pretrain.py --dry-run",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="RECIPE", help="YAML recipe")
    parser.add_argument("--dry-run", action="store_true", required=True)
    parser.add_argument("--devices", type=int, metavar="N", help="all of them (default: nodes x gpus)")
    parser.add_argument("--nodes", type=int, metavar="N", help="(default: as many as --devices fill, else 1)")
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="of a node (default: %(default)s)")
    parser.add_argument("--gpu", default="a100", metavar="NAME", help=f"{', '.join(DEVICES)} (default: %(default)s)")
    parser.add_argument(
        "--efficiency",
        type=float,
        help="share of the peak that matrix products reach (default: the GPU's, as fitted; see docs/scaling.md)",
    )
    parser.add_argument(
        "--layouts",
        type=int,
        metavar="N",
        help="instead of one layout, compare the N fastest that fit these devices with the same micro-batches",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything there; - prints it instead")
    options, settings = parser.parse_known_args(words)
    for name in ("devices", "nodes", "gpus", "layouts"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: {value} is too small; the least is 1")
    if options.efficiency is not None and not 0 < options.efficiency <= 1:
        raise UserError(f"--efficiency: {options.efficiency:g} is outside 0 .. 1")
    if options.devices and options.nodes and options.devices != options.nodes * options.gpus:
        raise UserError(
            f"--devices {options.devices} is not --nodes {options.nodes} x --gpus {options.gpus} = "
            f"{options.nodes * options.gpus}: leave one of them out"
        )
    options.devices = options.devices or (options.nodes or 1) * options.gpus
    return options, settings


def dry_run(words: Sequence[str]) -> None:
    """Print the plan of a run.

    Args:
        words: the whole command line.

    Raises:
        UserError: settings that cannot run, an unknown GPU, a file that cannot be written.
    """
    options, settings = read_arguments(words)
    device = find_device(options.gpu)
    config = load_config(options.config, settings)
    check_layout(config, options.devices)
    node, why = min(options.gpus, options.devices), None
    if config.parallel.device_memory_gb is not None:
        device = replace(device, memory=config.parallel.device_memory_gb * 1e9)
    if automatic(config):
        choice = choose(config, options.devices, node, device)
        config, why = choice.config, choice.why
    setting = Setting.of(config, options.devices, node)
    plan = Plan(setting, device, Constants(efficiency=options.efficiency))
    if options.layouts:
        plans = other_layouts(config, plan)[: options.layouts]
        text = json.dumps([other.describe() for other in plans], indent=2) + "\n"
        _tell(options.json, text, lambda: comparison(config, plan, plans))
        return
    nearest = None if plan.fits else nearest_fit(config, plan)
    found = plan.describe()
    if nearest is not None:
        found["nearest"] = {"settings": list(nearest.words), **nearest.plan.describe()}
    text = json.dumps(found, indent=2) + "\n"
    _tell(options.json, text, lambda: report(config, plan, nearest, why))


def _tell(path: Path | None, text: str, shown: Callable[[], str]) -> None:
    """JSON to standard output alone, or what is shown and JSON to a file: whole or not at all."""
    if path == Path("-"):
        sys.stdout.write(text)
        return
    print(shown())
    if path is None:
        return
    part = path.with_name(f".{path.name}.writing")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"--json: {path} cannot be written: {error.strerror}") from error
