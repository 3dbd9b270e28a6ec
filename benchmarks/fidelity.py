#!/usr/bin/env python
"""Do our pages equal those of Pango-Cairo, pixel by pixel, and where not, why?

    python benchmarks/fidelity.py
    python benchmarks/fidelity.py --json benchmarks/results/fidelity.json

Both sides draw the same lines with the same font, Noto Sans: printable ASCII (real documents of 2,500 characters, and
every pair of characters), texts in languages of Latin, Greek and Cyrillic script, composed (NFC) and decomposed (NFD),
and every letter and every combining mark of the font. Differing pixels are counted by cause:

- ``squeezed``: ours fits letters that are too tall into the strip, Pango cuts them; without that (preset ``released``)
  the pixel is the same.
- ``overlap``: two glyphs of different runs share the pixel. Cairo adds up ink within a run, as we do everywhere, but
  lays one run over the other.
- ``hinting``: a glyph that the autohinter of the system's FreeType treats in another way than ours does.

Pango needs its Python bindings in some interpreter (Debian: python3-gi python3-gi-cairo gir1.2-pango-1.0).
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from examples import demo_corpus
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering.blit import sprite_keys
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.harfbuzz import ShapingFont
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.rendering.unicode_tables import load_tables

PYTHON = "/usr/bin/python3"
SIZE = 16
PATCHES = 1600
"""Length of the strips in patches: no document is cut."""
CHARACTERS = 2500
LANGUAGES = "bg cs da de el eo es fi fr hu id it kk lt lv mn nl pl pt ro ru sk sq sr sv sw tr uk vi".split()
Form = Literal["NFC", "NFD"]
"""Normalization: composed, or letters and marks apart."""
CAUSES = ("squeezed", "overlap", "hinting")
# Letters of every height and of each script, for combining marks to stand on.
BASES = "aHifgфΩ"


def pango_version(python: str = PYTHON) -> str | None:
    """Versions of Pango and Cairo that ``python`` has bindings for, or None."""
    code = (
        "import pango_peer as p; print('Pango', p.Pango.version_string() + ', Cairo', p.cairo.cairo_version_string())"
    )
    try:
        done = subprocess.run(
            [python, "-c", code],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "benchmarks")},
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def pango_strips(documents: Sequence[str], font: Path, python: str = PYTHON) -> Iterator[np.ndarray]:
    """Draw each document with Pango-Cairo in this font: uint8 [PATCHES * SIZE, SIZE], column after column."""
    with tempfile.TemporaryDirectory() as scratch:
        fonts = Path(scratch) / "fonts"
        fonts.mkdir()
        (fonts / font.name).symlink_to(font)
        config = Path(scratch) / "fonts.conf"
        config.write_text(
            f"<fontconfig><dir>{fonts}</dir><cachedir>{scratch}/cache</cachedir></fontconfig>", encoding="utf-8"
        )
        job = Path(scratch) / "job.json"
        job.write_text(json.dumps({"documents": list(documents), "patches": PATCHES}), encoding="utf-8")
        columns = PATCHES * SIZE
        with (
            job.open("rb") as stream,
            subprocess.Popen(
                [python, str(ROOT / "benchmarks" / "pango_pages.py")],
                stdin=stream,
                stdout=subprocess.PIPE,
                env={**os.environ, "FONTCONFIG_FILE": str(config)},
            ) as process,
        ):
            assert process.stdout is not None
            for _ in documents:
                pixels = process.stdout.read(columns * SIZE)
                if len(pixels) < columns * SIZE:
                    raise SystemExit(f"Pango ended early, with status {process.wait()}")
                yield np.frombuffer(pixels, dtype=np.uint8).reshape(SIZE, columns).T


class Comparison:
    """Ours against Pango's, in the first font of the chain."""

    def __init__(self, python: str = PYTHON) -> None:
        self._python = python
        self.font = find_fonts([], "default")[0]
        fonts = [str(self.font.path)]
        self._renderer = Renderer(RenderingConfig(mode="gray", seq_length=PATCHES, fonts=fonts))
        self._plain = Renderer(RenderingConfig(mode="gray", seq_length=PATCHES, fonts=fonts, preset="released"))

    def compare(self, documents: Sequence[str]) -> dict[str, Any]:
        """Figures of these documents: how many are equal, and differing pixels by cause."""
        pixels, places = Counter[str](), Counter[str]()
        equal = total = 0
        for text, theirs in zip(documents, pango_strips(documents, self.font.path, self._python), strict=True):
            causes = self.causes(text, theirs)
            total += causes.size
            equal += not causes.any()
            for number, name in enumerate(CAUSES, start=1):
                hit = (causes == number).any(axis=1)
                pixels[name] += int((causes == number).sum())
                places[name] += int((hit[1:] > hit[:-1]).sum() + hit[0])
        return {
            "documents": len(documents),
            "equal_documents": equal,
            "pixels": total,
            **{
                f"{name}_{what}": counts[name]
                for name in CAUSES
                for what, counts in (("pixels", pixels), ("places", places))
            },
        }

    def page(self, text: str) -> Page:
        """Our page of the text, as every user gets it."""
        return self._renderer.render(text)

    def causes(self, text: str, theirs: np.ndarray) -> np.ndarray:
        """The cause of each pixel's difference, uint8 [columns, SIZE]: 0 equal, i + 1 the i-th of CAUSES."""
        page, plain = self.page(text), self._plain.render(text)
        if page.end != len(text) or page.num_patches != plain.num_patches:
            raise ValueError(f"{text[:40]!r}... does not fit into {PATCHES} patches")
        length = (page.num_patches - 1) * SIZE
        if (theirs[length:] != 255).any():
            raise ValueError(f"{text[:40]!r}... is longer in Pango's strip than in ours")
        theirs = theirs[:length]
        differs, unsqueezed = page.columns[:length] != theirs, plain.columns[:length] != theirs
        causes = np.where(differs, np.uint8(1 + CAUSES.index("squeezed")), np.uint8(0))
        if (differs & unsqueezed).any():
            overlap = unsqueezed & self._overlaps(plain, theirs)
            causes[differs & unsqueezed] = 1 + CAUSES.index("hinting")
            causes[differs & overlap] = 1 + CAUSES.index("overlap")
        return causes

    def _overlaps(self, page: Page, theirs: np.ndarray) -> np.ndarray:
        """Where glyphs share a pixel, and theirs lies between ink added up and each glyph laid over the others."""
        assert page.marks is not None
        glyphs, up, pens = page.marks.glyphs
        cells = self._plain.sprite_cells(sprite_keys(glyphs, up))
        inked = np.zeros(theirs.shape, dtype=np.int32)
        over = np.full(theirs.shape, 255.0)
        for first, width, left in zip(cells.first, cells.width, pens + cells.bearing, strict=True):
            begin, end = max(-left, 0), min(width, len(theirs) - left)
            if first < 0 or begin >= end:
                continue
            ink = cells.ink[(first + begin) * SIZE : (first + end) * SIZE].reshape(-1, SIZE)
            inked[left + begin : left + end] += ink > 0
            over[left + begin : left + end] *= 1 - ink / 255
        return (inked > 1) & (theirs >= page.columns[: len(theirs)]) & (theirs <= over + 1)


