"""No script loses anything at the upper or lower edge of the strip, measured against a strip twice as high."""

import pytest

from benchmarks import clipping
from examples import demo_corpus


@pytest.fixture(scope="module")
def measure() -> clipping.Measure:
    return clipping.Measure()


@pytest.fixture(scope="module")
def texts(measure: clipping.Measure) -> clipping.Texts:
    return clipping.Texts(measure.characters)


@pytest.mark.parametrize("script", clipping.MAIN_SCRIPTS)
def test_letters_marks_and_stacks_of_the_seventeen_languages(
    measure: clipping.Measure, texts: clipping.Texts, script: str
) -> None:
    samples = texts.of(script, most=500, most_letters=2500)
    assert len(samples) > 60
    found, worst = clipping.figures_of(samples, measure)
    assert found["cut_after"] == 0, worst
    # Without the rule something would be lost, or this measures nothing. (Of Hangul, two letters of eleven thousand.)
    assert found["outside_before"] > 0 or script == "Hang"


def test_other_scripts(measure: clipping.Measure, texts: clipping.Texts) -> None:
    others = [script for script in texts.scripts if script not in clipping.MAIN_SCRIPTS]
    assert len(others) > 60
    cut = {}
    for script in others:
        samples = texts.of(script, most=60, most_letters=60)
        if samples and (count := clipping.figures_of(samples, measure)[0]["cut_after"]):
            cut[script] = count
    assert not cut


def test_words_of_the_demo_corpus(measure: clipping.Measure) -> None:
    words: dict[str, set[str]] = {}
    for document in demo_corpus.translations():
        words.setdefault(document["source"], set()).update(document["text"].split()[::3])
    assert len(words) > 40
    for language, some in words.items():
        pages = measure.renderer.iter_pages(" ".join(sorted(some)))
        assert max(measure.cut(page) for page in pages) <= clipping.TOLERANCE, language


def test_what_is_outside_is_seen(measure: clipping.Measure) -> None:
    inside = measure.outside("Hxg")
    assert (inside.above, inside.below, inside.cut) == (0, 0, 0)
    tall = measure.outside("Ấ")
    assert tall.above >= 1
    assert tall.cut <= clipping.TOLERANCE
    # A page that was not fitted loses ink, and the measure says so.
    unfitted = clipping.Renderer(
        clipping.RenderingConfig(mode="gray", preset="released", fonts=[str(measure.renderer._fonts[0].path)])
    )
    assert clipping.Measure(unfitted).outside("Ấ").cut > clipping.TOLERANCE
