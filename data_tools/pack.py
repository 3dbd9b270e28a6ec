"""Decide which short pages of a dataset share a row, for training with data.packing: documents.

python data_tools/pack.py P
python data_tools/pack.py P --seq-length 1024 --workers 16

P is the prefix of a dataset of pixels or of pairs. The plan lies beside it, P.train.packed<seq-length>.{bin,idx,json}:
12 bytes a row and 2 a page. The dataset itself stays as it is, and trains without packing too.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.data.preprocess_arguments import positive_int

_SECONDS_BETWEEN_LINES = 15.0


def main(words: Sequence[str]) -> None:
    """Pack each dataset and say how full its rows are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("prefixes", nargs="+", metavar="P", help="output prefixes of preprocess.py pixels or pairs")
    parser.add_argument("--seq-length", type=positive_int, default=1024, metavar="N", help="positions (default: 1024)")
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (default: 1)")
    arguments = parser.parse_args(words)

    from megatron_pixel.data.packing import PlanFacts
    from megatron_pixel.data.packing_datasets import pack_dataset

    for prefix in arguments.prefixes:
        started = last = time.monotonic()

        def show(facts: PlanFacts, total: int, started: float = started) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last > _SECONDS_BETWEEN_LINES:
                last = now
                rate = facts.pages / (now - started)
                left = (total - facts.pages) / rate
                print(f"  {facts.pages:,} of {total:,} pages, {rate:,.0f} pages/s, {left:,.0f} s left", flush=True)

        facts = pack_dataset(prefix, arguments.seq_length, arguments.workers, show)
        pages, seconds = max(1, facts.pages), time.monotonic() - started
        before = facts.positions / (pages * facts.seq_length)
        print(
            f"{prefix}: {facts.pages:,} pages in {facts.rows:,} rows of {facts.seq_length:,}, {facts.fill:.1%} full "
            f"({before:.1%} with a row for each), {pages / max(seconds, 1e-9):,.0f} pages/s"
        )


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
