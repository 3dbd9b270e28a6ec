import random
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.rendering import bidi
from megatron_pixel.rendering.bidi import has_rtl, resolve_levels, visual_runs
from megatron_pixel.rendering.unicode_tables import BIDI_CLASSES, load_tables

CONFORMANCE = Path("/usr/share/unicode")
# One character for each bidi class; none is a paired bracket.
SAMPLES = dict(
    zip(
        BIDI_CLASSES,
        "aא\u06271+$\u0661,\u0300\u200b\u2029\t !\u202a\u202d\u202b\u202e\u202c\u2066\u2067\u2068\u2069",
        strict=True,
    )
)
REMOVED_CLASSES = ("BN", "LRE", "LRO", "RLE", "RLO", "PDF")


def codes(text: str) -> np.ndarray:
    return np.array([ord(c) for c in text], dtype=np.uint32)


def levels_of(text: str, base: int = -1) -> str:
    return "".join(map(str, resolve_levels(codes(text), base)))


def visual(text: str, base: int = -1) -> str:
    shown = ""
    for start, end, level in visual_runs(resolve_levels(codes(text), base)):
        shown += text[start:end][::-1] if level % 2 else text[start:end]
    return shown


def order_of(levels: np.ndarray, keep: np.ndarray) -> list[int]:
    order: list[int] = []
    for start, end, level in visual_runs(levels):
        run = [i for i in range(start, end) if keep[i]]
        order += run[::-1] if level % 2 else run
    return order


def conformance_file(name: str) -> Path:
    path = CONFORMANCE / name
    if not path.exists():
        pytest.skip(f"{path} is not here: install the Debian package unicode-data to run the conformance test")
    return path


def test_class_numbers_are_those_of_the_tables():
    assert tuple(BIDI_CLASSES[getattr(bidi, name)] for name in BIDI_CLASSES) == BIDI_CLASSES
    table = load_tables().bidi_class
    assert {name: BIDI_CLASSES[table[ord(char)]] for name, char in SAMPLES.items()} == {n: n for n in BIDI_CLASSES}


def test_conformance_by_class():
    """BidiTest.txt: every sequence of up to four classes and some longer ones, at each base level.

    All sequences of one base level are one text, a paragraph each, so that P1 is tested too.
    """
    by_class = {name: ord(char) for name, char in SAMPLES.items()}
    texts: dict[int, list[int]] = {-1: [], 0: [], 1: []}
    wanted: dict[int, list[int]] = {-1: [], 0: [], 1: []}
    skip = -1  # no level is given for what X9 removes
    levels: list[int] = []
    cases = 0
    for line in conformance_file("BidiTest.txt").read_text().splitlines():
        if line.startswith("@Levels:"):
            levels = [skip if level == "x" else int(level) for level in line[8:].split()]
        elif line.startswith("@Reorder:"):
            keep = np.array(levels) != skip
            shown = np.where(keep, levels, max([0, *levels])).astype(np.uint8)
            assert order_of(shown, keep) == [int(i) for i in line[9:].split()], (levels, line)
        elif line and line[0] not in "#@":
            names, bits = line.split(";")
            text = [by_class[name] for name in names.split()]
            ends = [] if text[-1] == by_class["B"] else [by_class["B"]]
            for bit, base in ((1, -1), (2, 0), (4, 1)):
                if int(bits, 16) & bit:
                    texts[base] += text + ends
                    wanted[base] += levels + [skip] * len(ends)
                    cases += 1
    assert cases > 700_000
    for base, text in texts.items():
        resolved = resolve_levels(np.array(text, dtype=np.uint32), base)
        expected = np.array(wanted[base])
        wrong = np.flatnonzero((expected != skip) & (expected != resolved))
        assert not len(wrong), (base, [hex(c) for c in text[wrong[0] - 8 : wrong[0] + 8]])


