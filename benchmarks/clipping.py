#!/usr/bin/env python
"""What of each script would fall outside the strip, and what does after letters and marks are fitted into it?

    python benchmarks/clipping.py
    python benchmarks/clipping.py --json benchmarks/results/clipping.json --picture docs/pictures/clipping.png

For every script of the font chain: each assigned letter and digit, each of its combining marks on each letter, two
marks on a letter, two letters joined by a virama, and the same with a mark; of the combinations evenly spaced ones
where there are too many.

- ``before``: drawn at the same size in a strip twice as high, without any fitting (preset ``released``). Counted is
  what has ink above or below the 16 rows of a page.
- ``after``: as users get it. Counted is what loses more than the tolerance, a quarter of a pixel of ink in some row,
  to the upper or the lower edge; and the most that any loses, in parts of a pixel.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering.blit import HIGH, LOW
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.harfbuzz import ShapingFont
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.rendering.unicode_tables import GENERAL_CATEGORIES, load_tables

SIZE, BASELINE = 16, 12
TOLERANCE = 64
"""Ink of a pixel, of 255, that may be cut: letters are left alone that are a quarter of a pixel too tall."""
MAIN_SCRIPTS = tuple("Latn Grek Cyrl Arab Deva Thai Hani Hira Kana Hang".split())
"""Those of the seventeen languages that the renderer is tested in."""
MOST = 4000
# Western marks belong to no script; Latin, Greek and Cyrillic use them all.
_ACCENTS = tuple(map(chr, (*range(0x300, 0x315), *range(0x323, 0x329), 0x32D, 0x330, 0x331, 0x342)))
_VIRAMA = 9  # canonical combining class


@dataclass(frozen=True)
class Outside:
    """What of a text lies outside the strip."""

    above: int
    """Rows of ink above it, in a taller strip."""
    below: int
    """Rows of ink below it."""
    cut: int
    """The most ink of a pixel, 0 to 255, that a page of ordinary height loses at its edges."""


class Measure:
    """The fonts of the chain in a strip of ordinary height, fitted, and in one twice as high, not fitted."""

    def __init__(self, renderer: Renderer | None = None) -> None:
        chain = find_fonts([], "default")
        known = [ShapingFont(font.path, font.index, (1, 1)).codepoints() for font in chain]
        self.characters = np.unique(np.concatenate(known))
        """uint32: all characters that the fonts have."""
        self.renderer = renderer or Renderer(RenderingConfig(mode="gray"))
        self.tall = Renderer(
            RenderingConfig(
                mode="gray",
                preset="released",
                fonts=[str(font.path) for font in chain],
                patch_size=2 * SIZE,
                font_size=SIZE / 2,
            )
        )
        self._lost: dict[tuple[int, int], int] = {}

    def outside(self, text: str) -> Outside:
        """Measure a text that fits on a page."""
        columns = self.tall.render(text).columns[: -2 * SIZE]
        rows = np.flatnonzero((columns < 255).any(axis=0)) - (self.tall.baseline - BASELINE)
        above, below = (max(-int(rows[0]), 0), max(int(rows[-1]) - SIZE + 1, 0)) if len(rows) else (0, 0)
        return Outside(above, below, self.cut(self.renderer.render(text)))

    def cut(self, page: Page) -> int:
        """The most ink of a pixel that any glyph of the page loses at the upper or lower edge."""
        assert page.marks is not None
        return max((self._cut(*mark) for mark in set(map(tuple, page.marks.glyphs[:2].T.tolist()))), default=0)

    def _cut(self, glyph: int, up: int) -> int:
        if (glyph, up) not in self._lost:
            self._lost[glyph, up] = self._ink_outside(glyph, up)
        return self._lost[glyph, up]

    def _ink_outside(self, glyph: int, up: int) -> int:
        atlas = self.renderer._atlas
        font, number = atlas._font_of(glyph)
        if font == atlas._color_font:
            return 0  # a picture, scaled to the strip
        bitmap, _, top = atlas._draw(font, number, lifted=up != 0)
        if up != 0:
            atlas.sprite(glyph, up)  # finds out how far the mark may move
            top += min(max(up, int(atlas.table[LOW, glyph])), int(atlas.table[HIGH, glyph]))
        above, below = max(top - BASELINE, 0), max(len(bitmap) - top - (SIZE - BASELINE), 0)
        lost = np.concatenate([bitmap[:above], bitmap[len(bitmap) - below :]])
        return 255 - int(lost.min(initial=255))


class Texts:
    """Letters, marks and their combinations, by script, as far as the fonts have them."""

    def __init__(self, characters: np.ndarray) -> None:
        self._tables = load_tables()
        self._characters = characters
        self.scripts = [
            self._tables.script_tags[i]
            for i in np.unique(self._tables.script[characters]).tolist()
            if self._tables.script_tags[i] not in ("Zyyy", "Zinh", "Zzzz")
        ]

    def of(self, script: str, most: int, most_letters: int | None = None) -> list[str]:
        """Texts of a script: all its letters (or at most this many), and of each kind of combination at most ``most``.

        Scripts whose characters are all of other kinds have none."""
        letters, marks = self._members(script, "LN"), self._members(script, "M")
        if script in ("Latn", "Grek", "Cyrl"):
            marks += _ACCENTS
        viramas = [c for c in marks if self._tables.combining_class[ord(c)] == _VIRAMA]
        return [
            *spread([letters], most_letters or max(len(letters), 1)),
            *spread([letters, marks], most),
            *spread([letters, marks, marks], most),
            *spread([letters, viramas, letters], most),
            *spread([letters, viramas, letters, marks], most),
        ]

    def _members(self, script: str, kinds: str) -> tuple[str, ...]:
        tables, characters = self._tables, self._characters
        number = tables.script_tags.index(script)
        # Marks of a few scripts, such as the vowels of Arabic, are in their script extensions.
        own = tables.script[characters] == number
        shared = (tables.script[characters] <= 1) & tables.script_sets[tables.script_extension[characters], number]
        shared &= tables.script_extension[characters] > 1
        kind = np.isin(
            tables.category[characters], [i for i, name in enumerate(GENERAL_CATEGORIES) if name and name[0] in kinds]
        )
        return tuple(map(chr, characters[(own | shared) & kind].tolist()))


def spread(parts: list[tuple[str, ...] | list[str]], most: int) -> Iterator[str]:
    """The products of the parts, or evenly spaced ones, at most ``most``."""
    count = int(np.prod([len(part) for part in parts], dtype=np.int64))
    step = max(-(-count // most), 1)
    while step > 1 and any(step % len(part) == 0 for part in parts if len(part) > 1):
        step += 1  # otherwise one part would never change
    for number in range(0, count, step):
        chosen = []
        for part in reversed(parts):
            number, place = divmod(number, len(part))
            chosen.append(part[place])
        yield "".join(reversed(chosen))


def figures_of(texts: list[str], measure: Measure) -> tuple[dict[str, Any], str]:
    """Figures of texts, and the one that would lose most."""
    found = [measure.outside(text) for text in texts]
    worst = max(range(len(texts)), key=lambda i: found[i].above + found[i].below)
    return {
        "texts": len(texts),
        "outside_before": sum(one.above > 0 or one.below > 0 for one in found),
        "rows_above_before": max(one.above for one in found),
        "rows_below_before": max(one.below for one in found),
        "cut_after": sum(one.cut > TOLERANCE for one in found),
        "largest_cut_after": max(one.cut for one in found) / 255,
    }, texts[worst]


def draw(samples: dict[str, str], measure: Measure, across: int = 4, scale: int = 2) -> Image.Image:
    """Name of a script, the worst text in the tall strip, on red what is outside, and as drawn; so many ``across``."""
    names = Renderer(RenderingConfig(mode="gray"))
    first = measure.tall.baseline - BASELINE
    red, green = (255, 214, 208), (232, 244, 232)
    cards = []
    for script, text in samples.items():
        card = np.full((12 * SIZE, 2 * SIZE + 2, 3), 255, dtype=np.uint8)
        card[4 * SIZE : 7 * SIZE + 8, :first] = card[4 * SIZE : 7 * SIZE + 8, first + SIZE : 2 * SIZE] = red
        card[8 * SIZE : 11 * SIZE + 8, first : first + SIZE] = green
        name = names.render(script).columns[:-SIZE]
        tall, fitted = measure.tall.render(text).columns[: -2 * SIZE], measure.renderer.render(text).columns[:-SIZE]
        for strip, column, row in ((name, 0, first), (tall, 4 * SIZE, 0), (fitted, 8 * SIZE, first)):
            place = card[column : column + 3 * SIZE + 8, row : row + strip.shape[1]]
            strip = strip[: len(place)]
            place[: len(strip)] = np.minimum(place[: len(strip)], strip[..., None])
        cards.append(card)
    cards += [np.full_like(cards[0], 255)] * (-len(cards) % across)
    down = len(cards) // across
    columns = [np.concatenate(cards[i * down : (i + 1) * down], axis=1) for i in range(across)]
    picture = Image.fromarray(np.ascontiguousarray(np.concatenate(columns, axis=0).swapaxes(0, 1)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def main() -> None:
    """Measure all scripts and show them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=MOST, help="texts of each kind and script (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="ISO 15924 tags, such as Thai")
    parser.add_argument("--picture", type=Path, help="draw the worst text of each script to this file")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    tool = Measure()
    texts = Texts(tool.characters)
    figures: dict[str, Any] = {}
    worst: dict[str, str] = {}
    print("script    texts   before: outside (rows above, below)   after: cut (largest, parts of a pixel)")
    for script in sorted(texts.scripts, key=lambda tag: (tag not in MAIN_SCRIPTS, tag)):
        if arguments.only and script not in arguments.only:
            continue
        if not (found := texts.of(script, arguments.most)):
            continue
        figures[script], worst[script] = figures_of(found, tool)
        shown = figures[script]
        print(f"{script:6} {shown['texts']:8} {shown['outside_before']:17}", end=" ")
        print(f"({shown['rows_above_before']}, {shown['rows_below_before']}) ", end="")
        print(f"{shown['cut_after']:23} ({shown['largest_cut_after']:.2f})")
    result_file.write(arguments.json, figures)
    if arguments.picture:
        draw({s: t for s, t in worst.items() if figures[s]["outside_before"]}, tool).quantize(64).save(
            arguments.picture
        )


if __name__ == "__main__":
    main()
