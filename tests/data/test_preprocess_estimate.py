"""--dry-run: what it says of a run, held against the run."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data import preprocess_estimate
from megatron_pixel.data.documents import DocumentReader, ReaderOptions
from megatron_pixel.data.preprocess_documents import Recipe
from megatron_pixel.data.preprocess_estimate import estimate, estimate_table
from megatron_pixel.data.preprocessing import preprocess
from megatron_pixel.data.tokenizer import train_tokenizer
from megatron_pixel.rendering.fonts import find_fonts

WORDS = "we hold these truths to be self-evident that all men women children are created equal".split()


def text(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory) -> dict[str, Recipe]:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([text(40, seed) for seed in range(100)], path, vocab_size=320, max_sentences=10_000)
    # One font instead of the whole chain: building a renderer takes a tenth of the time.
    rendering = RenderingConfig(fonts=[str(find_fonts([], "default")[0].path)], seq_length=128)
    return {
        "text": Recipe("text", 0.1, tokenizer=str(path)),
        "pixels": Recipe("pixels", 0.1, rendering=rendering),
        "strings": Recipe("strings", 0.1, rendering=rendering),
    }


TEXTS = [text(random.Random(number).randrange(20, 300) + number // 4, number) for number in range(700)]
"""Longer towards the end: their beginning alone would mislead."""


def write(folder, ending: str) -> str:
    path = folder / f"a.{ending}"
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    if ending == "parquet":
        pq.write_table(pa.table({"text": TEXTS}), str(path), row_group_size=20)
    else:
        path.write_bytes(gzip.compress(lines, mtime=0) if ending.endswith("gz") else lines)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "ending"), [("text", "jsonl"), ("text", "parquet"), ("pixels", "jsonl"), ("strings", "jsonl")]
)
def test_the_estimate_holds_the_truth(recipes, tmp_path, monkeypatch, kind, ending):
    monkeypatch.setattr(preprocess_estimate, "_COUNTED_BYTES", 0)
    monkeypatch.setattr(preprocess_estimate, "_TEXT_OF_A_PLACE", 1200)
    path = write(tmp_path, ending)
    result = estimate(DocumentReader([path]), recipes[kind])
    assert result.documents < 500
    assert result.places > 30
    assert [file.name for file in tmp_path.iterdir()] == [f"a.{ending}"]  # nothing was written
    report = preprocess(DocumentReader([path]), recipes[kind], str(tmp_path / "p"))
    size = sum(file.stat().st_size for file in tmp_path.glob("p.train.*")) + sum(
        file.stat().st_size for file in tmp_path.glob("p.heldout.*")
    )
    truth = {"documents": 700, "text_bytes": report.text_bytes, "disk_bytes": size}
    if kind == "text":
        truth["tokens"] = report.total.tokens
    else:
        truth |= {"pages": report.total.sequences, "patches": report.total.patches}
    for name, value in truth.items():
        spread = result.spreads[name]
        assert spread < 0.15
        assert abs(result.values[name] - value) < 2 * max(spread, 0.005) * value, name  # four standard errors


def test_a_long_compressed_file_and_a_short_one(recipes, tmp_path, monkeypatch):
    path = write(tmp_path, "jsonl.gz")
    counted = estimate(DocumentReader([path]), recipes["text"])
    assert counted.documents == counted.values["documents"] == 700
    assert not any(counted.spreads.values())
    assert "all 700 documents" in estimate_table(counted, 1)
    monkeypatch.setattr(preprocess_estimate, "_COUNTED_BYTES", 0)
    monkeypatch.setattr(preprocess_estimate, "_TEXT_OF_A_PLACE", 100)
    guessed = estimate(DocumentReader([path]), recipes["text"])
    assert 400 < guessed.values["documents"] < 2500  # from its beginning alone, where documents are short
    assert "no spread" in estimate_table(guessed, 1)


def test_a_limit_counts(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess_estimate, "_COUNTED_BYTES", 0)
    reader = DocumentReader([write(tmp_path, "jsonl")], ReaderOptions(max_documents=70))
    result = estimate(reader, recipes["text"])
    assert result.values["documents"] == 70
    table = estimate_table(result, 8)
    assert "documents         70\n" in table
    assert "with 8 processes" in table
    assert "if there are 8 cores" in table


def test_what_cannot_be_estimated(recipes, tmp_path):
    with pytest.raises(UserError, match="standard input can be read only once"):
        estimate(DocumentReader(["-"]), recipes["text"])
    path = tmp_path / "empty.jsonl"
    path.write_text("\n\n")
    with pytest.raises(UserError, match=r"no documents found in .*empty\.jsonl"):
        estimate(DocumentReader([str(path)]), recipes["text"])