def test_conformance_by_character():
    """BidiCharacterTest.txt: brackets, isolates, deep nesting, with real characters."""
    checked = 0
    for line in conformance_file("BidiCharacterTest.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        text, direction, _, wanted, order = line.split(";")
        characters = np.array([int(c, 16) for c in text.split()], dtype=np.uint32)
        levels = resolve_levels(characters, {"0": 0, "1": 1, "2": -1}[direction])
        keep = np.array([level != "x" for level in wanted.split()])
        assert [str(v) for v in levels[keep]] == [v for v in wanted.split() if v != "x"], line
        assert order_of(levels, keep) == [int(i) for i in order.split()], line
        checked += 1
    assert checked > 90_000


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("abc", -1, "000"),
        ("אבג", -1, "111"),
        ("abc", 1, "222"),
        ("car is אבג!", -1, "00000001110"),
        ("אבג car!", -1, "11112221"),
        ("א 12", -1, "1122"),
        ("א1,2", -1, "1222"),  # W4: a comma between digits
        ("\u06271,2", -1, "1222"),
        ("1-2 א", 0, "00001"),
        ("א $5", -1, "1122"),  # W5
        ("א a ב", 0, "10001"),
        ("a א ב", 0, "00111"),  # N1
        ("a(אב)", 0, "00110"),  # N0 c: nothing of the base direction inside, context is left-to-right
        ("א(ab)", 1, "11221"),
        ("א(a)", 0, "1000"),  # N0 b
        ("אב(ג)", 0, "11111"),  # N0 c: context is right-to-left
        ("א[(]ב)", 0, "111110"),  # BD16: the square pair leaves the round one without its opening half
        ("a\u2067בa\u2069b", 0, "001200"),  # an isolate leaves its outside alone
        ("\u2067a\u2069א", -1, "1411"),  # P2 looks past isolates
        ("\u2068א\u2069!", 0, "0100"),  # X5c
        ("\u202eab", 0, "011"),  # an override turns Latin letters; the removed control takes the base level
        ("א \u200b ", 0, "1000"),  # L1 reaches over removed characters
        ("א\tב", 0, "101"),  # L1: tabs separate segments
        ("א\u2029a", -1, "110"),  # P1: every paragraph has its own base
    ],
)
def test_levels(text: str, base: int, expected: str):
    assert levels_of(text, base) == expected


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [
        ("car is אבג!", -1, "car is גבא!"),
        ("אבג car!", -1, "!car גבא"),
        ("he said “אבג 12”", 0, "he said “12 גבא”"),
        ("אבג 12:30", -1, "12:30 גבא"),
    ],
)
def test_visual_order(text: str, base: int, expected: str):
    assert visual(text, base) == expected


def test_visual_runs_tile_the_text():
    levels = np.array([0, 0, 1, 2, 2, 1, 0, 3, 1], dtype=np.uint8)
    runs = visual_runs(levels)
    assert runs.dtype == np.int32
    assert runs.tolist() == [[0, 2, 0], [5, 6, 1], [3, 5, 2], [2, 3, 1], [6, 7, 0], [8, 9, 1], [7, 8, 3]]
    assert visual_runs(np.zeros(0, dtype=np.uint8)).shape == (0, 3)


def test_deep_nesting_stops_at_the_limit():
    text = "\u202b" * 200 + "א"
    assert resolve_levels(codes(text), 0)[-1] == bidi.MAX_DEPTH
    text = "\u2067" * 200 + "א" + "\u2069" * 200 + "a"
    assert resolve_levels(codes(text), 0)[[200, -1]].tolist() == [bidi.MAX_DEPTH, 0]


def test_empty_text():
    assert resolve_levels(codes("")).tolist() == []
    assert not has_rtl(codes(""))


@pytest.mark.parametrize("char", "אا١\u202b\u202e\u2067𞤀")
def test_has_rtl_sees_every_kind(char: str):
    assert has_rtl(codes("abc " + char))


@pytest.mark.parametrize("text", ["abc", "Ελλάδα, 12 €", "日本語 हिन्दी", "\u200d\u2069\ufe0f😀"])
def test_has_rtl_leaves_plain_text_alone(text: str):
    assert not has_rtl(codes(text))
    assert levels_of(text) == "0" * len(text)


def test_agrees_with_python_bidi():
    """The pure Python algorithm of python-bidi, which knows neither isolates nor paired brackets."""
    algorithm = pytest.importorskip("bidi.algorithm", reason="python-bidi is not installed")
    alphabet = "abאבجد12٣٤ .,+-$%\u0301/!:"
    random.seed(20)
    for _ in range(3000):
        text = "".join(random.choices(alphabet, k=random.randint(1, 24)))
        for base, name in ((0, "L"), (1, "R")):
            assert visual(text, base) == algorithm.get_display(text, base_dir=name, upper_is_rtl=False), repr(text)


@pytest.mark.parametrize("pattern", ["\u2068", "(a", "[א]", "\u2067א\u2069", "\u202bא\u202c", "א1 ", "\u2068)א("])
def test_time_grows_linearly(pattern: str):
    def seconds(repeats: int) -> float:
        text = codes(pattern * repeats)
        best = float("inf")
        for _ in range(3):
            start = time.perf_counter()
            resolve_levels(text, 1)
            best = min(best, time.perf_counter() - start)
        return best

    seconds(10)
    # A quadratic step would take 400 times as long.
    assert seconds(200_000) < 100 * seconds(10_000)
