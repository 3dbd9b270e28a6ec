"""Input files that somebody made to break readers: every record is read or counted, none stops the others."""

import gzip
import zlib
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.documents import DocumentReader
from megatron_pixel.data.records import ReaderOptions

FINE = b'{"text": "fine"}\n'
DEEP = 100_000


@pytest.mark.parametrize(
    ("name", "data", "texts", "skipped"),
    [
        ("a.jsonl", b'{"text": "a", "x": ' + b"[" * DEEP + b"]" * DEEP + b"}\n" + FINE, ["fine"], {"broken JSON": 1}),
        ("a.jsonl", b'{"text":' * DEEP + b"1" + b"}" * DEEP + b"\n" + FINE, ["fine"], {"broken JSON": 1}),
        ("a.jsonl", b'{"text": 1' + b"0" * DEEP + b"}\n" + FINE, ["fine"], {"broken JSON": 1}),
        ("a.jsonl", b'{"text": "a\\u0000b"}\n{"text": "a\0b"}\n\0\0\n' + FINE, ["a\0b", "fine"], {"NUL bytes": 2}),
        ("a.jsonl", b"\xef\xbb\xbf" + FINE + b"\r\n" + FINE.replace(b"\n", b"\r\n"), ["fine", "fine"], {}),
        ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), [], {"NUL bytes": 2}),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n[1]\nnull\n' + FINE, ["b", "fine"], {"broken JSON": 2}),
        ("a.txt", b"a\0b\r\n\r\nc\rd\n\n\n\xff\n\nfine\n", ["c\rd", "fine"], {"NUL bytes": 1, "invalid UTF-8": 1}),
        ("a.jsonl.gz", gzip.compress(FINE * 3)[:-3], ["fine"] * 3, {"truncated file": 1}),
        ("a.jsonl.gz", gzip.compress(FINE) + b"garbage", ["fine"], {"damaged file": 1}),
        ("a.jsonl.gz", b"\x1f\x8b\x08\xe0" + bytes(20), [], {"damaged file": 1}),
    ],
    ids=[
        *("deep list", "deep object", "long number", "nul", "byte order mark and CR LF", "UTF-16", "no texts"),
        *("text", "truncated", "garbage behind", "gzip's reserved bits"),
    ],
)
def test_hostile_records_are_counted(
    tmp_path: Path, name: str, data: bytes, texts: list[str], skipped: dict[str, int]
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    reader = DocumentReader([str(path)], ReaderOptions(on_bad_record="skip"))
    assert [document.text for document in reader] == texts
    assert dict(reader.skipped) == skipped
    if skipped:
        with pytest.raises(UserError, match=name):
            list(DocumentReader([str(path)], ReaderOptions(on_bad_record="fail")))


def test_a_bomb_does_not_fill_the_memory(tmp_path: Path) -> None:
    # 300 MB of one line in a file of 300 KB.
    path = tmp_path / "bomb.jsonl.gz"
    packer = zlib.compressobj(1, wbits=31)
    with path.open("wb") as file:
        for _ in range(300):
            file.write(packer.compress(b"a" * 1_000_000))
        file.write(packer.compress(b"\n" + FINE) + packer.flush())
    reader = DocumentReader([str(path)], ReaderOptions(on_bad_record="skip"))
    assert [(document.text, document.line) for document in reader] == [("fine", 2)]
    assert dict(reader.skipped) == {"record too long": 1}
