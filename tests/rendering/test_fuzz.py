"""Hostile texts: a short form of ``benchmarks/fuzz.py``, what it found earlier by name, and what it must see."""

import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz, fuzz_checks, fuzz_texts
from megatron_pixel.rendering.page import Page

STRINGS = 1500


def test_hostile_texts_break_nothing() -> None:
    broken, totals = fuzz.run_batch(seed=3, first=0, count=STRINGS)
    fuzz.show(broken)
    assert not broken
    assert sum(totals["kinds"].values()) == STRINGS
    assert len(totals["kinds"]) > len(fuzz_texts.KINDS)  # a megabyte among them
    assert totals["characters"] > 1_000_000


def test_texts_are_the_same_in_every_process_and_of_every_plane() -> None:
    texts = [fuzz_texts.text_of(0, number)[0] for number in range(0, 300, 3)]
    assert texts == [fuzz_texts.text_of(0, number)[0] for number in range(0, 300, 3)]
    assert texts != [fuzz_texts.text_of(1, number)[0] for number in range(0, 300, 3)]
    everything = set("".join(texts))
    assert {ord(c) >> 16 for c in everything} == set(range(17))
    assert everything & {"\0", "\u202e", "\u2067", "\ud800", "\U000e0067", "\u200d", "\U0001f1e6", "\ufffe"}
    longest = max((fuzz_texts.text_of(0, number)[0] for number in range(20, 4000, 40)), key=len)
    assert len(longest) > 15_000


@pytest.mark.parametrize(
    "text",
    [
        "a" + "\u0301" * 10_000,
        "\u202e" * 2000 + "\u05d0" + "\u202c" * 2000,
        "\u2067(" * 500 + "\u05d0a" + ")\u2069" * 500,
        "\U0001f468\u200d" * 2000,
        "\u0915\u094d" * 2000,
        "\u1100" * 500 + "\u1161" * 500 + "\u11a8" * 500,
        "\U000e0067" * 3000,
        "\ud83d\ude00" * 500 + "\udc00\ud800",
        "\0\x01\x7f\x9f" * 500,
    ],
    ids=["marks", "overrides", "isolates", "joined emoji", "viramas", "jamo", "tags", "surrogates", "nul"],
)
@pytest.mark.parametrize("settings", range(1, len(fuzz_checks.SETTINGS)))
def test_named_texts_in_all_settings(settings: int, text: str) -> None:
    build = fuzz_checks.renderer(settings)
    fuzz_checks.check_pages(build, text, 17, random.Random(0))
    fuzz_checks.check_pair(build, text, "a" + text)
    if settings == 1:
        fuzz_checks.check_documents(text)


@pytest.mark.parametrize("empty", ["", "\0", "\u200b"])
def test_an_empty_text_beside_one_that_is_too_long(empty: str) -> None:
    number = next(i for i, settings in enumerate(fuzz_checks.SETTINGS) if settings.get("seq_length") == 24)
    build, text = fuzz_checks.renderer(number), fuzz_texts.plain_text(3000)
    for first, second in ((empty, text), (text, empty), (empty, empty)):
        fuzz_checks.check_pair(build, first, second)
    assert build.render_pair(empty, text).num_patches >= 22


def test_a_wrong_page_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    build = fuzz_checks.renderer(2)
    page = build.render("A page, drawn as it should be.")
    fuzz_checks.check_page(build, page, 1024)
    columns = page.columns.copy()
    columns[40, 5] ^= 1
    with pytest.raises(fuzz_checks.BrokenPageError, match="marks"):
        fuzz_checks.check_page(build, Page(columns, page.num_patches, 0, page.end, 16, page.marks), 1024)
    with pytest.raises(fuzz_checks.BrokenPageError, match="patches"):
        fuzz_checks.check_page(build, page, 3)
    pages = build.pages("several pages of words " * 20, 8)
    del pages[1]
    monkeypatch.setattr(build, "iter_pages", lambda *_: iter(pages))
    with pytest.raises(fuzz_checks.BrokenPageError, match="begins at"):
        fuzz_checks.check_pages(build, "several pages of words " * 20, 8, random.Random(0))


def test_too_much_time_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    build = fuzz_checks.renderer(2)
    text = fuzz_texts.plain_text(4000)
    worst = fuzz_checks.Worst()
    fuzz_checks.check_time(2, text, 64, worst)
    pages = list(build.iter_pages(text, 64))

    def slow(*_: object) -> list[Page]:
        end = time.process_time() + 0.1 + fuzz_checks.TIMES_PLAIN * fuzz_checks.plain_seconds(2, 64, 4096)
        while time.process_time() < end:
            np.zeros(1000)
        return pages

    monkeypatch.setattr(build, "iter_pages", slow)
    with pytest.raises(fuzz_checks.BrokenPageError, match="plain text"):
        fuzz_checks.check_time(2, text, 64, worst)


def test_texts_that_crash_or_hang_are_named(tmp_path: Path) -> None:
    program = tmp_path / "child.py"
    program.write_text(
        "import os, sys, time\n"
        "first, count = int(sys.argv[5]), int(sys.argv[7])\n"
        "for number in range(first, first + count):\n"
        "    print(number, flush=True)\n"
        "    if number == 4: os.abort()\n"
        "    if number == 6: time.sleep(60)\n",
        encoding="utf-8",
    )
    broken, _ = fuzz.run_batch(seed=5, first=2, count=7, program=str(program), silence=1.0)
    assert [(one["seed"], one["number"]) for one in broken] == [(5, 4), (5, 6)]
    assert "ended with -6" in broken[0]["broken"]
    assert "no sign of life" in broken[1]["broken"]
    assert broken[0]["text"] == ascii(fuzz_texts.text_of(5, 4)[0][:200])


def test_one_text_is_run_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--seed", "5", "--only", "4"])
    assert fuzz.main() == 0
    assert fuzz_texts.text_of(5, 4)[1] in capsys.readouterr().out
