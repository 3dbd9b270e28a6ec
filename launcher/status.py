#!/usr/bin/env python
"""Where runs stand, from their folders alone: no torch, no GPU, no word with the run itself.

    python launcher/status.py runs/demo
    python launcher/status.py runs/*
    watch -n 30 python launcher/status.py runs/dualgpt

One run is told in full: whether it lives, step and ETA, losses, throughput and its trend, time split, last checkpoint,
restarts, last troubles. Several get a line each (--full for more); folders that are no runs are passed over there.

The exit status is 0 where all is well, 1 where a run is dead, stuck or failed, 2 where there is none: cron can ask.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.reporting.status import as_json, block, status_of, table


def main(words: Sequence[str]) -> int:
    """Print the state of the runs; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--full", action="store_true", help="tell each of several runs in full")
    parser.add_argument("--json", action="store_true", help="everything as JSON")
    arguments = parser.parse_args(words)
    folders = [folder for folder in arguments.runs if len(arguments.runs) == 1 or (folder / "config.yaml").is_file()]
    if not folders:
        raise UserError(f"none of the {len(arguments.runs)} folders is a run: they have no config.yaml")
    statuses = [status_of(folder) for folder in folders]
    if arguments.json:
        print(as_json(statuses))
    elif len(statuses) == 1 or arguments.full:
        print("\n\n".join(block(status) for status in statuses))
    else:
        print(table(statuses))
    return 0 if all(status.good for status in statuses) else 1


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
