"""Many pages on one picture: cards side by side, each a page wrapped into lines under its name."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from megatron_pixel.drawing import (
    EDGE,
    FAINT_INK,
    GROUND,
    INK,
    LABEL_SIZE,
    LINE_SPACING,
    MARGIN,
    TEXT_SIZE,
    TITLE_SIZE,
    Color,
    load_font,
    strip_to_rows,
    wrap_text,
)

CARD: Color = (255, 255, 255)
LINE: Color = (238, 240, 244)
TINT: Color = (36, 72, 150)
"""What black becomes in strips of text that is not part of the page."""
PADDING, LINE_GAP, GUTTER = 8, 3, 22
MOST_PIXELS = 120_000_000


@dataclass(frozen=True)
class Card:
    """One record of a dataset: its name, what is to be said of it, and its strips."""

    title: str
    remark: str
    page: np.ndarray | None
    """uint8 [n, P, P, C], the page; None for a record without one."""
    text: Sequence[np.ndarray] = ()
    """Strips like it: text that belongs to the record, drawn below the page in another color."""

    def strips(self) -> list[np.ndarray]:
        """All strips, the page first."""
        return [*([] if self.page is None else [self.page]), *self.text]


def contact_sheet(
    cards: Sequence[Card],
    title: str = "",
    caption: str = "",
    columns: int = 3,
    patches_per_row: int = 32,
    scale: int = 1,
    most_lines: int = 12,
) -> Image.Image:
    """Cards in a grid, to be read row by row.

    Args:
        cards: at least one.
        title: of the sheet; ``caption`` stands below it.
        caption: see there.
        columns: cards side by side; fewer where there are fewer cards.
        patches_per_row: patches in a line of a page.
        scale: enlargement of the pixels.
        most_lines: lines of a page, and of its text, at the most; what is left out is said.

    Raises:
        ValueError: the picture would have more than 120 million pixels.
    """
    strips = [strip for card in cards for strip in card.strips()]
    size = max(strip.shape[1] for strip in strips)
    longest = max(len(strip) for strip in strips)
    width = max(min(patches_per_row, longest) * size * scale, 240) + 2 * PADDING
    columns = min(columns, len(cards))
    inner = columns * width + (columns - 1) * GUTTER
    lines = min(most_lines, -(-longest // patches_per_row))
    if inner * -(-len(strips) // columns) * lines * (size * scale + LINE_GAP) > MOST_PIXELS:
        raise ValueError("the picture would have more than 120 million pixels: fewer pages, lines, or a smaller scale")
    pictures = [_draw(card, width, patches_per_row, scale, most_lines) for card in cards]
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    head = _head(title, caption, inner)
    height = head.height + sum(max(picture.height for picture in row) + GUTTER for row in rows) - GUTTER
    sheet = Image.new("RGB", (inner + 2 * MARGIN, height + 2 * MARGIN), GROUND)
    sheet.paste(head, (MARGIN, MARGIN))
    top = MARGIN + head.height
    for row in rows:
        for column, picture in enumerate(row):
            sheet.paste(picture, (MARGIN + column * (width + GUTTER), top))
        top += max(picture.height for picture in row) + GUTTER
    return sheet


def _head(title: str, caption: str, width: int) -> Image.Image:
    lines = [(line, TITLE_SIZE, INK) for line in wrap_text(title, load_font(TITLE_SIZE), width) if line]
    lines += [(line, TEXT_SIZE, FAINT_INK) for line in wrap_text(caption, load_font(TEXT_SIZE), width) if line]
    heights = [round(size * LINE_SPACING) for _, size, _ in lines]
    picture = Image.new("RGB", (width, sum(heights) + (14 if lines else 0)), GROUND)
    draw = ImageDraw.Draw(picture)
    top = 0
    for (line, size, color), height in zip(lines, heights, strict=True):
        draw.text((0, top + height // 2), line, fill=color, font=load_font(size), anchor="lm")
        top += height
    return picture


def _draw(card: Card, width: int, patches_per_row: int, scale: int, most_lines: int) -> Image.Image:
    """The card: its name and remark, and a framed sheet with its lines."""
    blocks: list[Image.Image | str] = []
    for strip in card.strips():
        shown = strip[: most_lines * patches_per_row]
        blocks.append(_wrapped(shown, patches_per_row, scale, tinted=strip is not card.page))
        if left := len(strip) - len(shown):
            blocks.append(f"... {left:,} more patches")
    label = round(LABEL_SIZE * LINE_SPACING)
    heights = [label if isinstance(block, str) else block.height for block in blocks]
    head = round(TEXT_SIZE * LINE_SPACING) + 2
    picture = Image.new("RGB", (width, head + sum(heights) + PADDING * (len(blocks) + 1)), GROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((0, head // 2), card.title, fill=INK, font=load_font(TEXT_SIZE), anchor="lm")
    draw.text((width, head // 2), card.remark, fill=FAINT_INK, font=load_font(LABEL_SIZE), anchor="rm")
    draw.rectangle((0, head, width - 1, picture.height - 1), fill=CARD, outline=EDGE)
    top = head + PADDING
    for block, height in zip(blocks, heights, strict=True):
        if isinstance(block, str):
            draw.text((width // 2, top + height // 2), block, fill=FAINT_INK, font=load_font(LABEL_SIZE), anchor="mm")
        else:
            picture.paste(block, (PADDING, top))
        top += height + PADDING
    return picture


def _wrapped(strip: np.ndarray, patches_per_row: int, scale: int, tinted: bool) -> Image.Image:
    rows = strip_to_rows(np.repeat(np.repeat(strip, scale, axis=1), scale, axis=2), patches_per_row, LINE_GAP)
    if tinted:
        light = rows.astype(np.float32) / 255
        rows = (light * 255 + (1 - light) * np.array(TINT, dtype=np.float32)).round().astype(np.uint8)
    picture = Image.fromarray(rows)
    size = strip.shape[1] * scale
    draw = ImageDraw.Draw(picture)
    for top in range(size, picture.height, size + LINE_GAP):
        draw.line((0, top + 1, picture.width, top + 1), fill=LINE)
    return picture
