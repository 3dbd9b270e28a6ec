"""The command ``finetune.py search``. Starts without torch."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.loader import parse_overrides
from megatron_pixel.finetuning.grid import find_grid, read_points, sampled
from megatron_pixel.finetuning.search import array_share, results_below, search, share_of, summary

DESCRIPTION = """\
Run the points of a grid side by side. What is finished stays: the same command goes on where it was stopped.

  python megatron_pixel/finetune.py search --grid GRID.yaml --output runs/search --workers 4

  # the paper's best settings on all nine tasks of GLUE, from one checkpoint
  python megatron_pixel/finetune.py search --grid table13 --output runs/glue \\
      --checkpoint runs/pixelgpt --examples.path data/glue

  # a random tenth of the paper's search on one task, as 16 tasks of a SLURM array
  sbatch --array 0-15 launcher/finetune.sbatch search --grid table11 --sample 192 --output runs/cola \\
      --checkpoint runs/pixelgpt --task cola --modality pixel --examples.path data/glue

A grid is a YAML file with `fixed` settings, `cases` (settings that go together) and a `grid` of lists, of which every
combination is taken; table11 to table14 are the paper's. Other options are settings of finetune.py, for all points."""


def run_search(words: Sequence[str]) -> int:
    """Parse, search, summarize; the exit status: 0 where all points have a result, 1 where some failed or were stopped.

    Raises:
        UserError: a grid that cannot be read, or settings that cannot be.
    """
    parser = argparse.ArgumentParser(
        prog="finetune.py search",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--grid", required=True, help="YAML file, or table11, table12, table13, table14")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder of the search, a folder in it for each point"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes side by side (default: 1)")
    parser.add_argument("--share", help="NUMBER/COUNT: every COUNT-th point (default: from the SLURM array, or all)")
    parser.add_argument("--sample", type=int, default=0, help="points drawn at random; 0 takes all")
    parser.add_argument("--sample-seed", type=int, default=0, help="of the draw")
    parser.add_argument("--system", help="take the cases of this system only: textgpt, pixelgpt, monogpt, dualgpt")
    parser.add_argument("--dry-run", action="store_true", help="list the points and end")
    for name in ("checkpoint", "task", "modality", "examples.path"):
        parser.add_argument(f"--{name}", dest=name, help="as in finetune.py; so are its other settings")
    options, rest = parser.parse_known_args(words)
    given = vars(options)
    for name in ("checkpoint", "task", "modality", "examples.path"):
        if given[name] is not None:
            rest += [f"--{name}", given[name]]
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: at least 1")
    changes = {key: origin.value for key, origin in parse_overrides(rest, FinetuningConfig).items()}
    points = read_points(find_grid(options.grid), changes, options.system)
    points = sampled(points, options.sample, options.sample_seed)
    points = share_of(points, options.share or array_share(os.environ))
    if options.dry_run:
        for point in points:
            shown = " ".join(f"--{key} {value}" for key, value in point.values.items())
            print(f"{point.name}: {shown}")
        return 0
    for point in points:
        point.config(options.output / point.name)  # a wrong value is told before anything starts
    report = search(points, options.output, options.workers)
    results = results_below(options.output)
    if results:
        print(summary(results))
    if report.elsewhere:
        print(f"{report.elsewhere:,} points are under way in another search")
    for name, message in report.failed.items():
        print(f"failed: {name}: {message}")
    return 1 if report.failed or report.stopped else 0
