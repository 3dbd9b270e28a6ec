"""Hostile texts for ``fuzz.py``: text number ``n`` of a seed is the same on every machine and in every process."""

import math
import random
from collections.abc import Callable

SURROGATES = range(0xD800, 0xE000)
JOINERS = "\u200c\u200d\u2060\u034f\u00ad\u200b\ufeff"
OVERRIDES, ISOLATES = "\u202a\u202b\u202d\u202e", "\u2066\u2067\u2068"
ENDS = {**dict.fromkeys(OVERRIDES, "\u202c"), **dict.fromkeys(ISOLATES, "\u2069")}
BREAKS = "\n\r\t\v\f\x85\u2028\u2029 \u00a0\u3000"
RIGHT_TO_LEFT = [(0x5D0, 0x5EB), (0x620, 0x64B), (0x710, 0x730), (0x780, 0x7A6), (0x7CA, 0x7EB), (0x1E900, 0x1E944)]
MARKS = [
    (0x300, 0x370),
    (0x483, 0x48A),
    (0x591, 0x5BE),
    (0x64B, 0x660),
    (0x1AB0, 0x1ACF),
    (0x1DC0, 0x1E00),
    (0x20D0, 0x20F1),
]
SCRIPTS = [
    *((0x20, 0x7F), (0xA0, 0x250), (0x370, 0x400), (0x400, 0x530), (0x530, 0x590), (0x590, 0x600), (0x600, 0x700)),
    *((0x700, 0x7C0), (0x7C0, 0x860), (0x900, 0x980), (0x980, 0xA00), (0xA00, 0xB00), (0xB00, 0xC00), (0xC00, 0xD00)),
    *((0xD00, 0xE00), (0xE00, 0xF00), (0xF00, 0x1000), (0x1000, 0x10A0), (0x10A0, 0x1100), (0x1200, 0x13A0)),
    *((0x13A0, 0x1680), (0x1680, 0x1780), (0x1780, 0x1800), (0x1800, 0x18B0), (0x1900, 0x1B00), (0x1B00, 0x1CD0)),
    *((0x2000, 0x2200), (0x2200, 0x2C00), (0x2C00, 0x2E80), (0x3000, 0x3100), (0x3100, 0x3400), (0x4E00, 0x5200)),
    *((0xA000, 0xA500), (0xA640, 0xA840), (0xAC00, 0xB000), (0xF900, 0xFB00), (0xFB00, 0xFE00), (0xFE00, 0x10000)),
    *((0x10000, 0x10400), (0x10400, 0x11000), (0x11000, 0x12000), (0x12000, 0x13460), (0x16800, 0x17000)),
    *((0x1D000, 0x1D800), (0x1E000, 0x1F000), (0x1F000, 0x1FB00), (0x20000, 0x20200), (0x2F800, 0x2FA20)),
]
INDIC = [(start, start + 0x4D) for start in range(0x900, 0xD80, 0x80)]  # a virama stands at the same place in each
PICTOGRAPHS = [(0x1F300, 0x1F650), (0x1F680, 0x1F700), (0x1F900, 0x1FA00), (0x2600, 0x27C0), (0x1F400, 0x1F4D0)]

LONGEST = 1_000_000


