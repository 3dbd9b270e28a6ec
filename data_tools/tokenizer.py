"""Train a sentencepiece tokenizer with Llama 2's settings, and look at one.

python data_tools/tokenizer.py train  --input FILE... --output tokenizer.model --vocab-size 32000
python data_tools/tokenizer.py info   tokenizer.model
python data_tools/tokenizer.py encode tokenizer.model "some text"
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.data.preprocess_arguments import add_reader_arguments, positive_int, reader_from


def train(arguments: argparse.Namespace) -> None:
    """Train on the documents and write the model."""
    from megatron_pixel.data.preprocess_claims import Tally
    from megatron_pixel.data.preprocess_progress import Progress
    from megatron_pixel.data.preprocess_signals import clean_exit_on_signal
    from megatron_pixel.data.tokenizer import Tokenizer, train_tokenizer

    output = Path(arguments.output)
    if output.exists() and not arguments.overwrite:
        raise UserError(f"{output} exists; choose another name, or ask for --overwrite")
    reader = reader_from(arguments)
    with clean_exit_on_signal("no tokenizer was written"), Progress(reader.total_bytes) as progress:

        def texts() -> Iterator[str]:
            for document in reader:
                yield document.text
                progress.update(Tally(reader.bytes_done, reader.documents, 0, reader.text_bytes))
            progress.say(f"read {reader.documents:,} documents; learning {arguments.vocab_size:,} pieces")

        train_tokenizer(texts(), output, arguments.vocab_size, arguments.max_sentences)
        seconds = progress.seconds
    for reason, count in sorted(reader.skipped.items()):
        print(f"skipped: {reason}: {count:,}")
    print(
        f"wrote {output}: {Tokenizer(output).vocab_size:,} pieces from {reader.documents:,} documents, {seconds:.1f} s"
    )


def info(arguments: argparse.Namespace) -> None:
    """Sizes, special pieces and hash."""
    from megatron_pixel.data.tokenizer import Tokenizer

    tokenizer = Tokenizer(arguments.model)
    for name, value in tokenizer.fingerprint().items():
        print(f"{name:<13}{value}")


def encode(arguments: argparse.Namespace) -> None:
    """Pieces and ids of a text."""
    from megatron_pixel.data.tokenizer import Tokenizer

    tokenizer = Tokenizer(arguments.model)
    text = sys.stdin.read() if arguments.text == "-" else arguments.text
    ids = tokenizer.encode(text)
    print(" ".join(tokenizer.piece(token) for token in ids))
    print(" ".join(str(token) for token in ids))


def main(words: Sequence[str]) -> None:
    """Parse and run one of the subcommands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="{train,info,encode}")

    command = commands.add_parser("train", help="train a tokenizer on text files", allow_abbrev=False)
    command.set_defaults(run=train)
    add_reader_arguments(command)
    group = command.add_argument_group("output")
    group.add_argument("--output", required=True, metavar="MODEL", help="the sentencepiece model to write")
    group.add_argument("--overwrite", action="store_true", help="replace a file of that name")
    group.add_argument("--vocab-size", type=positive_int, default=32000, help="pieces (default: 32000)")
    group.add_argument(
        "--max-sentences",
        type=positive_int,
        default=10_000_000,
        metavar="N",
        help="train on a random sample of so many lines where there are more; bounds memory (default: 10000000)",
    )

    command = commands.add_parser("info", help="print sizes, special ids and hash of a tokenizer")
    command.set_defaults(run=info)
    command.add_argument("model", metavar="MODEL")

    command = commands.add_parser("encode", help="print the pieces and ids of a text")
    command.set_defaults(run=encode)
    command.add_argument("model", metavar="MODEL")
    command.add_argument("text", help="the text, or - for standard input")

    arguments = parser.parse_args(words)
    arguments.run(arguments)


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
