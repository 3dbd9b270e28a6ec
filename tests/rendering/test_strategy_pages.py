"""Pages of the rendering strategies: what begins where, and that nothing else changes."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.rendering.strategies import STRATEGIES

BuildRenderer = Callable[..., Renderer]
TIED = STRATEGIES[1:]
ENGLISH = "I must be growing small again, quite office-like! fluffier AV To jjj --- ffi Quay"


def text_patches(page: Page) -> np.ndarray:
    """The patches without the black one at the end, gray: uint8 [n, P, P]."""
    return page.patches(1)[:-1, :, :, 0]


def pairs(word: str) -> list[str]:
    """A word and the space after it, in pairs of letters; the space stays with the last pair."""
    letters = word.rstrip()
    found = [letters[i : i + 2] for i in range(0, len(letters), 2)]
    found[-1] += word[len(letters) :]
    return found


@pytest.mark.parametrize("strategy", ["bigram", "word"])
def test_every_unit_makes_the_patches_that_it_makes_alone(renderer: BuildRenderer, strategy: str):
    words = [f"{word} " for word in ENGLISH.split()]
    units = words if strategy == "word" else [pair for word in words for pair in pairs(word)]
    ours = renderer(strategy=strategy, mode="gray")
    whole = text_patches(ours.render("".join(units)))
    alone = [text_patches(ours.render(unit)) for unit in units]
    assert np.array_equal(whole, np.concatenate(alone))
    assert all(len(patches) >= 1 for patches in alone)
    if strategy == "bigram":
        assert sum(len(patches) == 1 for patches in alone) > len(alone) / 2
    # The letters stand in the patches as they would in a line that begins there.
    line = renderer(mode="gray").render(units[0]).columns[2:]
    assert np.array_equal(ours.render(units[0]).columns[:8], line[:8])


def test_words_stand_a_space_apart(renderer: BuildRenderer):
    ours = renderer(strategy="bigram", mode="gray")

    def count(text: str) -> int:
        return ours.render(text).num_patches - 1

    assert [count(text) for text in ("st", "st ", "st      ")] == [1, 1, 2]  # there is room for one space
    assert [count(text) for text in ("hu", "hu ")] == [1, 2]


def test_two_characters_of_mono_fill_a_patch(renderer: BuildRenderer):
    ours = renderer(strategy="mono", mode="gray")
    text = "Two letters fill a patch: éß, Ωж; (1,024) -> {x} == [y]?!"
    text += " " * (len(text) % 2)
    patches = text_patches(ours.render(text))
    assert len(patches) == len(text) // 2
    halves = patches.transpose(0, 2, 1).reshape(len(text), 8, 16)
    first = {letter: halves[text.index(letter)] for letter in text}
    assert all(np.array_equal(half, first[letter]) for letter, half in zip(text, halves, strict=True))
    assert len({half.tobytes() for half in first.values()}) == len(first)


def test_the_grid_of_mono_in_other_scripts(renderer: BuildRenderer):
    ours = renderer(strategy="mono")
    assert ours.render("世界，你好").num_patches == 6
    assert ours.render("한국어").num_patches == 4
    assert ours.render("👋🏽👩‍👩‍👧").num_patches == 3
    one, two = text_patches(ours.render("a世b")), text_patches(ours.render("xx世"))
    assert np.array_equal(one[0, :, 8:], two[1, :, :8])  # half a patch further, but the same
    assert np.array_equal(one[1, :, :8], two[1, :, 8:])


@pytest.mark.parametrize("strategy", TIED)
def test_glyphs_are_those_of_the_shaped_text(renderer: BuildRenderer, sentences: dict[str, str], strategy: str):
    """Letters join, reorder and stack as in their word; only their places change."""
    names = ["ar", "ur", "hi", "th", "ko", "zh", "ru", "vi"]
    if strategy == "mono":
        names.remove("ru")  # of another font
        names.remove("vi")

    def glyphs(page: Page) -> Counter[tuple[int, int]]:
        assert page.marks is not None
        return Counter(zip(*page.marks.glyphs[:2].tolist(), strict=True))

    ours, plain = (
        renderer(strategy=strategy),
        renderer(fonts=tuple(str(f.path) for f in renderer(strategy=strategy)._fonts)),
    )
    for name in names:
        text = sentences[name].translate(dict.fromkeys(map(ord, " ,.、।"), None))
        here, there = ours.render(text), plain.render(text)
        assert here.end == there.end == len(text)
        assert glyphs(here) == glyphs(there), name


def test_units_go_on_in_reading_order_where_text_runs_from_right_to_left(renderer: BuildRenderer):
    ours = renderer(strategy="word", mode="gray")
    words = ["سلام ", "שלום ", "abc ", "(12) "]
    whole = text_patches(ours.render("".join(words)))
    start = 0
    for word in words[:3]:
        patches = text_patches(ours.render(word))
        assert np.array_equal(whole[start : start + len(patches)], patches), word
        start += len(patches)


@pytest.mark.parametrize("strategy", TIED)
@pytest.mark.parametrize("most", [2, 9, 40])
def test_pages_tile_the_text_and_each_is_what_its_part_gives(
    renderer: BuildRenderer, sentences: dict[str, str], strategy: str, most: int
):
    ours = renderer(strategy=strategy)
    texts = [
        " ".join(sentences.values()),
        "x" * 300,
        "a" + "\u0301" * 300 + " b",
        " " * 90,
        "\u200b" * 90 + "é",
        "世界" * 40,
        "",
    ]
    for text in texts:
        pages = ours.pages(text, most)
        assert [page.start for page in pages] == [0, *(page.end for page in pages[:-1])]
        assert pages[-1].end == len(text)
        for page in pages:
            assert page.num_patches <= most
            assert (page.columns[-16:] == 0).all()
            again = ours.render(text[page.start : page.end], most)
            assert again.end == page.end - page.start
            assert np.array_equal(again.columns, page.columns)


@pytest.mark.parametrize("strategy", TIED)
def test_pages_are_cut_between_words_and_filled(renderer: BuildRenderer, sentences: dict[str, str], strategy: str):
    text = " ".join(sentences[name] for name in ("en", "de", "sw", "tr") * 4)
    pages = renderer(strategy=strategy).pages(text, 60)
    assert len(pages) > 5
    assert all(" " in text[page.end - 1 : page.end + 1] for page in pages[:-1])
    assert all(page.num_patches > 50 for page in pages[:-1])


@pytest.mark.parametrize("strategy", TIED)
def test_pairs(renderer: BuildRenderer, strategy: str):
    ours = renderer(strategy=strategy, seq_length=40, mode="gray")
    page = ours.render_pair("A first text", "and a second one")
    first, second = ours.render("A first text"), ours.render("and a second one")
    expected = np.concatenate([first.columns, second.columns])
    assert np.array_equal(page.columns, expected)
    long = ours.render_pair("A first text " * 9, "and a second one " * 9)
    assert long.num_patches <= 40
    black = (long.patches(1) == 0).all(axis=(1, 2, 3))
    assert black.sum() == 2


@pytest.mark.parametrize("mode", ["rgb", "binary"])
def test_modes(renderer: BuildRenderer, mode: str):
    for strategy in TIED:
        page = renderer(strategy=strategy, mode=mode).render("ab 😀")
        assert page.has_color == (mode == "rgb")
        gray = renderer(strategy=strategy, mode="gray").render("ab 😀")
        assert gray.num_patches == page.num_patches
        assert np.array_equal(text_patches(gray) < 128, text_patches(page) < 128)


def test_other_patch_sizes(renderer: BuildRenderer):
    for strategy in TIED:
        small, large = (
            renderer(strategy=strategy, mode="gray", patch_size=size).render("abcde fgh 世") for size in (16, 32)
        )
        assert abs(small.num_patches - large.num_patches) <= 1  # advances are rounded to pixels
        assert large.columns.shape == (large.num_patches * 32, 32)


def test_fingerprint_names_every_strategy_but_the_first(renderer: BuildRenderer):
    assert "strategy" not in renderer().fingerprint()
    for strategy in TIED:
        assert renderer(strategy=strategy).fingerprint()["strategy"] == strategy
    assert renderer(strategy="mono").fingerprint()["fonts"][0]["name"] == "RobotoMono[wght].ttf"


def test_settings_that_cannot_be():
    with pytest.raises(UserError, match=r"rendering\.strategy: 'bigrams' is none of continuous, bigram, word, mono"):
        Renderer(RenderingConfig(strategy="bigrams"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="word does not go with preset released"):
        Renderer(RenderingConfig(strategy="word", preset="released"))