class Maker:
    """Makes one text from a random number generator."""

    def __init__(self, pick: random.Random) -> None:
        self._pick = pick

    def length(self, most: int) -> int:
        """From 0 to ``most``, each order of magnitude as often as the others."""
        return int(math.exp(self._pick.uniform(0, math.log(most + 1)))) - (self._pick.random() < 0.1)

    def one_of(self, *ranges: tuple[int, int]) -> str:
        """A character of one of the ranges."""
        return chr(self._pick.randrange(*self._pick.choice(ranges)))

    def many(self, count: int, *ranges: tuple[int, int]) -> str:
        """Characters of the ranges."""
        return "".join([self.one_of(*ranges) for _ in range(count)])

    def anything(self, most: int) -> str:
        """Code points of all of Unicode: unassigned, private, surrogates, noncharacters."""
        return self.many(self.length(most), (0, 0x110000))

    def plane(self, most: int) -> str:
        """Code points of one plane."""
        first = self._pick.choice((0, 0, 1, 1, 2, 3, 14, 15, 16)) << 16
        return self.many(self.length(most), (first, first + 0x10000))

    def scripts(self, most: int) -> str:
        """Words of a few scripts, without order."""
        ranges = self._pick.sample(SCRIPTS, self._pick.randint(1, 4))
        text = ""
        for _ in range(self.length(max(most // 6, 1))):
            text += self.many(self._pick.randint(1, 10), self._pick.choice(ranges)) + self._pick.choice("    .,\n")
        return text[:most]

    def controls(self, most: int) -> str:
        """NUL, C0 and C1 controls and line breaks between letters."""
        return self.many(self.length(most), (0, 0x20), (0x7F, 0xA0), (0x61, 0x7B), (0x2028, 0x202A))

    def surrogates(self, most: int) -> str:
        """Halves of pairs, also in the right order."""
        return self.many(self.length(most), (0xD800, 0xDC00), (0xDC00, 0xE000), (0x61, 0x7B))

    def directions(self, most: int) -> str:
        """Overrides, embeddings and isolates, nested deeply, closed or not, around letters of both directions."""
        opened: list[str] = []
        text: list[str] = []
        while len(text) < self.length(most) + 1:
            kind = self._pick.random()
            if kind < 0.35:
                opened.append(self._pick.choice(OVERRIDES + ISOLATES))
                text.append(opened[-1])
            elif kind < 0.55 and opened:
                text.append(ENDS[opened.pop()])
            elif kind < 0.6:
                text.append(self._pick.choice("\u202c\u2069\u200e\u200f\u061c" + BREAKS))
            elif kind < 0.7:
                text.append(self._pick.choice("()[]{}<>«»⟨⟩「」0123456789.,+-%"))
            else:
                text.append(self.one_of(*RIGHT_TO_LEFT, (0x61, 0x7B)))
        return "".join(text)

    def nested(self, most: int) -> str:
        """The same opening character again and again, and what closes it."""
        opening = self._pick.choice(OVERRIDES + ISOLATES + "([{")
        depth = self.length(most // 2 + 1)
        closing = ENDS.get(opening, {"(": ")", "[": "]", "{": "}"}.get(opening, ""))
        return opening * depth + self.one_of(*RIGHT_TO_LEFT, (0x61, 0x7B)) + closing * self._pick.randint(0, depth + 1)

    def marks(self, most: int) -> str:
        """Thousands of combining marks on one letter, or on none."""
        ranges = self._pick.sample(MARKS, self._pick.randint(1, len(MARKS)))
        return self.one_of((0x41, 0x5B), (0x20, 0x21), *SCRIPTS) + self.many(self.length(most), *ranges)

    def emoji(self, most: int) -> str:
        """Chains of joined emoji with skin tones, variation selectors, keycaps, tags and flags."""
        text = ""
        for _ in range(self.length(max(most // 3, 1))):
            text += (
                self.one_of(*PICTOGRAPHS)
                if self._pick.random() < 0.7
                else self.one_of((0x23, 0x3A), (0x1F1E6, 0x1F200))
            )
            kind = self._pick.random()
            if kind < 0.5:
                text += "\u200d"
            elif kind < 0.9:
                text += self._pick.choice("\ufe0f\ufe0e\u20e3\U0001f3fb\U0001f3ff\u200c\U000e0067\U000e007f")
        return text[:most]

    def flags(self, most: int) -> str:
        """Regional indicators, odd and even, and black flags with tags."""
        ranges = [(0x1F1E6, 0x1F200)] * 6 + [(0x1F3F4, 0x1F3F5), (0xE0020, 0xE0080), (0x200D, 0x200E)]
        return self.many(self.length(most), *ranges)

    def selectors(self, most: int) -> str:
        """Variation selectors and ignorable characters on anything."""
        return self.many(self.length(most), (0xFE00, 0xFE10), (0xE0100, 0xE01F0), (0x180B, 0x180F), *SCRIPTS)

    def jamo(self, most: int) -> str:
        """Hangul letters: leading, vowels, trailing, old ones, syllables."""
        ranges = (0x1100, 0x1200), (0xA960, 0xA97D), (0xD7B0, 0xD7FC), (0xAC00, 0xD7A4)
        return self.many(self.length(most), *ranges)

    def viramas(self, most: int) -> str:
        """Chains of consonants of an Indic script, joined by viramas and joiners."""
        start, virama = self._pick.choice(INDIC)
        text = ""
        for _ in range(self.length(max(most // 2, 1))):
            text += self.one_of((start + 0x15, start + 0x3A)) + self._pick.choice(
                (chr(virama), chr(virama), "", "\u200d")
            )
            if self._pick.random() < 0.1:
                text += self.one_of((start, start + 4), (start + 0x3E, start + 0x4D))
        return text[:most]

    def stacks(self, most: int) -> str:
        """Syllables of Tibetan, Khmer, Burmese, Thai and Lao with more signs than belong there."""
        ranges = self._pick.choice(
            [
                [(0xF40, 0xFBD)],
                [(0x1780, 0x17D4), (0x17D2, 0x17D3)],
                [(0x1000, 0x103F)],
                [(0xE01, 0xE4F)],
                [(0xE81, 0xECE)],
            ]
        )
        return self.many(self.length(most), *ranges)

    def word(self, most: int) -> str:
        """One word, however long: a letter again and again, or letters of one script."""
        count = self.length(most)
        if self._pick.random() < 0.5:
            return self.one_of((0x21, 0x7F), *SCRIPTS) * count
        return self.many(count, self._pick.choice(SCRIPTS))

    def joiners(self, most: int) -> str:
        """Characters without width, which never fill a page."""
        return "".join(self._pick.choices(JOINERS + "a", k=self.length(most)))

    def breaks(self, most: int) -> str:
        """Ends of lines and paragraphs of all kinds among short words of both directions."""
        letters = self.many(8, *RIGHT_TO_LEFT) + "abc"
        return "".join(self._pick.choices(BREAKS + letters, k=self.length(most)))

    def mixture(self, most: int) -> str:
        """Pieces of everything else, cut at random and joined."""
        text = ""
        for _ in range(self._pick.randint(2, 8)):
            piece = self._pick.choice(KINDS[:-1])(self, max(most // 4, 4))
            first = self._pick.randint(0, len(piece))
            text += piece[first : self._pick.randint(first, len(piece))]
        return text


KINDS: list[Callable[[Maker, int], str]] = [
    *(Maker.anything, Maker.plane, Maker.scripts, Maker.controls, Maker.surrogates, Maker.directions, Maker.nested),
    *(Maker.marks, Maker.emoji, Maker.flags, Maker.selectors, Maker.jamo, Maker.viramas, Maker.stacks, Maker.word),
    *(Maker.joiners, Maker.breaks, Maker.mixture),
]


def generator(seed: int, number: int) -> random.Random:
    """The source of all chance about text ``number`` of a seed."""
    return random.Random(f"{seed}/{number}")


def text_of(seed: int, number: int) -> tuple[str, str]:
    """Text ``number`` of a seed, and the name of its kind.

    One text in 40 is up to 20,000 characters long, one in 2,000 is a megabyte, mostly of a single word; of the others,
    short ones are as frequent as long ones.
    """
    pick = generator(seed, number)
    kind = pick.choice(KINDS)
    maker = Maker(pick)
    if number % 2000 == 1000:
        piece = kind(maker, 2000) or "x"
        piece = piece.replace(" ", "") or "x"
        return (piece * (LONGEST // len(piece) + 1))[:LONGEST], f"megabyte of {kind.__name__}"
    return kind(maker, 20_000 if number % 40 == 20 else 800), kind.__name__


def plain_text(length: int) -> str:
    """Ordinary prose of a length, to compare times with."""
    prose = "It was a bright cold day in April, and the clocks were striking thirteen while people went home. "
    return (prose * (length // len(prose) + 1))[:length]
