"""Reading documents: every input kind, and every way in which a file can be broken."""

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import inputs
from megatron_pixel.data.documents import Document, DocumentReader, ReaderOptions, read_documents

TEXTS = ["first text", "second\nwith two lines", "žluťoučký 漢字 🏳️‍🌈", 'quotes " and \\ and \u2028']


def json_lines(texts: list[str], key: str = "text") -> bytes:
    return "".join(json.dumps({"id": i, key: text}) + "\n" for i, text in enumerate(texts)).encode()


def write(folder: Path, name: str, data: bytes) -> str:
    path = folder / name
    path.write_bytes(data)
    return str(path)


def texts_of(path: str, **options: object) -> list[str]:
    return [document.text for document in read_documents([path], ReaderOptions(**options))]  # type: ignore[arg-type]


def problem(path: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        texts_of(path, **options)
    return str(caught.value)


def skips(path: str, **options: object) -> tuple[list[str], dict[str, int]]:
    reader = read_documents([path], ReaderOptions(on_bad_record="skip", **options))  # type: ignore[arg-type]
    texts = [document.text for document in reader]
    assert reader.documents == len(texts)
    return texts, dict(reader.skipped)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", lambda data: data),
        ("a.json", lambda data: data),
        ("a.JSONL", lambda data: data),
        ("a.jsonl.gz", gzip.compress),
        ("a.json.gz", gzip.compress),
        ("a.jsonl.gz", lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:])),
        ("a.jsonl.gz", lambda data: gzip.compress(data) + b"\0" * 512),
        ("a.jsonl.zst", zstandard.compress),
        ("a.jsonl.zst", lambda data: zstandard.compress(data[:40]) + zstandard.compress(data[40:])),
        ("a.jsonl", lambda data: b"\xef\xbb\xbf" + data),
        ("a.jsonl", lambda data: data.replace(b"\n", b"\r\n")),
        ("a.jsonl", lambda data: data.replace(b"\n", b"\n\n  \n")),
        ("a.jsonl", lambda data: data.removesuffix(b"\n")),
    ],
)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 18])
def test_json_lines_in_every_packing(tmp_path, monkeypatch, name, pack, chunk):
    monkeypatch.setattr(inputs, "CHUNK_BYTES", chunk)
    assert texts_of(write(tmp_path, name, pack(json_lines(TEXTS)))) == TEXTS


def test_positions_and_progress(tmp_path):
    first = write(tmp_path, "a.jsonl", b"\n" + json_lines(["one", "two"]))
    second = write(tmp_path, "b.jsonl.gz", gzip.compress(json_lines(["three"])))
    reader = DocumentReader([first, second])
    assert list(reader) == [Document("one", first, 2), Document("two", first, 3), Document("three", second, 1)]
    assert reader.text_bytes == len("onetwothree")
    assert reader.bytes_done == reader.total_bytes == sum(Path(path).stat().st_size for path in (first, second))


def test_key_and_max_documents(tmp_path):
    path = write(tmp_path, "a.jsonl", json_lines(TEXTS, key="content"))
    assert texts_of(path, key="content", max_documents=2) == TEXTS[:2]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("paragraph", [("one\ntwo", 2), ("three", 6), ("four", 8)]),
        ("line", [("one", 2), ("two", 3), ("three", 6), ("four", 8)]),
        ("file", [("\none\ntwo\n \n\nthree\n\t\nfour", 1)]),
    ],
)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_text_files(tmp_path, mode, expected, ending):
    data = b"\none\ntwo\n \n\nthree\n\t\nfour\n".replace(b"\n", ending)
    path = write(tmp_path, "a.txt", data)
    found = [(d.text, d.line) for d in read_documents([path], ReaderOptions(txt_mode=mode))]
    assert found == expected
    packed = write(tmp_path, "a.txt.gz", gzip.compress(data))
    assert [d.text for d in read_documents([packed], ReaderOptions(txt_mode=mode))] == [text for text, _ in expected]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet(tmp_path, kind):
    path = str(tmp_path / "a.parquet")
    table = pa.table({"id": list(range(len(TEXTS) * 100)), "text": pa.array(TEXTS * 100, pa.string()).cast(kind)})
    pq.write_table(table, path, row_group_size=64)
    reader = read_documents([path])
    documents = list(reader)
    assert [d.text for d in documents] == TEXTS * 100
    assert [d.line for d in documents[:3]] == [1, 2, 3]
    assert reader.bytes_done == reader.total_bytes


