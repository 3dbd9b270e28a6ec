"""What a reader of each script expects of the picture; and golden hashes, for fonts and libraries are pinned."""

import hashlib
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.rendering.shaping import COUNT, FIRST
from megatron_pixel.rendering.words import GLYPH

Build = Callable[..., Renderer]


def ink(page: Page) -> np.ndarray:
    """Gray columns without the end patch, [columns, P], 255 where black."""
    size = page.patch_size
    return 255 - page.patches(1)[..., 0].transpose(0, 2, 1).reshape(-1, size)[:-size]


def shapes(page: Page) -> list[tuple[int, int]]:
    """Stretches of inked columns: (first, last + 1)."""
    inked = np.r_[False, ink(page).any(axis=1), False].astype(int)
    edges = np.flatnonzero(np.diff(inked))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def glyph_numbers(build: Renderer, text: str) -> list[int]:
    """Glyphs of the laid-out text from first to last run, numbered over all fonts."""
    codepoints = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    line = build._layout.fitting(codepoints, 10_000)
    places = line.runs[line.order][:, [FIRST, COUNT]].tolist()
    return [glyph for first, count in places for glyph in line.glyphs[first : first + count, GLYPH].tolist()]


GOLDEN = {
    "ar": "182e6e65a12c5b83",
    "bg": "2f5f0b12e30cfc89",
    "de": "fcfbad9463c8a6ce",
    "el": "4e0245b7bbd1fbdf",
    "emoji": "ff87ecc8955ac51c",
    "en": "f690816e00287afd",
    "es": "1e8753b6e3ec09af",
    "fr": "e961c6220a6e3697",
    "hi": "f1a3fc39fe27a69f",
    "ja": "cb4614212031a65d",
    "kaomoji": "72376109a1aaa175",
    "ko": "033bfc7e5620d0f9",
    "mixed": "83ac20248bd0b5e7",
    "ru": "d2f1d22d72208356",
    "sw": "6ea7a59203a80b4c",
    "th": "c01f5d0eb8bc56fc",
    "tr": "301ae92b524b15d4",
    "ur": "292d29f176bdf403",
    "vi": "963cc75289de8230",
    "zh": "cff3451924abb8e7",
}


@pytest.mark.parametrize("name", sorted(GOLDEN))
def test_golden_pages(renderer: Build, sentences: dict[str, str], name: str) -> None:
    page = renderer().render(sentences[name])
    assert hashlib.sha256(page.columns.tobytes()).hexdigest()[:16] == GOLDEN[name]


def position(page: Page, part: Page) -> int:
    """Column where the ink of ``part`` stands in ``page``, or -1."""
    wanted = ink(part)
    inked = np.flatnonzero(wanted.any(axis=1))
    wanted = wanted[inked[0] : inked[-1] + 1]
    there = ink(page)
    starts = range(len(there) - len(wanted) + 1)
    return next((i for i in starts if np.array_equal(there[i : i + len(wanted)], wanted)), -1)


def test_right_to_left_text_begins_at_the_right(renderer: Build) -> None:
    draw = renderer().render
    page = draw("א ב ג")
    assert 0 <= position(page, draw("ג")) < position(page, draw("ב")) < position(page, draw("א"))
    assert np.array_equal(ink(draw("\u202eabc")), ink(draw("cba")))


def test_numbers_and_latin_in_right_to_left_text_run_left_to_right(renderer: Build) -> None:
    draw = renderer().render
    page = draw("א 123 ב abc")
    places = [position(page, draw(part)) for part in ("abc", "ב", "123", "א")]
    assert places == sorted(places)
    assert places[0] >= 2


def test_brackets_are_mirrored_in_right_to_left_text(renderer: Build) -> None:
    draw = renderer().render
    assert np.array_equal(draw("(א)").columns, draw("\u202d(א)").columns)
    assert not np.array_equal(draw("א(").columns, draw("\u202d(א").columns)
    assert np.array_equal(draw("א(").columns, draw("\u202d)א").columns)


def test_arabic_letters_join(renderer: Build) -> None:
    draw = renderer().render
    assert len(shapes(draw("سمسم"))) == 1
    assert len(shapes(draw("س\u200cم"))) == 2  # the non-joiner
    lam_alef = glyph_numbers(renderer(), "لا")
    assert lam_alef != glyph_numbers(renderer(), "ل") + glyph_numbers(renderer(), "ا")


def test_latin_ligatures_and_kerning_come_from_the_font(renderer: Build) -> None:
    assert renderer().render("AVAVAVAV").num_patches <= renderer().render("AHAHAHAH").num_patches
    assert len(glyph_numbers(renderer(), "क्ष")) == 1  # a conjunct is one glyph


