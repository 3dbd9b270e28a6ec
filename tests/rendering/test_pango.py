"""Our pages against those of Pango-Cairo in the same font: equal, or different for a named cause, counted."""

import numpy as np
import pytest

from benchmarks import fidelity
from megatron_pixel.rendering.harfbuzz import ShapingFont

pytestmark = pytest.mark.skipif(
    fidelity.pango_version() is None,
    reason=f"{fidelity.PYTHON} has no bindings of Pango: install python3-gi python3-gi-cairo gir1.2-pango-1.0",
)


@pytest.fixture(scope="module")
def comparison() -> fidelity.Comparison:
    return fidelity.Comparison()


@pytest.fixture(scope="module")
def characters(comparison: fidelity.Comparison) -> np.ndarray:
    return ShapingFont(comparison.font.path, comparison.font.index, (1, 1)).codepoints()


def test_printable_ascii_is_equal_bit_for_bit(comparison: fidelity.Comparison) -> None:
    documents = fidelity.printable_ascii(200) + fidelity.ascii_pairs()
    assert len(documents) == 390
    assert {c for text in documents for c in text} == {chr(c) for c in range(0x20, 0x7F)}
    for text, theirs in zip(documents, fidelity.pango_strips(documents, comparison.font.path), strict=True):
        page = comparison.page(text)
        columns = page.columns[: -fidelity.SIZE]
        assert (columns < 255).any()
        assert np.array_equal(columns, theirs[: len(columns)]), text
        assert (theirs[len(columns) :] == 255).all(), text


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_latin_greek_and_cyrillic_differ_in_tall_letters_and_overlaps(
    comparison: fidelity.Comparison, characters: np.ndarray, form: str
) -> None:
    texts, left_out = fidelity.translations(characters, form)
    documents = [text for name in fidelity.LANGUAGES for text in texts[name][1::4]]
    found = comparison.compare(documents)
    assert found["documents"] > 50
    assert left_out < 20  # a few signs that Noto Sans has not
    assert found["equal_documents"] >= 0.9 * found["documents"]
    assert found["hinting_pixels"] == 0
    assert found["overlap_pixels"] <= 4  # brackets of one script at letters of another
    assert found["squeezed_places"] <= 6
    # Vietnamese capitals with two accents are too tall.
    capitals = comparison.compare(["ẤN ĐỘ Ả RẬP ẴM"])
    assert capitals["squeezed_pixels"] > 50
    assert capitals["hinting_pixels"] == capitals["overlap_pixels"] == 0


def test_letters_and_marks_are_hinted_and_placed_alike(comparison: fidelity.Comparison, characters: np.ndarray) -> None:
    groups = fidelity.letters_and_marks(characters)
    letters = comparison.compare(groups["letters"])
    assert sum(text.count("H") for text in groups["letters"]) > 2000
    # The autohinters of two versions of FreeType differ in ⁿ, the superscript.
    assert letters["hinting_places"] <= 1
    assert letters["overlap_places"] <= 50  # every letter of another script stands between Latin ones here
    marks = comparison.compare(groups["marks"])
    assert sum(map(len, groups["marks"])) > 2000 * 3
    # In five marks of Devanagari, on Latin, Greek and Cyrillic letters here, and in the Cyrillic breve.
    assert marks["hinting_places"] <= 25
    # Letters of one script with marks of another, such as a small Cyrillic letter on a Latin one.
    assert marks["overlap_places"] <= 160


def test_a_mark_without_a_letter_has_a_dotted_circle_in_pango_only(comparison: fidelity.Comparison) -> None:
    (theirs,) = fidelity.pango_strips(["\u0301a"], comparison.font.path)
    with_circle = comparison.page("\u25cc\u0301a").columns[: -fidelity.SIZE]
    assert np.array_equal(with_circle, theirs[: len(with_circle)])
    assert not np.array_equal(comparison.page("\u0301a").columns[:16], theirs[:16])


def test_a_moved_pixel_is_a_difference(comparison: fidelity.Comparison) -> None:
    (theirs,) = fidelity.pango_strips(["no difference"], comparison.font.path)
    assert not comparison.causes("no difference", theirs).any()
    assert (comparison.causes("no difference", np.roll(theirs, 1, axis=1)) == 3).any()