@pytest.mark.parametrize(("form", "data"), [("jsonl", json_lines(TEXTS)), ("txt", b"first text\n\nother\n")])
def test_standard_input(monkeypatch, form, data):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    reader = read_documents(["-"], ReaderOptions(stdin_format=form))
    assert next(iter(reader)) == Document("first text", "standard input", 1)
    assert reader.total_bytes is None


def test_empty_documents_are_always_left_out(tmp_path):
    path = write(tmp_path, "a.jsonl", json_lines(["", "one", " \n\u3000"]))
    reader = read_documents([path])
    assert [d.text for d in reader] == ["one"]
    assert reader.skipped == {"empty document": 2}


BROKEN_LINES = [
    (b'{"text": "cut', "broken JSON", "broken JSON: Unterminated string"),
    (b"[1, 2]", "broken JSON", "expected a JSON object on every line, found an array"),
    (b"[" * 100_000, "broken JSON", "broken JSON"),
    (b'{"id": ' + b"1" * 5000 + b"}", "broken JSON", "broken JSON"),
    (b'{"id": 1}', "missing key", 'no "text" in the record; it has: id (choose with --key)'),
    (b'{"texts": "a"}', "missing key", 'no "text" in the record; did you mean --key texts?'),
    (b"{}", "missing key", 'no "text" in the record'),
    (b'{"text": null}', "not a string", '"text" is null, a string is expected'),
    (b'{"text": 7}', "not a string", '"text" is a number, a string is expected'),
    (b'{"text": ["a"]}', "not a string", '"text" is an array, a string is expected'),
    (b'{"text": "caf\xe9"}', "invalid UTF-8", "invalid UTF-8 at byte 13 of the line"),
    (b'{"text": "\xed\xa0\xbd"}', "invalid UTF-8", "invalid UTF-8 at byte 10 of the line"),
    (b'{"text": "ab\\ud83d"}', "lone surrogate", r"lone surrogate \ud83d at character 2 of the text"),
]


@pytest.mark.parametrize(("line", "reason", "message"), BROKEN_LINES)
def test_a_broken_line_is_named_or_counted(tmp_path, line, reason, message):
    path = write(tmp_path, "a.jsonl", json_lines(["before"]) + line + b"\n" + json_lines(["after"]))
    text = problem(path)
    assert text.startswith(f"{path}:2: {message}")
    assert "--on-bad-record skip" in text
    assert skips(path) == (["before", "after"], {reason: 1})


def test_paired_surrogates_are_text(tmp_path):
    path = write(tmp_path, "a.jsonl", b'{"text": "\\ud83d\\ude00"}\n')
    assert texts_of(path) == ["\U0001f600"]


def test_invalid_utf8_in_a_text_file_names_the_line_inside_the_paragraph(tmp_path):
    path = write(tmp_path, "a.txt", b"good\n\nline 3\nline 4 \xff\n\nlast\n")
    assert problem(path).startswith(f"{path}:4: invalid UTF-8")
    assert skips(path) == (["good", "last"], {"invalid UTF-8": 1})


