"""Compute again the step that a guard stopped at. ``python megatron_pixel/reproduce.py --help`` explains everything."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.parallel.quiet import silence_libraries

DESCRIPTION = """\
Compute again, on one process, the step that a guard stopped a run at.

  python megatron_pixel/reproduce.py runs/first/dumps/step-00000012

takes the rows and the weights of the dump, whatever layout wrote it, and goes through the rows one by one: their
losses, the norms of their gradients, and the first module or parameter where numbers are not finite. It says whether
the rows are to blame, the weights, or (where all is fine here) the device that computed them."""


def main() -> None:
    """Parse, compute, show."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dump", type=Path, help="folder of the dump, RUN/dumps/step-...")
    parser.add_argument("--rows", type=int, help="rows at the most, suspects first (default: all that the dump holds)")
    options = parser.parse_args()
    with exit_on_user_error():
        silence_libraries()
        from megatron_pixel.training.reproducing import reproduce

        print(reproduce(options.dump, options.rows).table())


if __name__ == "__main__":
    main()
