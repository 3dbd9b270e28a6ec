"""Text files to a dataset: rendered pages, text to be rendered by the data loader, tokens, or pairs of both.

python data_tools/preprocess.py pixels  --input FILE... --output-prefix P
python data_tools/preprocess.py strings --input FILE... --output-prefix P
python data_tools/preprocess.py text    --input FILE... --output-prefix P --tokenizer tokenizer.model
python data_tools/preprocess.py pairs   --input FILE... --output-prefix P --tokenizer tokenizer.model

--workers N uses N processes; mpirun -n K or srun in front uses as many on K ranks of any machines that share a file
system. A run that is stopped or killed continues when the same command is given again. See docs/preprocessing.md.
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
from megatron_pixel.data.documents import DocumentReader
from megatron_pixel.data.preprocess_arguments import (
    add_reader_arguments,
    command_line,
    fraction,
    parse_with_sections,
    positive_int,
    reader_from,
)
from megatron_pixel.data.preprocess_ranks import connect, one_voice
from megatron_pixel.data.preprocess_signals import clean_exit_on_signal
from megatron_pixel.data.split import DEFAULT_FRACTION

CHANGE_NOTHING = ["--workers", "--part-bytes"]
SWITCHES = ["--overwrite", "--restart"]
"""Options and switches that do not show in the output, and therefore not in its manifest."""
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
    prefix = arguments.output_prefix
    ranks = connect()
    with one_voice(ranks), clean_exit_on_signal(lambda: fate(prefix), quiet=ranks.rank > 0):
        # Imported late: --help and wrong arguments answer at once.
        from megatron_pixel.data.preprocess_documents import Recipe
        from megatron_pixel.data.preprocess_estimate import estimate, estimate_table
        from megatron_pixel.data.preprocess_report import report_table
        from megatron_pixel.data.preprocessing import preprocess

        def read_arguments() -> tuple[Recipe, DocumentReader]:
            sections = SECTIONS[arguments.kind]
            recipe = Recipe(
                kind=arguments.kind,
                heldout_fraction=arguments.heldout_fraction,
                rendering=from_arguments(arguments, RenderingConfig, "rendering") if "rendering" in sections else None,
                tokenizer=getattr(arguments, "tokenizer", None),
                pair=from_arguments(arguments, PairConfig, "pair") if "pair" in sections else None,
            )
            return recipe, reader_from(arguments)

        recipe, reader = ranks.lead(read_arguments)
        if arguments.dry_run:
            table = ranks.lead(lambda: estimate_table(estimate(reader, recipe), arguments.workers * ranks.size))
        else:
            report = preprocess(
                reader,
                recipe,
                prefix,
                arguments.workers,
                arguments.overwrite,
                shlex.join(["data_tools/preprocess.py", *command_line(words, CHANGE_NOTHING, SWITCHES)]),
                quiet=False,
                restart=arguments.restart,
                part_bytes=arguments.part_bytes,
                ranks=ranks,
            )
            table = report_table(report, prefix)
    if ranks.rank == 0:
        print(table)


def fate(prefix: str) -> str:
    """What becomes of a run that is stopped."""
    if Path(f"{prefix}.work").is_dir():
        return f"no dataset was written; what is done is kept in {prefix}.work, and the same command continues"
    if Path(f"{prefix}.manifest.json").exists():
        return f"the dataset at {prefix} is whole"
    return "no dataset was written"


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
            "--restart",
            action="store_true",
            help="discard what a run that was stopped left in P.work; without it the same command continues there",
        )
        group.add_argument(
            "--dry-run",
            action="store_true",
            help="write nothing: estimate documents, pages, bytes and time from a sample of the input",
        )
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
            help="processes (under mpirun or srun: of each rank); the output does not depend on their number "
            "(default: 1)",
        )
        group.add_argument(
            "--part-bytes",
            type=positive_int,
            metavar="N",
            help="bytes of input that one process converts at a time, and that a run which is killed may lose; for "
            "tests and tuning, the output does not depend on it (default: 1 to 32 MiB, more beyond 512 GiB of input)",
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
