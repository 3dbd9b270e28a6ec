import pytest

from megatron_pixel.config import UserError
from megatron_pixel.config.mixture import PerKind, parse_mixture, parse_source, rows_per_kind


@pytest.mark.parametrize(
    ("mixture", "rows", "expected"),
    [
        ("1:0:0", 4096, (4096, 0, 0)),
        ("0:1:0", 4096, (0, 4096, 0)),
        ("1:1:0", 8192, (4096, 4096, 0)),
        ("4:4:2", 10240, (4096, 4096, 2048)),
        ("4:4:2", 5, (2, 2, 1)),
        ("3:0:6", 9, (3, 0, 6)),
    ],
)
def test_rows_per_kind(mixture: str, rows: int, expected: tuple[int, int, int]) -> None:
    assert rows_per_kind(parse_mixture(mixture), rows) == PerKind(*expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data/c4", (1.0, "data/c4")),
        ("0.5:data/c4", (0.5, "data/c4")),
        ("2415:a:b", (2415.0, "a:b")),
        ("scheme:data", (1.0, "scheme:data")),
    ],
)
def test_parse_source(text: str, expected: tuple[float, str]) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize("text", ["", "0:a", "-1:a", "inf:a", "1:"])
def test_parse_source_refuses(text: str) -> None:
    with pytest.raises(UserError, match="expected prefix or weight:prefix"):
        parse_source(text)
