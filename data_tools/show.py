"""Look into a dataset, or at the rendering of a text.

python data_tools/show.py P --index 3 --output page.png
python data_tools/show.py P --index 3 --output pair.png --split heldout --tokenizer tokenizer.model
python data_tools/show.py P --sheet 12 --output sheet.png
python data_tools/show.py P --sheet 12 --first 5000 --columns 4 --lines 6 --output sheet.png
python data_tools/show.py --text "Hello, world" --output page.png
python data_tools/show.py P --index 3 --checkpoint runs/demo --attention 4 --output predicted.png

--sheet draws a contact sheet: so many records chosen at random (the same ones for the same --seed), or, with --first,
those from there on. Text of pairs and of text datasets is drawn in blue. --checkpoint draws what a model predicts for
each patch of a page, and its errors; --attention beside it what the patches look at in one layer.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.command_line import add_dataclass_arguments, from_arguments
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data.preprocess_arguments import parse_with_sections, positive_int
from megatron_pixel.data.split import SPLITS, TRAIN

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from megatron_pixel.contact_sheet import Card
    from megatron_pixel.data.manifest import Manifest
    from megatron_pixel.data.tokenizer import Tokenizer
    from megatron_pixel.drawing import Panel
    from megatron_pixel.rendering.page import Page
    from megatron_pixel.rendering.renderer import Renderer

ROW_UNITS = {"text": "row", "pixels": "page", "pairs": "pair", "strings": "piece"}


def main(words: Sequence[str]) -> None:
    """Print a summary, and draw what was asked for."""
    arguments = parse(words)
    config = from_arguments(arguments, RenderingConfig, "rendering")
    if arguments.text is not None:
        from megatron_pixel.rendering.renderer import Renderer

        text = sys.stdin.read() if arguments.text == "-" else arguments.text
        pages = Renderer(config).pages(text)
        if arguments.checkpoint is not None:
            draw_predictions(pages[0], ("text", 0), arguments)
            return
        draw_panels(text_panels(pages, "page"), "Rendered text", arguments)
        return
    records = Records(arguments, config)
    if arguments.sheet is not None:
        draw_sheet(records, arguments)
        return
    records.check(arguments.index, "--index")
    if arguments.checkpoint is not None:
        page = records.page(arguments.index)
        if page is None:
            raise UserError("--checkpoint draws predictions for pages; a text dataset has none")
        draw_predictions(page, (arguments.prefix, arguments.index), arguments)
        return
    panels = records.panels(arguments.index)
    draw_panels(panels, f"{arguments.prefix}, {arguments.split} {arguments.index}", arguments)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("prefix", nargs="?", metavar="P", help="output prefix of preprocess.py")
    parser.add_argument("--text", help="render this text instead (- for standard input)")
    parser.add_argument("--index", type=int, default=0, help="page, pair, piece, or row of a text dataset (default: 0)")
    parser.add_argument("--split", choices=SPLITS, default=TRAIN, help=f"part of the dataset (default: {TRAIN})")
    parser.add_argument("--tokenizer", metavar="MODEL", help="decodes the tokens of text and pair datasets")
    parser.add_argument(
        "--row-length", type=positive_int, default=1024, metavar="N", help="tokens of a text row (default: 1024)"
    )
    parser.add_argument("--output", type=Path, metavar="PNG", help="picture to write; without it only the summary")
    parser.add_argument("--patches-per-row", type=positive_int, metavar="N", help="default: 64, on a contact sheet 32")
    parser.add_argument("--scale", type=positive_int, default=1, help="enlargement of the pixels (default: 1)")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="draw predictions: a run, checkpoint or model")
    parser.add_argument("--attention", type=positive_int, metavar="LAYER", help="and the attention of this layer")
    sheet = parser.add_argument_group("contact sheet")
    sheet.add_argument("--sheet", type=positive_int, metavar="N", help="draw so many records")
    sheet.add_argument("--first", type=int, metavar="I", help="in order from record I on, instead of a random sample")
    sheet.add_argument("--seed", type=int, default=0, help="of the random sample (default: 0)")
    sheet.add_argument("--columns", type=positive_int, default=3, help="records side by side (default: 3)")
    sheet.add_argument("--lines", type=positive_int, default=12, help="lines of a record at the most (default: 12)")
    add_dataclass_arguments(parser, RenderingConfig, "rendering")
    arguments = parse_with_sections(parser, words, {"rendering": RenderingConfig})
    if (arguments.prefix is None) == (arguments.text is None):
        parser.error("give either the prefix of a dataset or --text")
    if arguments.sheet is None and arguments.first is not None:
        parser.error("--first belongs to --sheet; a single record is chosen with --index")
    if arguments.sheet is not None and arguments.text is not None:
        parser.error("--sheet draws records of a dataset, not a --text")
    if arguments.checkpoint is not None and (arguments.output is None or arguments.sheet is not None):
        parser.error("--checkpoint draws one page: it needs --output, and goes without --sheet")
    if arguments.attention is not None and arguments.checkpoint is None:
        parser.error("--attention needs the --checkpoint whose layer it is")
    return arguments


class Records:
    """One split of a dataset: its pages, pairs, pieces of text, or rows of tokens, as what can be drawn.

    Prints what the dataset is. Raises UserError for a tokenizer that the dataset was not made with.
    """

    def __init__(self, arguments: argparse.Namespace, config: RenderingConfig) -> None:
        from megatron_pixel.data.manifest import Manifest
        from megatron_pixel.data.stores import PageStore, PairStore, StringStore, TokenStore

        manifest = Manifest.read(arguments.prefix)
        describe(arguments.prefix, manifest)
        self.split: str = arguments.split
        self.unit = ROW_UNITS[manifest.kind]
        self._config = config
        self._renderer: Renderer | None = None
        self._row_length: int = arguments.row_length
        self._tokenizer = open_tokenizer(arguments.tokenizer, manifest)
        stores: dict[str, Any] = {"text": TokenStore, "pixels": PageStore, "pairs": PairStore, "strings": StringStore}
        self._kind = manifest.kind
        self._store: Any = stores[manifest.kind](arguments.prefix, arguments.split)
        if self._kind == "strings":
            from megatron_pixel.config.schema import RenderingOverrides
            from megatron_pixel.data.rendered import StringPages

            self._string_pages = StringPages(self._store, RenderingOverrides())

    def __len__(self) -> int:
        if self._kind == "text":
            return -(-self._store.num_tokens // self._row_length)
        return len(self._store)

    def check(self, index: int, option: str) -> None:
        """Raise UserError for a record that does not exist."""
        if not 0 <= index < len(self):
            unit = f"{self.unit}s" + (f" of {self._row_length} tokens" if self.unit == "row" else "")
            raise UserError(
                f"{option} {index}: the {self.split} split has {len(self):,} {unit}"
                + (f", 0 to {len(self) - 1}" if len(self) else ", so there is nothing to show")
            )

    def panels(self, index: int) -> "list[Panel]":
        """One record with everything that is known of it, which is also printed."""
        from megatron_pixel.drawing import Panel

        panels = []
        page, size = self._page(index)
        if page is not None:
            kind = "color" if page.has_color else "gray"
            caption = f"{page.num_patches:,} patches of {page.patch_size} x {page.patch_size}, {kind}, {size}"
            print(f"{self.split} {index:<8} {caption}")
            panels.append(Panel(page.patches(channels(page)), caption))
        tokens = self._tokens(index)
        if tokens is None:
            return panels
        if self._tokenizer is None:
            print(f"{len(tokens):,} tokens: {' '.join(map(str, tokens[:16]))} ... (--tokenizer decodes them)")
        else:
            text = readable(tokens, self._tokenizer)
            print(f"{len(tokens):,} tokens: {text}")
            panels += text_panels(self._render(text), f"text of the {len(tokens):,} tokens, page")
        return panels

    def page(self, index: int) -> "Page | None":
        """The page of a record, if it has one."""
        return self._page(index)[0]

    def card(self, index: int) -> "Card":
        """One record for a contact sheet."""
        from megatron_pixel.contact_sheet import Card

        page, size = self._page(index)
        remarks = [] if page is None else [f"{page.num_patches:,} patches", size]
        tokens = self._tokens(index)
        text = []
        if tokens is not None:
            remarks.append(f"{len(tokens):,} tokens")
            if self._tokenizer is not None:
                # Without the black patches: it is no page, and goes on where the line ends.
                pages = self._render(readable(tokens, self._tokenizer))
                text = [shown.patches(channels(shown))[:-1] for shown in pages]
        strip = None if page is None else page.patches(channels(page))
        return Card(f"{self.unit} {index:,}", ", ".join(remarks), strip, text)

    def _page(self, index: int) -> "tuple[Page | None, str]":
        """The page of a record, and how much it takes on disk."""
        if self._kind == "text":
            return None, ""
        if self._kind == "strings":
            return self._string_pages.page(index), f"{len(self._store.piece(index)):,} characters"
        return self._store.page(index), f"stored in {len(self._store.pages[index]):,} bytes"

    def _tokens(self, index: int) -> "np.ndarray | None":
        if self._kind == "text":
            start = index * self._row_length
            return self._store.read(start, min(start + self._row_length, self._store.num_tokens))
        return self._store.tokens[index] if self._kind == "pairs" else None

    def _render(self, text: str) -> "list[Page]":
        from megatron_pixel.rendering.renderer import Renderer

        if self._renderer is None:
            self._renderer = Renderer(self._config)
        return self._renderer.pages(text)


def open_tokenizer(path: str | None, manifest: "Manifest") -> "Tokenizer | None":
    """The tokenizer, if one was named; raises UserError where the dataset was made with another one."""
    from megatron_pixel.data.tokenizer import Tokenizer

    tokenizer = Tokenizer(path) if path else None
    if tokenizer and manifest.tokenizer and tokenizer.sha256 != manifest.tokenizer["sha256"]:
        raise UserError(
            f"{path} is not the tokenizer of this dataset: sha256 {tokenizer.sha256[:12]}... instead of "
            f"{manifest.tokenizer['sha256'][:12]}..., that of {manifest.tokenizer['file']}"
        )
    return tokenizer


def text_panels(pages: "list[Page]", label: str) -> "list[Panel]":
    """Pages of a text; says what each shows."""
    from megatron_pixel.drawing import Panel

    panels = []
    for number, page in enumerate(pages):
        span = f"characters {page.start:,} to {page.end:,}"
        caption = f"{label} {number + 1} of {len(pages)}: {page.num_patches:,} patches, {span}"
        print(caption)
        panels.append(Panel(page.patches(channels(page)), caption))
    return panels


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
    unit = {"text": "documents", "pixels": "pages", "pairs": "pairs", "strings": "pieces"}[manifest.kind]
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


def channels(page: "Page") -> int:
    """Channels that the picture of a page needs."""
    return 3 if page.has_color else 1


def draw_sheet(records: Records, arguments: argparse.Namespace) -> None:
    """Draw a contact sheet."""
    from megatron_pixel.contact_sheet import contact_sheet

    total = len(records)
    if arguments.first is None:
        records.check(0, "--sheet")
        chosen = sorted(random.Random(arguments.seed).sample(range(total), min(arguments.sheet, total)))
        which = f"chosen at random (seed {arguments.seed})"
    else:
        records.check(arguments.first, "--first")
        chosen = list(range(arguments.first, min(arguments.first + arguments.sheet, total)))
        which = f"from {arguments.first:,} on"
    caption = f"{len(chosen):,} of {total:,} {records.unit}s, {which}"
    print(caption)
    cards = [records.card(index) for index in chosen]
    if not any(card.strips() for card in cards):
        raise nothing_to_draw()
    if arguments.output is None:
        return
    try:
        picture = contact_sheet(
            cards,
            f"{Path(arguments.prefix).name}, {arguments.split}",
            caption,
            columns=arguments.columns,
            patches_per_row=arguments.patches_per_row or 32,
            scale=arguments.scale,
            most_lines=arguments.lines,
        )
    except ValueError as error:
        raise UserError(f"--sheet {arguments.sheet}: {error}") from None
    save(picture, arguments.output)


def draw_panels(panels: "list[Panel]", title: str, arguments: argparse.Namespace) -> None:
    """Draw pages below each other."""
    from megatron_pixel.drawing import page_sheet

    if arguments.output is None:
        return
    if not panels:
        raise nothing_to_draw()
    picture = page_sheet(panels, title, patches_per_row=arguments.patches_per_row or 64, scale=arguments.scale)
    save(picture, arguments.output)


def draw_predictions(page: "Page", origin: tuple[str, int], arguments: argparse.Namespace) -> None:
    """Draw a page with what a model predicts for it; its attention, where that is asked for, in a second picture.

    The second one stands beside the first: ``page.png`` and ``page.attention.png``.
    """
    from megatron_pixel.parallel.quiet import silence_libraries

    silence_libraries()
    from megatron_pixel.drawing import prediction_sheet
    from megatron_pixel.interop.open import open_any
    from megatron_pixel.model_pictures import attention_sheet
    from megatron_pixel.training.page_predictions import predict_page

    opened = open_any(arguments.checkpoint)
    patches = page.patches(opened.model.num_channels)
    found = predict_page(opened.source, opened.model, patches, origin, arguments.attention)
    per_row = arguments.patches_per_row or 48
    step = "" if opened.step is None else f", step {opened.step:,}"
    title = f"{arguments.checkpoint}{step}: {origin[0]} {origin[1]}"
    target = opened.model.patch_target
    sheet = prediction_sheet(
        found.patches, found.predictions, found.errors, title, patch_target=target, patches_per_row=per_row
    )
    known = found.errors[1:]
    print(f"{len(found.patches):,} patches, mean error {known[known == known].mean():.4f}")
    save(sheet, arguments.output)
    if found.attention is not None:
        title += f", attention of layer {found.layer}"
        path = arguments.output.with_name(f"{arguments.output.stem}.attention{arguments.output.suffix}")
        save(attention_sheet(found.patches, found.attention, title, patches_per_row=per_row), path)


def nothing_to_draw() -> UserError:
    """Of tokens alone there is no picture."""
    return UserError("nothing to draw: the dataset holds tokens only; --tokenizer MODEL decodes them")


def save(picture: "Image", path: Path) -> None:
    """Write the picture, and say so."""
    from megatron_pixel.drawing import save_png

    try:
        save_png(picture, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    print(f"wrote {path} ({picture.width:,} x {picture.height:,} pixels)")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
