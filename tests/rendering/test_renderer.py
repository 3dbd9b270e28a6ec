"""Pages: their shape, how documents are cut, presets, modes, pairs."""

import itertools
import json
import pickle
import random
import time
from collections.abc import Callable

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering.page import Page, luma
from megatron_pixel.rendering.renderer import Renderer

Build = Callable[..., Renderer]


def ink(page: Page, first: int = 0, last: int | None = None) -> np.ndarray:
    """Gray columns without the end patch, [columns, P], 255 where black."""
    size = page.patch_size
    return 255 - page.patches(1)[..., 0].transpose(0, 2, 1).reshape(-1, size)[first : last or -size]


def black_patches(page: Page) -> list[int]:
    return [i for i, patch in enumerate(page.patches(1)) if not patch.any()]


def assert_tiles(renderer: Renderer, text: str, max_patches: int) -> list[Page]:
    pages = renderer.pages(text, max_patches)
    at = 0
    for page in pages:
        assert page.start == at
        assert page.num_patches <= max_patches
        assert page.columns.shape[:2] == (page.num_patches * page.patch_size, page.patch_size)
        assert not page.columns[-page.patch_size :].any()
        alone = renderer.render(text[page.start : page.end], max_patches)
        assert alone.end == page.end - page.start
        assert np.array_equal(alone.columns, page.columns)
        at = page.end
        assert page.end > page.start or not text
    assert at == len(text)
    return pages


def test_first_column_and_end_patch(renderer: Build) -> None:
    page = renderer().render("Hello")
    columns = np.flatnonzero(ink(page).any(axis=1))
    assert columns[0] == 2 + 1  # text starts at 2, H has a side bearing of one
    width = 34  # H 10, e 8, l 3, l 3, o 8 in whole pixels, and kerning none
    assert page.num_patches == -(-(2 + width + 2) // 16) + 1
    assert black_patches(page) == [page.num_patches - 1]
    assert (page.start, page.end, page.patch_size) == (0, 5, 16)


def test_empty_text_is_one_black_patch(renderer: Build) -> None:
    for page in (renderer().render(""), *renderer().pages("")):
        assert page.num_patches == 1
        assert page.end == 0
        assert not page.columns.any()


@pytest.mark.parametrize("max_patches", [2, 3, 8, 64])
def test_pages_tile_the_text_and_are_independent(renderer: Build, sentences: dict[str, str], max_patches: int) -> None:
    pick = random.Random(max_patches)
    parts = [
        *sentences.values(),
        "\n",
        "\r\n",
        "\u2029",
        " ",
        "x" * 90,
        "م" * 90,
        "e\u0301\u0323",
        "\u202eabc\u202c",
        "👩‍" * 9,
    ]
    for _ in range(15):
        assert_tiles(renderer(), "".join(pick.choice(parts) for _ in range(8)), max_patches)


@pytest.mark.parametrize("seed", range(4))
def test_any_string_is_rendered(renderer: Build, seed: int) -> None:
    pick = random.Random(seed)
    ranges = [(0, 0x110000), (0, 0x3000), (0x300, 0x370), (0x590, 0x800), (0x2000, 0x2070), (0x1F000, 0x20000)]
    for _ in range(25):
        text = "".join(chr(pick.randrange(*pick.choice(ranges))) for _ in range(pick.randrange(200)))
        assert_tiles(renderer(), text, pick.choice([2, 5, 40]))


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0301" * 10_000,
        "\u0301" * 20_000,
        "👩‍" * 3_000,
        "x" * 100_000,
        "م" * 100_000,
        "\u202e" * 20_000 + "א",
        "\0" * 100_000,
        "\nא" * 20_000,
        "(" * 50_000 + "א",
    ],
    ids=["marks", "only marks", "joiners", "word", "arabic word", "overrides", "nul", "paragraphs", "brackets"],
)
def test_hostile_text_takes_linear_time(renderer: Build, text: str) -> None:
    renderer().pages(text[:200], 64)
    start = time.process_time()
    pages = renderer().pages(text, 64)
    assert time.process_time() - start < 10
    assert "".join(text[page.start : page.end] for page in pages) == text


