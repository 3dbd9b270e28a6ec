"""What must hold for the pages of any text; used by ``fuzz.py``."""

import random
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from benchmarks import fuzz_texts
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data.preprocess_documents import Converter, Recipe
from megatron_pixel.data.strings import to_bytes, to_text
from megatron_pixel.rendering.blit import sprite_keys
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer

SETTINGS: list[dict[str, Any]] = [
    {},
    {},
    {"mode": "gray"},
    {"mode": "binary"},
    {"seq_length": 24},
    {"patch_size": 8},
    {"patch_size": 24, "mode": "gray"},
    {"patch_size": 32},
    {"patch_size": 16, "font_size": 14.0},
    {"preset": "released"},
    {"preset": "released", "mode": "gray", "patch_size": 32},
]
SECONDS_A_CHARACTER = 2e-3
"""Bound for the first time that a text is drawn, when its glyphs are loaded, beside half a second."""
TIMES_PLAIN = 100
"""Bound for later times, in multiples of the time of plain text of the same length, beside a tenth of a second."""
_SAMPLED = 3


class BrokenPageError(Exception):
    """A page is not as it must be."""


@dataclass
class Worst:
    """The largest figures met, over texts long enough to be measured."""

    times_plain: float = 0.0
    seconds_a_character: float = 0.0
    characters: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)


def need(holds: Any, message: str) -> None:
    """Raise :class:`BrokenPageError` unless something holds."""
    if not holds:
        raise BrokenPageError(message)


@lru_cache
def renderer(number: int) -> Renderer:
    """A renderer for each of the SETTINGS."""
    settings = dict(SETTINGS[number])
    if settings.get("preset") == "released":
        settings["fonts"] = [str(font.path) for font in find_fonts([], "default")]
    return Renderer(RenderingConfig(**settings))


@lru_cache
def converter() -> Converter:
    """The way of documents into a dataset of strings."""
    return Recipe(kind="strings", heldout_fraction=0.0, rendering=RenderingConfig(seq_length=64)).make()


@lru_cache(maxsize=256)
def plain_seconds(number: int, patches: int, length: int) -> float:
    """CPU seconds for the pages of plain text of about this length (a power of two)."""
    text = fuzz_texts.plain_text(length)
    started, rounds, seconds = time.process_time(), 0, 0.0
    while seconds < 0.03:  # some systems count CPU time in hundredths of a second
        for page in renderer(number).iter_pages(text, patches):
            _ = page.columns
        rounds, seconds = rounds + 1, time.process_time() - started
    return seconds / rounds


def check(seed: int, number: int, worst: Worst) -> None:
    """Check text ``number`` of a seed in settings that the same number decides; raises :class:`BrokenPageError`."""
    text, kind = fuzz_texts.text_of(seed, number)
    pick = random.Random(f"settings {seed}/{number}")
    settings = pick.randrange(len(SETTINGS))
    patches = pick.choice((2, 3, 5, 17, 64, 1024) if len(text) < 3000 else (64, 1024))
    worst.by_kind[kind] = worst.by_kind.get(kind, 0) + 1
    worst.characters += len(text)
    check_pages(renderer(settings), text, patches, pick)
    check_time(settings, text, patches, worst)
    other, _ = fuzz_texts.text_of(seed, number + 1) if number % 2000 != 999 else ("", "")
    check_pair(renderer(settings), text[:5000], other[:5000] if pick.random() < 0.8 else "")
    if len(text) < 20_000 or pick.random() < 0.2:
        check_documents(text)


def check_pages(build: Renderer, text: str, patches: int, pick: random.Random) -> None:
    """The pages of a text tile it, are what their parts alone give, and are drawn again from their marks."""
    at = 0
    released = build.config.preset == "released"
    for count, page in enumerate(build.iter_pages(text, patches)):
        need(page.start == at, f"page {count} begins at {page.start}, the one before ended at {at}")
        need(at < page.end <= len(text) or not text, f"page {count} shows {page.start} to {page.end} of {len(text)}")
        at = page.end
        if count < _SAMPLED or pick.random() < 0.01:
            check_page(build, page, patches)
            part = text[page.start : page.end]
            alone = next(build.iter_pages(part, patches)) if released else build.render(part, patches)
            need(alone.end == len(part), f"page {count} alone shows {alone.end} of {len(part)} characters")
            need(np.array_equal(alone.columns, page.columns), f"page {count} alone looks different")
    need(at == len(text), f"the pages end at {at} of {len(text)}")
    first = build.render(text, patches)
    check_page(build, first, patches)
    need(first.start == 0 and (first.end > 0 or not text), f"the text's first page ends at {first.end}")