@pytest.mark.parametrize(
    "text",
    ["👨‍👩‍👧‍👦", "🇩🇪", "👍🏽", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🤷🏽‍♀️", "🏳️‍🌈", "🧑‍🤝‍🧑"],
    ids=["family", "flag", "skin", "tags", "person", "rainbow", "holding hands"],
)
def test_an_emoji_sequence_is_one_picture(renderer: Build, text: str) -> None:
    page = renderer().render(text)
    assert page.has_color
    assert page.num_patches == renderer().render("😀").num_patches
    advance = page.num_patches
    assert renderer().render(text * 20).num_patches <= advance * 20


def test_presentation_selectors(renderer: Build) -> None:
    draw = renderer().render
    assert draw("❤\ufe0f").has_color
    assert not draw("❤\ufe0e").has_color
    assert not draw("❤").has_color  # text by default
    assert draw("😀").has_color  # color by default
    assert draw("🏳\u200d🌈").has_color  # a sequence, though no selector says so
    assert not draw("🏳").has_color
    assert not draw("1").has_color
    assert draw("1\ufe0f\u20e3").has_color
    assert not draw("©").has_color
    assert draw("©\ufe0f").has_color


def test_marks_stand_over_their_letter(renderer: Build) -> None:
    draw = renderer().render
    bare, marked = ink(draw("o")), ink(draw("o\u0307"))
    assert bare.shape == marked.shape
    assert np.array_equal(bare[:, 4:], marked[:, 4:])
    dot = np.flatnonzero((marked[:, :4] > 0).any(axis=1))
    letter = np.flatnonzero(bare.any(axis=1))
    assert len(dot)
    assert abs(dot.mean() - letter.mean()) <= 1
    assert np.array_equal(draw("e\u0301").columns, draw("é").columns)


@pytest.mark.parametrize(
    "marks", ["\u0300\u0303\u030a\u0302\u0308", "\u0323\u0331\u0325\u0324"], ids=["above", "below"]
)
def test_marks_never_leave_the_strip(renderer: Build, marks: str) -> None:
    # Each adds ink, also the last, which the font puts beyond the edge.
    pages = [ink(renderer().render("Z" + marks[:count])) for count in range(len(marks) + 1)]
    for fewer, more in itertools.pairwise(pages):
        assert not np.array_equal(fewer, more)


def test_thai_tone_marks_are_whole(renderer: Build) -> None:
    # Above the vowel sign, higher than the strip at the font's full height.
    bare, marked = ink(renderer().render("ที")), ink(renderer().render("ที่"))
    added = marked.astype(int) - bare
    assert np.count_nonzero(added > 64) >= 2
    assert np.flatnonzero(added.any(axis=0))[0] <= 1


@pytest.mark.parametrize("letter", ["H", "Н", "Η", "א", "ก", "Ա", "ა", "ᐃ", "ꆈ", "የ", "ß"])
def test_one_baseline_for_all_scripts(renderer: Build, letter: str) -> None:
    rows = np.flatnonzero(ink(renderer().render(letter)).sum(axis=0) > 100)
    assert rows[-1] in (11, 12) if letter not in ("Ա", "ა") else rows[-1] <= 14


def test_a_fallback_font_does_not_move_its_neighbors(renderer: Build) -> None:
    alone = ink(renderer().render("Hxg"))
    for other in ("漢", "م", "ที่", "क", "😀", "\U000e1234"):
        mixed = ink(renderer().render(f"Hxg {other}"))
        assert np.array_equal(mixed[:28], alone[:28]), other


def test_unknown_characters_are_boxes(renderer: Build) -> None:
    boxes = renderer().render("\ue000\ue001")
    pair = shapes(boxes)
    assert len(pair) == 2
    assert np.array_equal(ink(boxes)[slice(*pair[0])], ink(boxes)[slice(*pair[1])])


def test_spaces_between_scripts_and_ignorables_take_no_other_font(renderer: Build) -> None:
    draw = renderer().render
    assert np.array_equal(draw("a\u200bb\u2060c\u00add").columns, draw("abcd").columns)


def test_printable_ascii_is_not_squeezed(renderer: Build) -> None:
    printable = "".join(map(chr, range(0x20, 0x7F)))
    assert np.array_equal(renderer().render(printable).columns, renderer(preset="released").render(printable).columns)
    assert not np.array_equal(ink(renderer().render("Ấ")), ink(renderer(preset="released").render("Ấ")))


def test_a_mark_taller_than_the_strip_is_shortened(renderer: Build) -> None:
    # An enclosing screen, hung below this letter: its upper and its lower edge are both there.
    rows = ink(renderer().render("ž\u20e2")).sum(axis=0)
    assert min(rows[0], rows[-1]) > 8 * 255


def test_a_deep_stack_is_whole(renderer: Build) -> None:
    # A subjoined Burmese letter that reaches nine pixels below the baseline, squeezed into four; it ends in a stroke.
    assert ink(renderer().render("အ္ည")).sum(axis=0)[-1] > 3 * 255