def test_documents_are_cut_between_words(renderer: Build) -> None:
    text = "several words of different lengths follow each other here " * 4
    pages = renderer().pages(text, 12)
    assert len(pages) > 3
    for page in pages[:-1]:
        assert " " in text[page.end - 1 : page.end + 1]
    # As much as fits: the next word would not have.
    for page, following in itertools.pairwise(pages):
        word = text[following.start :].lstrip().split(" ")[0]
        assert renderer().render(text[page.start : page.end] + " " + word, 12).end < page.end - page.start + len(word)


def test_long_words_are_cut_between_clusters(renderer: Build) -> None:
    text = "e\u0301\u0323" * 100
    pages = renderer().pages(text, 6)
    assert len(pages) > 5
    assert all(page.end % 3 == 0 for page in pages)
    family = "👨‍👩‍👧‍👦"
    assert all(page.end % len(family) == 0 for page in renderer().pages(family * 30, 6))


def test_cjk_is_cut_between_characters_but_not_before_closing_punctuation(renderer: Build) -> None:
    text = "漢字、" * 40
    pages = renderer().pages(text, 5)
    assert all(text[page.start] != "、" for page in pages)
    assert len(pages) > 10


def test_cr_lf_is_one_space_and_stays_together(renderer: Build) -> None:
    spaced = renderer().render("one two").columns
    for end in ("\n", "\r", "\r\n", "\t", "\v", "\f", "\x85", "\u2028", "\u2029"):
        assert np.array_equal(renderer().render(f"one{end}two").columns, spaced), repr(end)
    text = "ab\r\n" * 50
    assert all(text[page.end - 1 : page.end + 1] != "\r\n" for page in renderer().pages(text, 3))


def test_controls_are_not_drawn_and_surrogates_are_replaced(renderer: Build) -> None:
    draw = renderer().render
    assert np.array_equal(draw("a\x00\x01\x1b\x7f\x9fb").columns, draw("ab").columns)
    assert np.array_equal(draw("a\ud83db").columns, draw("a\ufffdb").columns)
    assert np.array_equal(draw("\U000e0fff\ue000").columns[:16], draw("\ue000").columns[:16])  # ignorable, then a box


def test_paragraphs_follow_each_other_from_left_to_right(renderer: Build) -> None:
    first, second = renderer().render("שלום"), renderer().render("abc")
    both = renderer().render("שלום\nabc")
    word = ink(first)[: np.flatnonzero(ink(first).any(axis=1))[-1] + 1]
    assert np.array_equal(ink(both)[: len(word)], word)
    assert both.num_patches >= first.num_patches + second.num_patches - 2
    one = renderer(preset="released", fonts=tuple(_hebrew_fonts(renderer))).render("שלום\nabc")
    assert not np.array_equal(ink(one)[:32], ink(both)[:32])  # one paragraph from right to left: abc comes first


def _hebrew_fonts(renderer: Build) -> list[str]:
    fonts = renderer().fingerprint()["fonts"]
    names = [font["name"] for font in fonts]
    chain = renderer()._fonts
    return [str(chain[0].path), str(chain[names.index("NotoSansHebrew-Regular.ttf")].path)]


def test_gray_and_binary_pages_hold_no_color(renderer: Build) -> None:
    text = "text 😀 🇩🇪"
    color, gray = renderer().render(text), renderer(mode="gray").render(text)
    assert color.has_color
    assert not gray.has_color
    assert np.array_equal(luma(color.columns), gray.columns)
    binary = renderer(mode="binary").render(text)
    assert set(np.unique(binary.columns)) == {0, 255}
    assert np.array_equal(binary.columns == 0, gray.columns < 128)
    assert not renderer().render("text").has_color


