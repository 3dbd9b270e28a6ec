"""Command-line arguments that the data tools share."""

import argparse
import sys
from collections.abc import Mapping, Sequence

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import apply_overrides
from megatron_pixel.data.documents import DocumentReader, ReaderOptions
from megatron_pixel.data.inputs import KNOWN_ENDINGS, STDIN


def add_reader_arguments(parser: argparse.ArgumentParser) -> None:
    """``--input`` and how to read it."""
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help=f"text files, read in this order: {KNOWN_ENDINGS}",
    )
    group.add_argument("--key", default="text", help="JSON key or .parquet column that holds the text (default: text)")
    group.add_argument(
        "--txt-mode",
        choices=["paragraph", "line", "file"],
        default="paragraph",
        help="a document of a .txt file: a run of lines between blank ones, a line, or the file (default: paragraph)",
    )
    group.add_argument(
        "--stdin-format", choices=["jsonl", "txt"], default="jsonl", help="what - delivers (default: jsonl)"
    )
    group.add_argument(
        "--on-bad-record",
        choices=["fail", "skip"],
        default="fail",
        help="at a record that cannot be read: stop and name it, or count it and go on (default: fail)",
    )
    group.add_argument("--max-documents", type=positive_int, metavar="N", help="stop after N documents")


def reader_from(arguments: argparse.Namespace) -> DocumentReader:
    """The reader that the arguments of :func:`add_reader_arguments` describe; raises UserError for unusable files."""
    if STDIN in arguments.input and sys.stdin.isatty():
        raise UserError("--input - reads standard input, which is a terminal here; pipe text into it")
    options = ReaderOptions(
        key=arguments.key,
        on_bad_record=arguments.on_bad_record,
        txt_mode=arguments.txt_mode,
        stdin_format=arguments.stdin_format,
        max_documents=arguments.max_documents,
    )
    return DocumentReader(arguments.input, options)


def parse_with_sections(
    parser: argparse.ArgumentParser, words: Sequence[str], sections: Mapping[str, type]
) -> argparse.Namespace:
    """Parse; an unknown dotted name raises UserError with the nearest one, where argparse would only refuse."""
    arguments, unknown = parser.parse_known_args(words)
    for word in unknown:
        prefix = word.removeprefix("--").partition(".")[0]
        if word.startswith("--") and "." in word and prefix in sections:
            apply_overrides(sections[prefix](), prefix, [word])
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return arguments


def positive_int(word: str) -> int:
    """argparse type: an integer above zero."""
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{word}: a number above zero is expected")
    return value


def fraction(word: str) -> float:
    """argparse type: a number from 0 to 1."""
    value = float(word)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{word}: a number from 0 to 1 is expected")
    return value


def command_line(words: Sequence[str], options: Sequence[str], switches: Sequence[str]) -> list[str]:
    """The words of a command without ``options`` (each with its value) and ``switches``, which change no output."""
    kept: list[str] = []
    value_follows = False
    for word in words:
        if value_follows or word in switches or word.partition("=")[0] in options:
            value_follows = not value_follows and word in options
        else:
            kept.append(word)
    return kept
