#!/usr/bin/env python
"""Join datasets: the parts one after the other, as if one run of preprocess.py had made them.

    python data_tools/merge.py part0 part1 part2 --output-prefix P

Parts are output prefixes of preprocess.py, all of one kind (text, pixels, pairs, strings) and made with the same
rendering settings and fonts, tokenizer, caps of pairs and held-out fraction. Bytes are copied and checked on the way;
nothing is rendered or encoded again. The parts stay as they are.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.data.preprocess_signals import clean_exit_on_signal


def main(words: Sequence[str]) -> None:
    """Join the parts and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", metavar="PART", help="output prefixes of preprocess.py, in order")
    parser.add_argument("--output-prefix", required=True, metavar="P", help="beginning of the files that are written")
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is at this prefix")
    arguments = parser.parse_args(words)
    from tqdm import tqdm

    from megatron_pixel.data.merging import Merge

    with clean_exit_on_signal("no dataset was written"):
        command = shlex.join(["data_tools/merge.py", *words])
        merge = Merge(arguments.parts, arguments.output_prefix, arguments.overwrite, command)
        interval = 0.1 if sys.stderr.isatty() else 15.0
        with tqdm(
            total=merge.total_bytes, unit="B", unit_scale=True, mininterval=interval, delay=1.0, leave=False
        ) as bar:
            manifest = merge.run(bar.update)
            rate = bar.format_dict["n"] / max(bar.format_dict["elapsed"], 1e-9)
    print(f"{arguments.output_prefix}: {len(arguments.parts)} datasets joined, {rate / 1e6:,.0f} MB/s")
    for split, counts in manifest.splits.items():
        parts = [(counts.documents, "documents"), (counts.sequences, "sequences")]
        parts += [part for part in ((counts.patches, "patches"), (counts.tokens, "tokens")) if part[0]]
        print(f"  {split:<8} {', '.join(f'{count:,} {name}' for count, name in parts)}")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
