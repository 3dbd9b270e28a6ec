"""Parts of inputs: whatever the cuts, the records are the same, and errors name the line of the file."""

import json
import random
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import inputs
from megatron_pixel.data.documents import DocumentReader, PartReader, ReaderOptions
from megatron_pixel.data.preprocess_plan import cut_file, make_plan, usual_part_bytes

PIECES = {
    "jsonl": [b'{"text": "a"}\n', b'{"text": "longer text"}\r\n', b"\n", b" \n", b"{broken\n", b'{"text": "\xff"}\n']
    + [b'{"text": "\x00"}\n', b'{"text": " "}\n', b'{"text": "' + b"x" * 40 + b'"}\n'],
    "txt": [b"one\n", b"two\r\n", b"\n", b" \t\n", b"\n\n", b"word " * 8 + b"\n", b"\xff\n", b"a\x00\n", b"\r\n"],
}
"""What random files are put together of; the long ones are beyond the longest record of these tests."""


def read(file, cuts, options):
    """Documents with their places, and what was skipped, read part by part."""
    found, skipped = [], Counter()
    for part in cuts:
        reader = PartReader(part, options, skipped)
        found += [(document.text, reader.where(document)) for document in reader]
        assert reader.bytes_done == part.size
    return found, skipped


@pytest.mark.parametrize(("content", "mode"), [("jsonl", "line"), ("txt", "line"), ("txt", "paragraph")])
@pytest.mark.parametrize("chunk", [3, 1 << 18])
def test_cuts_do_not_show(tmp_path, monkeypatch, content, mode, chunk):
    monkeypatch.setattr(inputs, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(inputs, "MAX_RECORD_BYTES", 36)
    rng = random.Random(f"{content} {mode}")
    options = ReaderOptions(on_bad_record="skip", txt_mode=mode)
    seen = Counter()
    for number in range(150):
        data = b"".join(rng.choices(PIECES[content], k=rng.randrange(12)))
        data = rng.choice([b"", b"\xef\xbb\xbf"]) + (data[:-1] if rng.random() < 0.5 else data) + b"e"
        path = tmp_path / f"{number}.{content}"
        path.write_bytes(data)
        (file,) = DocumentReader([str(path)]).files
        found, skipped = read(file, [file], options)
        seen.update(skipped)
        edges = sorted({0, len(data), *rng.choices(range(len(data)), k=rng.randrange(6))})
        cuts = [
            replace(file, start=start, stop=stop, first=None if start else 1, size=stop - start)
            for start, stop in pairwise(edges)
        ]
        assert read(file, cuts, options) == (found, skipped), (data, edges)
    assert {"record too long", "NUL bytes", "invalid UTF-8"} <= set(seen)


@pytest.mark.parametrize("content", ["jsonl", "txt"])
def test_an_error_in_a_part_names_the_line_of_the_file(tmp_path, content):
    path = tmp_path / f"a.{content}"
    good = {"jsonl": b'{"text": "good"}\n', "txt": b"two\nlines\n\n"}[content]
    path.write_bytes(good * 200 + b"\xff\n\n" + good * 50)
    (file,) = DocumentReader([str(path)]).files
    parts = cut_file(file, 300, ReaderOptions())
    assert len(parts) > 5
    line = good.count(b"\n") * 200 + 1
    with pytest.raises(UserError, match=rf"a\.{content}:{line}: "):
        read(file, parts, ReaderOptions())


def test_row_groups(tmp_path):
    path = str(tmp_path / "a.parquet")
    texts = [f"text {number}" for number in range(1000)]
    pq.write_table(pa.table({"text": texts, "other": texts}), path, row_group_size=100)
    (file,) = DocumentReader([path]).files
    parts = cut_file(file, 5000, ReaderOptions())
    assert 2 < len(parts) <= 10
    found, _ = read(file, parts, ReaderOptions())
    assert [text for text, _ in found] == texts
    assert [place for _, place in found] == [f"{path}:{number + 1}" for number in range(1000)]
    assert sum(part.size for part in parts) == file.size
    assert cut_file(file, 1 << 20, ReaderOptions()) == [replace(file, stop=10)]


def test_parts_follow_from_the_sizes_of_the_inputs():
    mib = 1 << 20
    assert usual_part_bytes(10) == mib
    assert usual_part_bytes(100 * mib) == 100 * mib // 64
    assert usual_part_bytes(mib * mib) == 64 * mib  # a tebibyte is 16,384 parts
    assert usual_part_bytes(4096 * mib) == 32 * mib


def test_what_is_spooled(tmp_path):
    def plan(*sizes, **options):
        paths = []
        for number, size in enumerate(sizes):
            path = tmp_path / f"{number}.jsonl.gz"
            with path.open("wb") as file:
                file.truncate(size)
            paths.append(str(path))
        return make_plan(DocumentReader(paths, ReaderOptions(**options)))

    assert plan(1000).spooled == set()
    assert plan(10 << 20).spooled == {0}
    assert plan(10 << 20, 1000).spooled == {0}
    assert plan(*[10 << 20] * 300).spooled == set()  # of many files none is a straggler
    assert plan(*[300 << 20] * 300).spooled == set(range(300))
    assert plan(10 << 20, max_documents=3).limited


def test_ranges_cover_a_file(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * number}) + "\n" for number in range(100)))
    (file,) = DocumentReader([str(path)]).files
    for size in (1, 7, 999, 1 << 30):
        parts = cut_file(file, size, ReaderOptions())
        assert parts[0].start == 0
        assert parts[-1].stop == file.size
        assert all(part.stop == following.start for part, following in pairwise(parts))
    assert cut_file(replace(file, size=0), 10, ReaderOptions()) == []
    assert len(cut_file(replace(file, content="txt"), 10, ReaderOptions(txt_mode="file"))) == 1
