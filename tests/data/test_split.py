import hashlib

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.split import is_heldout, split_of


def test_the_rule() -> None:
    # sha256("a") begins with ca978112ca1bbdca.
    place = 0xCA978112CA1BBDCA / 2**64
    assert hashlib.sha256(b"a").hexdigest().startswith("ca978112ca1bbdca")
    assert is_heldout("a", place + 1e-9)
    assert not is_heldout("a", place - 1e-9)


def test_the_ends() -> None:
    texts = [f"document {number}" for number in range(100)]
    assert not any(is_heldout(text, 0.0) for text in texts)
    assert all(is_heldout(text, 1.0) for text in texts)


def test_a_larger_fraction_holds_out_more_and_about_as_much_as_it_says() -> None:
    texts = [f"document {number}" for number in range(4000)]
    few = {text for text in texts if split_of(text, 0.05) == "heldout"}
    many = {text for text in texts if split_of(text, 0.2) == "heldout"}
    assert few < many
    assert 140 < len(few) < 260
    assert 700 < len(many) < 900


def test_text_without_utf8() -> None:
    assert is_heldout("\ud800", 1.0)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_no_fraction(fraction: float) -> None:
    with pytest.raises(UserError, match="between 0 and 1"):
        is_heldout("a", fraction)