PACKED = gzip.compress(json_lines([f"text number {i}" for i in range(2000)]), mtime=0)
PACKED_ZST = zstandard.compress(json_lines([f"text number {i}" for i in range(2000)]))
BROKEN_FILES = [
    ("a.jsonl", b"", "empty file", "the file is empty"),
    ("a.jsonl", b"\n \n", "empty file", "the file is empty"),
    ("a.txt", b"", "empty file", "the file is empty"),
    ("a.jsonl.gz", gzip.compress(b"", mtime=0), "empty file", "the file is empty"),
    ("a.parquet", b"", "empty file", "the file is empty"),
    ("a.jsonl", b"\x7fELF\x02\x00\x00", "NUL bytes", "holds NUL bytes"),
    ("a.txt", "text".encode("utf-16"), "NUL bytes", "holds NUL bytes"),
    ("a.jsonl.gz", b"no gzip", "damaged file", "damaged gzip data"),
    ("a.jsonl.gz", PACKED[:200] + b"\xff" * 50 + PACKED[250:], "damaged file", "damaged gzip data"),
    ("a.jsonl.zst", b"no zstd", "damaged file", "damaged zstd data"),
    ("a.parquet", b"no parquet", "damaged file", "not a readable parquet file"),
]


@pytest.mark.parametrize(("name", "data", "reason", "message"), BROKEN_FILES)
def test_a_broken_file_is_named_or_counted(tmp_path, name, data, reason, message):
    path = write(tmp_path, name, data)
    text = problem(path)
    assert text.startswith(path)
    assert message in text
    assert skips(path) == ([], {reason: 1})


@pytest.mark.parametrize(("name", "data"), [("a.jsonl.gz", PACKED), ("a.jsonl.zst", PACKED_ZST)])
def test_a_truncated_file_is_never_taken_for_a_whole_one(tmp_path, name, data):
    path = write(tmp_path, name, data[: len(data) // 2])
    assert "truncated" in problem(path)
    texts, skipped = skips(path)
    assert skipped == {"truncated file": 1}
    assert texts == [f"text number {i}" for i in range(len(texts))]


def test_a_line_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "CHUNK_BYTES", 16)
    monkeypatch.setattr(inputs, "MAX_RECORD_BYTES", 100)
    path = write(tmp_path, "a.jsonl", json_lines(["one", "x" * 200]))
    assert problem(path).startswith(f"{path}:2: the line is longer than 100 bytes")
    path = write(tmp_path, "a.txt", b"one\n\n" + b"some words\n" * 20)
    assert problem(path).startswith(f"{path}:3: the paragraph that starts here is longer than 100 bytes")
    assert texts_of(path, txt_mode="line")[-1] == "some words"


def test_parquet_columns_and_values(tmp_path):
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"texts": ["a"]}), path)
    assert problem(path).startswith(f'{path}: no column "text"; did you mean --key texts?')
    pq.write_table(pa.table({"text": [1, 2]}), path)
    assert 'column "text" holds int64, strings are expected' in problem(path)
    pq.write_table(pa.table({"text": ["a", None, "b"]}), path)
    assert problem(path).startswith(f"{path}, row 2: the text is null")
    assert skips(path) == (["a", "b"], {"not a string": 1})
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))
    pq.write_table(pa.table({"text": broken}), path)
    assert problem(path).startswith(f"{path}, row 2: invalid UTF-8")
    assert skips(path) == (["a"], {"invalid UTF-8": 1})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.jsonl", "missing.jsonl: no such file"),
        ("a.csv", "a.csv: unknown kind of input file; known endings are .jsonl, .jsonl.gz, .jsonl.zst"),
        ("a", "unknown kind of input file"),
        ("a.parquet.gz", "unknown kind of input file"),
        ("folder.txt", "folder.txt: not a file"),
    ],
)
def test_wrong_paths_are_told_before_anything_is_read(tmp_path, name, message):
    (tmp_path / "folder.txt").mkdir()
    write(tmp_path, "a.csv", b"text\n")
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        DocumentReader([str(tmp_path / name)])


def test_standard_input_once():
    with pytest.raises(UserError, match="only once"):
        DocumentReader(["-", "-"])
