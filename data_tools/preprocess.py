"""Text files to a dataset: rendered pages, text to be rendered by the data loader, tokens, or pairs of both.

python data_tools/preprocess.py pixels  --input FILE... --output-prefix P
python data_tools/preprocess.py strings --input FILE... --output-prefix P
python data_tools/preprocess.py text    --input FILE... --output-prefix P --tokenizer tokenizer.model
python data_tools/preprocess.py pairs   --input FILE... --output-prefix P --tokenizer tokenizer.model
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.command_line import add_dataclass_arguments, from_arguments
from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.config.schema import PairConfig, RenderingConfig
from megatron_pixel.data.preprocess_arguments import (
    add_reader_arguments,
    command_line,
    fraction,
    parse_with_sections,
    positive_int,
    reader_from,
)
from megatron_pixel.data.preprocess_signals import clean_exit_on_signal
from megatron_pixel.data.split import DEFAULT_FRACTION

SECTIONS: dict[str, dict[str, type]] = {
    "pixels": {"rendering": RenderingConfig},
    "strings": {"rendering": RenderingConfig},
    "text": {},
    "pairs": {"rendering": RenderingConfig, "pair": PairConfig},
}
HELP = {
    "pixels": "render documents to pages of patches",
    "strings": "cut documents into pages and store the text of each, which the data loader then renders",
    "text": "turn documents into tokens: BOS, tokens, EOS",
    "pairs": "cut documents into chunks and store each as a page and as tokens",
}


def main(words: Sequence[str]) -> None:
    """Parse, convert, report."""
    arguments = parse(words)
    with clean_exit_on_signal("no dataset was written"):
        # Imported late: --help and wrong arguments answer at once.
        from megatron_pixel.data.preprocess_documents import Recipe
        from megatron_pixel.data.preprocess_report import report_table
        from megatron_pixel.data.preprocessing import preprocess

        sections = SECTIONS[arguments.kind]
        recipe = Recipe(
            kind=arguments.kind,
            heldout_fraction=arguments.heldout_fraction,
            rendering=from_arguments(arguments, RenderingConfig, "rendering") if "rendering" in sections else None,
            tokenizer=getattr(arguments, "tokenizer", None),
            pair=from_arguments(arguments, PairConfig, "pair") if "pair" in sections else None,
        )
        reader = reader_from(arguments)
        command = shlex.join(["data_tools/preprocess.py", *command_line(words, ["--workers"], ["--overwrite"])])
        report = preprocess(
            reader, recipe, arguments.output_prefix, arguments.workers, arguments.overwrite, command, quiet=False
        )
    print(report_table(report, arguments.output_prefix))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line; exits with argparse's message, or raises UserError for a dotted name that does not exist."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="kind", required=True)
    for kind, sections in SECTIONS.items():
        command = commands.add_parser(kind, help=HELP[kind], description=HELP[kind].capitalize(), allow_abbrev=False)
        add_reader_arguments(command)
        group = command.add_argument_group("output")
        group.add_argument(
            "--output-prefix",
            required=True,
            metavar="P",
            help="beginning of the files that are written: P.train.*, P.heldout.* and, last of all, P.manifest.json",
        )
        group.add_argument("--overwrite", action="store_true", help="replace a dataset that is at this prefix")
        group.add_argument(
            "--heldout-fraction",
            type=fraction,
            default=DEFAULT_FRACTION,
            metavar="F",
            help="share of the documents held out, chosen by the hash of their text: give every dataset of a mixture "
            f"the same (default: {DEFAULT_FRACTION})",
        )
        group.add_argument(
            "--workers",
            type=positive_int,
            default=1,
            metavar="N",
            help="processes; the output does not depend on their number (default: 1)",
        )
        if kind in ("text", "pairs"):
            group.add_argument("--tokenizer", required=True, metavar="MODEL", help="sentencepiece model")
        for prefix, section in sections.items():
            add_dataclass_arguments(command, section, prefix)
    kind = next((word for word in words if word in SECTIONS), "text")
    return parse_with_sections(parser, words, SECTIONS[kind])


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
