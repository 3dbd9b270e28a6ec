"""Decide which short pages of a dataset share a row, for training with data.packing: documents.

python data_tools/pack.py P
python data_tools/pack.py P --seq-length 1024 --workers 16
python data_tools/pack.py P --data.rendering.font_size 9

P is the prefix of a dataset of pixels, of strings or of pairs; rows have as many positions as model.seq_length, and
never divide a page. The plan lies beside the dataset, P.train.packed<seq-length>.{bin,idx,json}: 12 bytes a row and 2
a page. The dataset itself stays as it is, and trains without packing too. When a dataset is made again or joined with
another, pack it again: a plan for other pages is refused.

The pages of strings are laid out once, to measure them. Give the data.rendering.* settings of the run, if it has any:
a plan for other fonts, sizes or strategies is refused as well.

verify.py P examines plans with the dataset. See docs/data.md.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.command_line import add_dataclass_arguments, from_arguments
from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.config.schema import DataConfig, RenderingOverrides
from megatron_pixel.data.preprocess_arguments import parse_with_sections, positive_int
from megatron_pixel.data.preprocess_progress import StatusLine, duration
from megatron_pixel.data.preprocess_signals import clean_exit_on_signal

if TYPE_CHECKING:
    from megatron_pixel.data.packing import PlanFacts

_SECTION = "data.rendering"


def main(words: Sequence[str]) -> None:
    """Pack each dataset and say how full its rows are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("prefixes", nargs="+", metavar="P", help="output prefixes of preprocess.py, but for text")
    parser.add_argument(
        "--seq-length", type=positive_int, default=1024, metavar="N", help="positions of a row (default: 1024)"
    )
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help="processes (default: 1)")
    add_dataclass_arguments(parser, RenderingOverrides, _SECTION)
    arguments = parse_with_sections(parser, words, {"data": DataConfig})
    rendering = from_arguments(arguments, RenderingOverrides, _SECTION)

    from megatron_pixel.data.packing_datasets import pack_dataset

    for prefix in arguments.prefixes:
        watch = Watch(prefix)
        with clean_exit_on_signal(lambda: "no plan was written"):
            facts = pack_dataset(prefix, arguments.seq_length, arguments.workers, watch.show, rendering)
        watch.clear()
        print(
            f"{prefix}: {facts.pages:,} pages in {facts.rows:,} rows of {facts.seq_length:,}, {facts.fill:.1%} full "
            f"({facts.fill_alone:.1%} with a row for each), {watch.rate(facts):,.0f} pages/s"
        )


class Watch:
    """How far the packing of a dataset is."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._line = StatusLine()
        self._started = time.monotonic()
        self.clear = self._line.clear

    def rate(self, facts: "PlanFacts") -> float:
        """Pages a second since the start."""
        return facts.pages / max(time.monotonic() - self._started, 1e-9)

    def show(self, facts: "PlanFacts", total: int) -> None:
        """Called as often as anybody likes."""
        if self._line.due():
            rate = self.rate(facts)
            left = duration((total - facts.pages) / max(rate, 1e-9))
            self._line.write(
                f"{self._prefix}: {100 * facts.pages / max(total, 1):.0f}%, {facts.pages:,} of {total:,} pages, "
                f"{rate:,.0f} pages/s, rows {facts.fill:.1%} full, {left} left"
            )


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
