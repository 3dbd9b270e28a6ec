"""Look into a dataset, or at the rendering of a text.

python data_tools/show.py P --index 3 --output page.png
python data_tools/show.py P --index 3 --output pair.png --split heldout --tokenizer tokenizer.model
python data_tools/show.py --text "Hello, world" --output page.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.command_line import add_dataclass_arguments, from_arguments
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data.preprocess_arguments import parse_with_sections, positive_int
from megatron_pixel.data.split import SPLITS, TRAIN

if TYPE_CHECKING:
    import numpy as np

    from megatron_pixel.data.manifest import Manifest
    from megatron_pixel.data.tokenizer import Tokenizer
    from megatron_pixel.drawing import Panel
    from megatron_pixel.rendering.page import Page


def main(words: Sequence[str]) -> None:
    """Print a summary, and draw what was asked for."""
    arguments = parse(words)
    config = from_arguments(arguments, RenderingConfig, "rendering")
    if arguments.text is not None:
        panels = text_panels(sys.stdin.read() if arguments.text == "-" else arguments.text, config)
        title = "Rendered text"
    else:
        panels = dataset_panels(arguments, config)
        title = f"{arguments.prefix}, {arguments.split} {arguments.index}"
    if arguments.output is not None:
        draw(panels, title, arguments)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("prefix", nargs="?", metavar="P", help="output prefix of preprocess.py")
    parser.add_argument("--text", help="render this text instead (- for standard input)")
    parser.add_argument("--index", type=int, default=0, help="page, pair, or row of a text dataset (default: 0)")
    parser.add_argument("--split", choices=SPLITS, default=TRAIN, help=f"part of the dataset (default: {TRAIN})")
    parser.add_argument("--tokenizer", metavar="MODEL", help="decodes the tokens of text and pair datasets")
    parser.add_argument(
        "--row-length", type=positive_int, default=1024, metavar="N", help="tokens of a text row (default: 1024)"
    )
    parser.add_argument("--output", type=Path, metavar="PNG", help="picture to write; without it only the summary")
    parser.add_argument("--patches-per-row", type=positive_int, default=64, metavar="N", help="default: 64")
    parser.add_argument("--scale", type=positive_int, default=1, help="enlargement of the pixels (default: 1)")
    add_dataclass_arguments(parser, RenderingConfig, "rendering")
    arguments = parse_with_sections(parser, words, {"rendering": RenderingConfig})
    if (arguments.prefix is None) == (arguments.text is None):
        parser.error("give either the prefix of a dataset or --text")
    return arguments


def text_panels(text: str, config: RenderingConfig, label: str = "page") -> "list[Panel]":
    """A text rendered to as many pages as it needs."""
    from megatron_pixel.drawing import Panel
    from megatron_pixel.rendering.renderer import Renderer

    panels = []
    pages = Renderer(config).pages(text)
    for number, page in enumerate(pages):
        span = f"characters {page.start:,} to {page.end:,}"
        caption = f"{label} {number + 1} of {len(pages)}: {page.num_patches:,} patches, {span}"
        print(caption)
        panels.append(Panel(page.patches(channels(page)), caption))
    return panels


def dataset_panels(arguments: argparse.Namespace, config: RenderingConfig) -> "list[Panel]":
    """One record of a dataset; prints what the dataset and the record are."""
    from megatron_pixel.data.manifest import Manifest
    from megatron_pixel.data.stores import PageStore, PairStore, TokenStore
    from megatron_pixel.data.tokenizer import Tokenizer
    from megatron_pixel.drawing import Panel

    manifest = Manifest.read(arguments.prefix)
    describe(arguments.prefix, manifest)
    tokenizer = Tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    if tokenizer and manifest.tokenizer and tokenizer.sha256 != manifest.tokenizer["sha256"]:
        raise UserError(
            f"{arguments.tokenizer} is not the tokenizer of this dataset: sha256 {tokenizer.sha256[:12]}... instead of "
            f"{manifest.tokenizer['sha256'][:12]}..., that of {manifest.tokenizer['file']}"
        )
    split, index = arguments.split, arguments.index
    if manifest.kind == "text":
        tokens = TokenStore(arguments.prefix, split)
        length = arguments.row_length
        check_index(index, -(-tokens.num_tokens // length), f"rows of {length} tokens", split)
        return token_panels(
            tokens.read(index * length, min((index + 1) * length, tokens.num_tokens)), tokenizer, config
        )
    store = PairStore(arguments.prefix, split) if manifest.kind == "pairs" else PageStore(arguments.prefix, split)
    check_index(index, len(store), manifest.kind, split)
    page = store.page(index)
    kind = "color" if page.has_color else "gray"
    caption = f"{page.num_patches:,} patches of {page.patch_size} x {page.patch_size}, {kind}, stored in "
    caption += f"{len(store.pages[index]):,} bytes"
    print(f"{split} {index:<8} {caption}")
    panels = [Panel(page.patches(channels(page)), caption)]
    if isinstance(store, PairStore):
        panels += token_panels(store.tokens[index], tokenizer, config)
    return panels


def token_panels(tokens: "np.ndarray", tokenizer: "Tokenizer | None", config: RenderingConfig) -> "list[Panel]":
    """The text of tokens, rendered; nothing without a tokenizer."""
    if tokenizer is None:
        print(f"{len(tokens):,} tokens: {' '.join(map(str, tokens[:16]))} ... (--tokenizer decodes them)")
        return []
    text = readable(tokens, tokenizer)
    print(f"{len(tokens):,} tokens: {text}")
    return text_panels(text, config, label=f"text of the {len(tokens):,} tokens, page")


def readable(tokens: "np.ndarray", tokenizer: "Tokenizer") -> str:
    """The text of tokens with BOS and EOS made visible."""
    parts: list[str] = []
    span: list[int] = []
    for token in [*tokens.tolist(), None]:
        if token is None or token in (tokenizer.bos_id, tokenizer.eos_id):
            parts.append(tokenizer.decode(span))
            parts.append("" if token is None else "⟨s⟩" if token == tokenizer.bos_id else "⟨/s⟩")
            span = []
        else:
            span.append(token)
    return "".join(parts)


def describe(prefix: str, manifest: "Manifest") -> None:
    """The dataset in a few lines."""
    unit = "documents" if manifest.kind == "text" else manifest.kind.replace("pixels", "pages")
    print(f"{prefix}: {manifest.kind} dataset, made by {manifest.created_by}")
    for split, entry in manifest.splits.items():
        counts = [(entry.documents, "documents"), (entry.sequences, unit), (entry.patches, "patches")]
        counts.append((entry.tokens, "tokens"))
        shown = {name: f"{count:,} {name}" for count, name in counts if count}
        print(f"  {split:<9}{', '.join(shown.values()) or 'empty'}")
    if manifest.rendering:
        fonts = manifest.rendering["fonts"]
        print(
            f"  rendering {manifest.rendering['mode']}, {manifest.rendering['patch_size']}-pixel patches, "
            f"{fonts[0]['name']} and {len(fonts) - 1} more fonts"
        )
    if manifest.tokenizer:
        print(f"  tokenizer {manifest.tokenizer['file']}, {manifest.tokenizer['vocab_size']:,} pieces")


def check_index(index: int, count: int, unit: str, split: str) -> None:
    """Raise UserError for a record that does not exist."""
    if not 0 <= index < count:
        raise UserError(
            f"--index {index}: the {split} split has {count:,} {unit}"
            + (f", 0 to {count - 1}" if count else ", so there is nothing to show")
        )


def channels(page: "Page") -> int:
    """Channels that the picture of a page needs."""
    return 3 if page.has_color else 1


def draw(panels: "list[Panel]", title: str, arguments: argparse.Namespace) -> None:
    """Write the picture."""
    from megatron_pixel.drawing import page_sheet, save_png

    if not panels:
        raise UserError("nothing to draw: the dataset holds tokens only; --tokenizer MODEL decodes them")
    picture = page_sheet(panels, title, patches_per_row=arguments.patches_per_row, scale=arguments.scale)
    try:
        save_png(picture, arguments.output)
    except OSError as error:
        raise UserError(f"cannot write {arguments.output}: {error.strerror or error}") from None
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
