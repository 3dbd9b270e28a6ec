#!/usr/bin/env python
"""How does training scale? Step time and efficiency on 8 to 1,024 GPUs, layout by layout: arithmetic, nothing runs.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --gpu h100 --recipes dualgpt-7b --devices 64 512
    python benchmarks/scaling.py --measured training.json --training.global_batch_rows 40960

Computing starts from the roofline of `--gpu`, or from times that `benchmarks/training.py --json` measured on one GPU
(`--measured`). What is sent is counted, operation by operation, and tests hold the counts against real runs; links have
the rates of data sheets. Each layout takes the micro-batch that is fastest among those that fit, and computes layers
again where none fits otherwise. Efficiency is against one device with room for everything that sends nothing, at the
same batch. Settings of the recipes may follow as dotted names.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from benchmarks.scaling_tables import all_of
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.loader import load_config
from megatron_pixel.planning.constants import Constants
from megatron_pixel.planning.devices import DEVICES, find_device
from megatron_pixel.planning.measured import read_measured
from megatron_pixel.planning.scaling import Layout, curve

RECIPES = ROOT / "megatron_pixel" / "config" / "recipes"
SMALL = (Layout(), Layout(zero="zero2"), Layout(zero="zero3"), Layout(2), Layout(pipeline=2), Layout(pipeline=4))
LARGE = (
    Layout(),
    Layout(zero="zero2"),
    Layout(zero="zero3"),
    Layout(2),
    Layout(4),
    Layout(8),
    Layout(pipeline=4),
    Layout(pipeline=8),
    Layout(2, 4),
)
LAYOUTS = {"dualgpt": SMALL, "dualgpt-7b": LARGE}
"""Those of a recipe; others take :data:`SMALL`."""


def main(words: Sequence[str]) -> None:
    """Predict, print, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipes", nargs="+", default=list(LAYOUTS), metavar="NAME", help="(default: %(default)s)")
    parser.add_argument(
        "--devices", nargs="+", type=int, default=[8, 32, 256, 1024], metavar="N", help="of each layout"
    )
    parser.add_argument("--node", type=int, default=8, metavar="N", help="GPUs of a node (default: %(default)s)")
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(DEVICES)} (default: the measured one, else h200)")
    parser.add_argument("--measured", type=Path, metavar="FILE", help="a result of benchmarks/training.py on one GPU")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw efficiency over GPUs there, as PNG")
    result_file.add_json_argument(parser)
    options, settings = parser.parse_known_args(words)
    if min(options.devices) < 1 or options.node < 1:
        raise UserError("--devices and --node: the least is 1")
    figures = predict(options, settings)
    print(all_of(figures))
    if options.picture:
        from benchmarks.scaling_picture import draw

        draw(figures, options.picture)
    result_file.write(options.json, figures)


def predict(options: argparse.Namespace, settings: Sequence[str]) -> dict[str, Any]:
    """All layouts of all recipes."""
    configs = {name: load_config(RECIPES / f"{name}.yaml", list(settings)) for name in options.recipes}
    device, constants = find_device(options.gpu or "h200"), Constants()
    if options.measured:
        measured_on, constants = read_measured(options.measured, next(iter(configs.values())))
        device = find_device(options.gpu) if options.gpu else measured_on
    found: dict[str, Any] = {
        "gpu": device.title,
        "source": device.source,
        "gpus_of_a_node": options.node,
        "link_gb_per_s": device.link / 1e9,
        "network_gb_per_s": device.network / 1e9,
        "computing": options.measured.name if options.measured else "roofline",
        "measured_to_roofline": {kind.name.lower(): factor for kind, factor in constants.measured.items()},
        "recipes": {},
    }
    for name, config in configs.items():
        layouts = {}
        for layout in LAYOUTS.get(name, SMALL):
            points = curve(config, layout, options.devices, options.node, device, constants)
            layouts[str(layout)] = [point.describe() for point in points]
        found["recipes"][name] = {
            "rows": config.training.global_batch_rows,
            "positions": config.model.seq_length,
            "layouts": layouts,
        }
    return found


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
