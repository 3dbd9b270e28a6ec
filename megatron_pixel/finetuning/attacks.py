"""Orthographic noise: spellings that people still read and that tokenizers were not made for.

Every attack changes a share of the letters (of the words, for another script), chosen by a seed that depends on the
text, so the same examples are attacked alike for every model.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable

import numpy as np

RATES = (0.05, 0.1, 0.2, 0.4)
"""Shares of letters that are changed."""

_SIMILAR = dict(
    zip("abcdehijklmnopqrstuvwxyzABCEHIJKMNOPSTXYZ", "аЬсԁеһіјκӏмпорԛгѕтυνшхуzАВСЕНІЈКМΝОРЅТХУΖ", strict=True)
) | {"z": "ᴢ", "b": "ƅ", "f": "ſ", "g": "ɡ"}
"""Latin letters and letters of other scripts that look like them."""
_CYRILLIC = dict(zip("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувшжыз", strict=True))
_MARKS = tuple(
    chr(code) for code in (0x300, 0x301, 0x302, 0x303, 0x304, 0x306, 0x307, 0x308, 0x30A, 0x30C, 0x323, 0x331)
)
_INVISIBLE = ("\u200b", "\u200c", "\u200d", "\u2060")

Attack = Callable[[str, np.random.Generator, float], str]


def swap(text: str, rng: np.random.Generator, rate: float) -> str:
    """Neighboring letters inside words change places."""
    letters = list(text)
    places = [i for i in range(1, len(letters) - 2) if all(letters[k].isalpha() for k in range(i - 1, i + 2))]
    taken = -2
    for i in places:
        if i > taken + 1 and rng.random() < rate:
            letters[i], letters[i + 1] = letters[i + 1], letters[i]
            taken = i
    return "".join(letters)


def similar(text: str, rng: np.random.Generator, rate: float) -> str:
    """Letters become ones of other scripts that look alike."""
    return "".join(_SIMILAR[c] if c in _SIMILAR and rng.random() < rate else c for c in text)


def diacritics(text: str, rng: np.random.Generator, rate: float) -> str:
    """Letters get a mark above or below, composed where Unicode has the letter."""
    marked = (c + str(rng.choice(_MARKS)) if c.isalpha() and rng.random() < rate else c for c in text)
    return unicodedata.normalize("NFC", "".join(marked))


def invisible(text: str, rng: np.random.Generator, rate: float) -> str:
    """Characters of no width stand between letters."""
    return "".join(c + str(rng.choice(_INVISIBLE)) if c.isalpha() and rng.random() < rate else c for c in text)


def script(text: str, rng: np.random.Generator, rate: float) -> str:
    """Whole words are spelled in Cyrillic letters."""

    def spelled(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= rate:
            return word
        return "".join(_CYRILLIC.get(c, _CYRILLIC.get(c.lower(), c).upper()) for c in word)

    return re.sub(r"[A-Za-z]+", spelled, text)


ATTACKS: dict[str, Attack] = {
    "swap": swap,
    "similar": similar,
    "diacritics": diacritics,
    "invisible": invisible,
    "script": script,
}


def attacked(text: str, name: str, rate: float, seed: int = 0) -> str:
    """A text under an attack, always the same."""
    digest = hashlib.sha256(f"{seed} {name} {rate} {text}".encode("utf-8", "surrogatepass")).digest()
    return ATTACKS[name](text, np.random.default_rng(int.from_bytes(digest[:8], "little")), rate)