def printable_ascii(count: int) -> list[str]:
    """Real documents of 2,500 characters, other characters left out."""
    ascii_only = ("".join(c if " " <= c <= "~" else " " for c in message["text"]) for message in demo_corpus.messages())
    texts = (" ".join(text.split()) for text in ascii_only)
    cut = (text[i : i + CHARACTERS] for text in texts for i in range(0, 3 * CHARACTERS, CHARACTERS))
    return list(itertools.islice((text for text in cut if len(text) == CHARACTERS), count))


def ascii_pairs() -> list[str]:
    """Every pair of printable ASCII characters, alone and within words."""
    printable = [chr(c) for c in range(0x20, 0x7F)]
    return [end.join(first + second for second in printable) for first in printable for end in ("", " ")]


def translations(characters: np.ndarray, form: Form) -> tuple[dict[str, list[str]], int]:
    """Documents by language in a normalization form, only of ``characters``; and how many others were left out."""
    by_language: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for document in demo_corpus.translations():
        language = document["source"].removeprefix("django-")
        if language in by_language:
            by_language[language].append(unicodedata.normalize(form, " ".join(document["text"].split())))
    known = frozenset(map(chr, characters.tolist()))
    left_out = sum(c not in known for texts in by_language.values() for text in texts for c in text)
    kept = {name: ["".join(filter(known.__contains__, text)) for text in texts] for name, texts in by_language.items()}
    return kept, left_out


def letters_and_marks(characters: np.ndarray) -> dict[str, list[str]]:
    """All letters of Latin, Greek and Cyrillic between others, and all combining marks on some letters."""
    tables = load_tables()
    scripts = [tables.script_tags.index(tag) for tag in ("Latn", "Grek", "Cyrl")]
    wanted = [chr(c) for c in characters.tolist() if tables.script[c] in scripts]
    letters = [c for c in wanted if unicodedata.category(c).startswith("L")]
    marks = [chr(c) for c in characters.tolist() if unicodedata.category(chr(c)) == "Mn"]
    return {
        "letters": _joined([f"H{c}a" for c in letters]),
        "marks": _joined([base + mark for base in BASES for mark in marks]),
    }


def _joined(words: list[str]) -> list[str]:
    return [" ".join(words[i : i + 400]) for i in range(0, len(words), 400)]


def main() -> None:
    """Compare and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1000, help="real documents of ASCII (default: %(default)s)")
    parser.add_argument(
        "--pango-python", default=PYTHON, help="interpreter with Pango's bindings (default: %(default)s)"
    )
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    version = pango_version(arguments.pango_python)
    if version is None:
        raise SystemExit(f"{arguments.pango_python} has no bindings of Pango; see --help")
    comparison = Comparison(arguments.pango_python)
    characters = ShapingFont(comparison.font.path, comparison.font.index, (1, 1)).codepoints()
    groups = {"ascii": printable_ascii(arguments.documents), "ascii_pairs": ascii_pairs()}
    left_out = 0
    for form in get_args(Form):
        texts, missing = translations(characters, form)
        left_out += missing
        groups |= {f"{language}_{form}": documents for language, documents in texts.items()}
    groups |= letters_and_marks(characters)
    figures: dict[str, Any] = {"pango": version, "font": comparison.font.path.name, "characters_left_out": left_out}
    print(version)
    print(f"{'':12} documents   equal   " + "   ".join(f"{name} pixels (places)" for name in CAUSES))
    for name, documents in groups.items():
        figures[name] = found = comparison.compare(documents)
        counts = "   ".join(f"{found[f'{c}_pixels']:10} ({found[f'{c}_places']:6})" for c in CAUSES)
        print(f"{name:12} {len(documents):9} {found['equal_documents']:7}   {counts}")
    result_file.write(arguments.json, figures)


if __name__ == "__main__":
    main()
