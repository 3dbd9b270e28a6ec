"""tokenizer.py: train, info, encode."""

import json

import pytest

from megatron_pixel.data.tokenizer import Tokenizer


def test_train_info_encode(tool, corpus, tmp_path):
    output = tmp_path / "tokenizer.model"
    result = tool("tokenizer", "train", "--input", corpus, "--output", output, "--vocab-size", 290)
    assert result.status == 0, result.err
    assert "290 pieces from 40 documents" in result.out
    assert result.err == "read 40 documents; learning 290 pieces\n"  # not a line of sentencepiece's own
    tokenizer = Tokenizer(output)
    assert tokenizer.vocab_size == 290

    result = tool("tokenizer", "info", output)
    assert result.status == 0
    assert tokenizer.sha256 in result.out
    assert result.out.split("vocab_size")[1].split()[0] == "290"

    result = tool("tokenizer", "encode", output, "a new nation")
    ids = [int(word) for word in result.out.splitlines()[1].split()]
    assert tokenizer.decode(ids) == "a new nation"


def test_bad_records(tool, corpus, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(corpus.read_text() + json.dumps({"body": "x"}) + "\n")
    words = ["train", "--input", path, "--output", tmp_path / "m", "--vocab-size", 290]
    result = tool("tokenizer", *words)
    assert result.status == 2
    assert result.err.startswith(f'error: {path}:41: no "text" in the record')
    assert not (tmp_path / "m").exists()
    result = tool("tokenizer", *words, "--on-bad-record", "skip")
    assert result.status == 0
    assert "skipped: missing key: 1" in result.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vocab-size", "32000"], "--vocab-size 32000 is too large for this text"),
        (["--vocab-size", "10"], "--vocab-size 10 is too small"),
        (["--max-sentences", "7"], "--max-sentences 7"),
        (["--input", "missing.txt"], "missing.txt: no such file"),
        (["--output", "missing/folder/x.model"], ""),
    ],
)
def test_wrong_settings(tool, corpus, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    result = tool("tokenizer", "train", "--input", corpus, "--output", "m", "--vocab-size", 290, *words)
    if message:
        assert result.status == 2
        assert message in result.err
        assert list(tmp_path.iterdir()) == []
    else:
        assert result.status == 0  # folders are made


def test_an_output_that_exists(tool, corpus, tmp_path):
    output = tmp_path / "m"
    output.write_text("precious")
    words = ["train", "--input", corpus, "--output", output, "--vocab-size", 290]
    result = tool("tokenizer", *words)
    assert result.status == 2
    assert "m exists" in result.err
    assert output.read_text() == "precious"
    assert tool("tokenizer", *words, "--overwrite").status == 0


@pytest.mark.parametrize("command", ["info", "encode"])
def test_a_file_that_is_no_model(tool, corpus, command):
    result = tool("tokenizer", command, corpus, *(["text"] if command == "encode" else []))
    assert result.status == 2
    assert "not a sentencepiece model" in result.err