@pytest.mark.parametrize("size", [16, 24, 32])
def test_patch_sizes_scale_the_strip(renderer: Build, size: int) -> None:
    page = renderer(patch_size=size).render("Hxg")
    assert page.patches(3).shape == (page.num_patches, size, size, 3)
    baseline = size * 12 // 16
    letter = ink(page)[2 : 2 + size // 2]  # H
    rows = np.flatnonzero(letter.any(axis=0))
    assert rows[-1] == baseline - 1
    assert rows[0] == pytest.approx(baseline - 0.714 * size * 10 / 12, abs=1)


def test_max_patches(renderer: Build) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        renderer().render("a", 1)
    assert renderer(seq_length=5).render("a long text that does not fit").num_patches <= 5
    assert renderer(seq_length=5).render("a long text that does not fit", 7).num_patches > 5


def test_a_letter_wider_than_the_page_is_drawn_as_far_as_it_goes(renderer: Build) -> None:
    page = renderer().render("﷽", 3)
    assert (page.num_patches, page.end) == (3, 1)
    assert ink(page).any()


def test_pair(renderer: Build) -> None:
    build = renderer(seq_length=40)
    first, second = build.render("first text"), build.render("second one")
    page = build.render_pair("first text", "second one")
    assert black_patches(page) == [first.num_patches - 1, page.num_patches - 1]
    assert page.num_patches == first.num_patches + second.num_patches
    assert np.array_equal(page.columns, np.concatenate([first.columns, second.columns]))
    assert page.end == 20


@pytest.mark.parametrize(
    ("first", "second"), [("a b c " * 99, "short"), ("short", "a b c " * 99), ("a b c " * 99, "d e f " * 99)]
)
def test_both_texts_of_a_pair_survive(renderer: Build, first: str, second: str) -> None:
    build = renderer(seq_length=12)
    page = build.render_pair(first, second)
    black = black_patches(page)
    assert len(black) == 2
    assert page.num_patches in (11, 12)
    assert 2 <= black[0] <= 9
    if len(first) == len(second):
        assert black[0] in (4, 5)
    if second == "short":
        alone = build.render(second)
        assert np.array_equal(page.columns[(black[0] + 1) * 16 :], alone.columns)


def test_released_preset_cuts_at_the_right_edge(renderer: Build) -> None:
    build = renderer(preset="released", seq_length=8)
    empty = build.render("")
    assert (empty.num_patches, black_patches(empty)) == (2, [1])
    text = "a text that is too long for its strip"
    page = build.render(text)
    assert page.num_patches == 8
    assert 0 < page.end < len(text)
    whole = renderer(preset="released", seq_length=100).render(text)
    assert np.array_equal(page.columns[: 7 * 16], whole.columns[: 7 * 16])
    short = build.render("short")
    assert short.num_patches == renderer().render("short").num_patches
    assert_tiles(renderer(), text, 8)


def test_released_pair_loses_the_second_text_after_a_long_first(renderer: Build) -> None:
    build = renderer(preset="released", seq_length=8)
    page = build.render_pair("a text that is too long for its strip", "lost")
    assert black_patches(page) == [7]
    page = build.render_pair("a", "b")
    assert black_patches(page) == [1, 3]
    page = build.render_pair("abc", "a text that is too long for its strip")
    assert black_patches(page) == [2, 7]


def test_fingerprint(renderer: Build) -> None:
    mark = renderer().fingerprint()
    assert json.loads(json.dumps(mark)) == mark
    assert mark == Renderer(pickle.loads(pickle.dumps(RenderingConfig()))).fingerprint()
    assert mark != renderer(patch_size=32).fingerprint()
    assert {"renderer_version", "fonts", "harfbuzz", "freetype", "unicode"} <= mark.keys()
    assert all(len(font["sha256"]) == 64 and "/" not in font["name"] for font in mark["fonts"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 4}, "patch_size: 4"),
        ({"seq_length": 1}, "seq_length: 1"),
        ({"font_size": -1.0}, "font_size: -1"),
        ({"mode": "cmyk"}, "'cmyk' is none of rgb, gray, binary"),
        ({"preset": "release"}, "'release' is none of"),
        ({"preset": "released"}, "GoNotoCurrent.ttf"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Renderer(RenderingConfig(**settings))
