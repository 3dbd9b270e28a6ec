"""The word cache and the seams that it cuts at: pages are the same with and without."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest

from examples import demo_corpus
from megatron_pixel.rendering import blit
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.rendering.seams import DENSE, JOINING, SPACED, WHOLE
from megatron_pixel.rendering.shaping import END, START
from megatron_pixel.rendering.words import WORDS

Build = Callable[..., Renderer]


@pytest.fixture(scope="module")
def texts(sentences: dict[str, str]) -> list[str]:
    """Translations in all languages of the demo, sentences in more scripts, mixes of both, random characters."""
    pick = random.Random(7)
    translations = [document["text"] for document in demo_corpus.translations()]
    found = [" ".join(pick.sample(translations, 8)) for _ in range(60)]
    parts = [*sentences.values(), " ", "\n", "  ", "x" * 90, "م" * 90, "1⁄2 ", "12⁄34", "\u2061\u033a", "か゚か゚ "]
    found += ["".join(pick.choice(parts) for _ in range(12)) for _ in range(60)]
    ranges = [
        (0x20, 0x7F),
        (0x20, 0x21),
        (0x300, 0x370),
        (0x590, 0x700),
        (0x900, 0xE80),
        (0x2000, 0x2070),
        (0x3000, 0x3100),
    ]
    for _ in range(150):
        found.append("".join(chr(pick.randrange(*pick.choice(ranges))) for _ in range(pick.randrange(120))))
    return found


@pytest.fixture
def whole_runs(renderer: Build) -> Renderer:
    """A renderer that shapes whole runs and keeps no word."""
    build = Renderer(renderer(seq_length=96).config)
    seams = build._layout._seams
    add = seams.add

    def without_seams(font: int, script: int, direction: int) -> None:
        add(font, script, direction)
        seams.kinds[:] = WHOLE

    seams.add = without_seams  # type: ignore[method-assign]
    return build


def assert_same(page: Page, other: Page) -> None:
    assert (page.start, page.end, page.num_patches) == (other.start, other.end, other.num_patches)
    assert np.array_equal(page.columns, other.columns)


def test_cached_words_are_what_whole_runs_are(renderer: Build, whole_runs: Renderer, texts: list[str]) -> None:
    cached = renderer(seq_length=96)
    for text in texts:
        for page, other in zip(cached.pages(text), whole_runs.pages(text), strict=True):
            assert_same(page, other)
    assert cached._layout._cache.counters[WORDS] > 1000


def test_a_full_cache_is_emptied(renderer: Build, texts: list[str]) -> None:
    small, large = Renderer(renderer(seq_length=96).config), renderer(seq_length=96)
    cache = small._layout._cache
    cache.words = cache.words[:64]  # half of them may be used
    emptied = 0
    for text in texts[:40]:
        before = int(cache.counters[WORDS])
        assert_same(small.render(text), large.render(text))
        emptied += int(cache.counters[WORDS]) < before
    assert emptied > 5


def test_room_for_glyphs_grows(renderer: Build, texts: list[str]) -> None:
    small, large = Renderer(renderer(seq_length=96).config), renderer(seq_length=96)
    cache = small._layout._cache
    cache.glyphs = cache.glyphs[:64].copy()
    cache.clear()
    for text in texts[:40]:
        assert_same(small.render(text), large.render(text))
    assert len(cache.glyphs) > 64


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("two words here", SPACED, ["two ", "words ", "here"]),
        ("два слова", SPACED, ["два ", "слова"]),
        ("كلمتان هنا", JOINING, ["كلمتان ", "هنا"]),
        ("世界人", DENSE, ["世", "界", "人"]),
        ("\u202dشسي هنا", WHOLE, ["\u202d", "شسي هنا"]),
    ],
)
def test_where_runs_are_cut(renderer: Build, text: str, kind: int, parts: list[str]) -> None:
    layout = renderer()._layout
    itemized = layout._itemize(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32))
    assert [text[run[START] : run[END]] for run in itemized.runs] == parts
    last = itemized.runs[-1]
    assert layout._seams.kinds[layout._seams.plans[last[2], last[3], last[4] & 1]] == kind


def test_cuts_that_a_lookup_forbids(renderer: Build) -> None:
    # In Korean the font has a narrower space between two syllables, so no cut stands beside it; kana are kerned.
    for text in ("한글 한글", "かな"):
        itemized = renderer()._layout._itemize(np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32))
        assert len(itemized.runs) == 1


@pytest.mark.parametrize("size", [8, 12, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_sprites_are_drawn_and_cut_as_numpy_does(size: int, channels: int) -> None:
    noise = np.random.default_rng(size + channels)
    line, length = size * channels, 40
    width = noise.integers(0, 9, 30).astype(np.int32)
    first = (np.cumsum(width) - width).astype(np.int32)
    first[::7] = -1
    bearing = noise.integers(-4, 5, 30).astype(np.int32)
    ink = noise.integers(0, 256, (int(width.sum()), line), dtype=np.uint8)
    sprites = noise.integers(0, 30, 60).astype(np.int32)
    x = noise.integers(-15, length + 15, 60).astype(np.int32)
    x[:2] = -(2**31), 2**31 - 1
    page = np.full((length, line), 255, dtype=np.uint8)
    blit.draw_sprites(page.reshape(-1), line, 7, 33, sprites, x, first, width, bearing, ink.reshape(-1))
    expected = np.full((length, line), 255, dtype=np.int64)
    for sprite, pen in zip(sprites, x, strict=True):
        for column in range(width[sprite] if first[sprite] >= 0 else 0):
            at = int(pen) + int(bearing[sprite]) + column
            if 7 <= at < 33:
                expected[at] = np.maximum(expected[at] - ink[first[sprite] + column], 0)
    assert np.array_equal(page, expected)


@pytest.mark.parametrize("mode", ["rgb", "gray", "binary"])
@pytest.mark.parametrize("preset", ["default", "released"])
def test_marks_draw_the_page(renderer: Build, sentences: dict[str, str], preset: str, mode: str) -> None:
    build = renderer(preset=preset, mode=mode, seq_length=40)
    texts = [*sentences.values(), "Z\u0300\u0303\u030a\u0302\u0308\u0323\u0331 ẤỂ 😀"]
    pages = [page for text in texts for page in build.pages(text)]
    pages += [build.render_pair(*pair) for pair in itertools.pairwise(texts)]
    for page in pages:
        assert np.array_equal(redrawn(build, page), page.columns)


def redrawn(build: Renderer, page: Page) -> np.ndarray:
    """The columns of a page from its marks and the bitmaps of its glyphs."""
    marks, size = page.marks, page.patch_size
    assert marks is not None
    keys, sprites = np.unique(blit.sprite_keys(marks.glyphs[0], marks.glyphs[1]), return_inverse=True)
    cells = build.sprite_cells(keys)
    channels = 3 if page.has_color else 1
    columns = np.full((page.num_patches * size, size, channels), 255, dtype=np.uint8)
    done, left = 0, 0
    for count, patch in zip(marks.counts, marks.black, strict=True):
        part = slice(done, done + count)
        placed = left, patch * size, sprites[part].astype(np.int32), marks.glyphs[2, part].copy()
        gray = np.full(columns.shape[:2], 255, dtype=np.uint8)
        blit.draw_sprites(gray.reshape(-1), size, *placed, cells.first, cells.width, cells.bearing, cells.ink)
        columns = np.minimum(columns, gray[..., np.newaxis])
        if channels == 3:
            flat = columns.reshape(-1)
            blit.draw_sprites(flat, 3 * size, *placed, cells.color_first, cells.width, cells.bearing, cells.color_ink)
        done += count
        left = (patch + 1) * size
    if build.config.mode == "binary":
        columns = np.where(columns < build.config.binary_threshold, 0, 255).astype(np.uint8)
    for patch in marks.black:
        columns[patch * size : (patch + 1) * size] = 0
    return columns if channels == 3 else columns[..., 0]