def check_page(build: Renderer, page: Page, patches: int) -> None:
    """Shape, black end patch, marks."""
    size = build.patch_size
    columns = page.columns
    need(1 <= page.num_patches <= patches, f"{page.num_patches} patches, more than {patches}")
    need(columns.shape[:2] == (page.num_patches * size, size), f"columns of shape {columns.shape}")
    need(columns.dtype == np.uint8, f"columns of type {columns.dtype}")
    need(not columns[-size:].any(), "the last patch is not black")
    need(page.has_color <= (build.config.mode == "rgb"), f"color in mode {build.config.mode}")
    need(page.marks is not None, "no marks")
    need(np.array_equal(redrawn(build, page), columns), "the marks draw another page")


def redrawn(build: Renderer, page: Page) -> np.ndarray:
    """The columns of a page, drawn from its marks and nothing else."""
    assert page.marks is not None
    size, config = build.patch_size, build.config
    channels = 3 if page.has_color else 1
    ink = np.zeros((page.num_patches * size, size, channels), dtype=np.int32)
    glyphs, up, pens = page.marks.glyphs
    keys, place = np.unique(sprite_keys(glyphs, up), return_inverse=True)
    cells = build.sprite_cells(keys)
    gray_ink = cells.ink.reshape(-1, size, 1)
    color_ink = cells.color_ink.reshape(-1, size, 3)
    done, left = 0, 0
    for count, black in zip(page.marks.counts, page.marks.black, strict=True):
        right = black * size
        for k in range(done, done + count):
            sprite = place[k]
            start = pens[k] + cells.bearing[sprite]
            begin, end = max(left - start, 0), min(right - start, int(cells.width[sprite]))
            if begin >= end:
                continue
            if cells.first[sprite] >= 0:
                ink[start + begin : start + end] += gray_ink[cells.first[sprite] + begin : cells.first[sprite] + end]
            elif cells.color_first[sprite] >= 0 and channels == 3:
                first = cells.color_first[sprite]
                ink[start + begin : start + end] += color_ink[first + begin : first + end]
        done, left = done + count, right + size
    columns = (255 - np.minimum(ink, 255)).astype(np.uint8)
    if config.mode == "binary":
        columns = np.where(columns < config.binary_threshold, np.uint8(0), np.uint8(255))
    for black in page.marks.black:
        columns[black * size : (black + 1) * size] = 0
    return columns if channels == 3 else columns[..., 0]


def check_time(settings: int, text: str, patches: int, worst: Worst) -> None:
    """Drawing takes time in proportion to the text: the second time, glyphs being loaded, against plain text."""
    if len(text) < 2000:
        return
    seconds = []
    for _ in range(2):
        started = time.process_time()
        for page in renderer(settings).iter_pages(text, patches):
            _ = page.columns
        seconds.append(time.process_time() - started)
    plain = plain_seconds(settings, patches, 1 << (len(text) - 1).bit_length())
    need(seconds[0] < 0.5 + SECONDS_A_CHARACTER * len(text), f"{len(text)} characters took {seconds[0]:.2f} s")
    need(
        min(seconds) < 0.1 + TIMES_PLAIN * plain,
        f"{len(text)} characters took {min(seconds):.2f} s, plain text of this length {plain:.4f} s",
    )
    if min(seconds) >= 0.03:
        worst.times_plain = max(worst.times_plain, min(seconds) / plain)
        worst.seconds_a_character = max(worst.seconds_a_character, min(seconds) / len(text))


def check_pair(build: Renderer, first: str, second: str) -> None:
    """A pair of texts on one page: two black patches, marks for both."""
    page = build.render_pair(first, second)
    check_page(build, page, build.config.seq_length)
    need(0 <= page.end <= len(first) + len(second), f"a pair of {len(first)} and {len(second)} shows {page.end}")
    assert page.marks is not None
    released = build.config.preset == "released"
    need(len(page.marks.black) == 2, f"a pair with the black patches {page.marks.black}")
    need(released or page.marks.black[0] < page.marks.black[1], f"a pair with the black patches {page.marks.black}")
    for black in page.marks.black:
        need(not page.columns[black * build.patch_size : (black + 1) * build.patch_size].any(), "a patch is not black")


def check_documents(text: str) -> None:
    """On its way into a dataset the text is kept whole, on the pages that the renderer alone makes."""
    build = converter().renderer
    assert build is not None
    kept = []
    for (chunk, _), page in zip(converter().chunks(text), build.iter_pages(text), strict=True):
        found, wanted = (chunk.start, chunk.end, chunk.num_patches), (page.start, page.end, page.num_patches)
        need(found == wanted, f"a document's page shows {found} in the dataset, {wanted} else")
        kept.append(to_text(to_bytes(text[chunk.start : chunk.end])))
    need(kept, "a document without pages")
    need("".join(kept) == text, f"{len(text)} characters became {sum(map(len, kept))} in a dataset")
