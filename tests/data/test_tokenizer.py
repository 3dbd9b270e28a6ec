"""The tokenizer: Llama 2's settings, exact round trips, and what can be wrong with a model."""

import hashlib
import random

import numpy as np
import pytest
import sentencepiece

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.tokenizer import BOS_ID, EOS_ID, Tokenizer, train_tokenizer

WORDS = "the quick brown fox jumps over lazy dogs while seven wizards quietly forge 1234 boxing gloves".split()


def corpus(documents: int = 200) -> list[str]:
    chooser = random.Random(0)
    return [" ".join(chooser.choices(WORDS, k=40)) + ".\n" for _ in range(documents)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer(corpus(), path, vocab_size=360, max_sentences=10_000)
    return path


def test_what_a_manifest_remembers(model):
    tokenizer = Tokenizer(model)
    assert tokenizer.fingerprint() == {
        "file": "tokenizer.model",
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "vocab_size": 360,
        "bos_id": BOS_ID,
        "eos_id": EOS_ID,
    }
    assert tokenizer.unk_id == 0


@pytest.mark.parametrize(
    "text",
    ["the quick fox", " two  spaces ", "line\nline\r\n\ttab", "漢字 🏳️‍🌈 e\u0301", "a\0b\u2028\x07", "12345"],
)
def test_any_text_comes_back(model, text):
    tokenizer = Tokenizer(model)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert ids.min() > EOS_ID
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([BOS_ID, *ids, EOS_ID]) == text


def test_settings_of_llama(model):
    tokenizer = Tokenizer(model)
    pieces = [tokenizer.piece(token) for token in tokenizer.encode("the 1234 fox\n")]
    assert pieces[0].startswith("▁")  # the dummy prefix
    assert [piece for piece in pieces if piece.isdigit()] == ["1", "2", "3", "4"]  # digits stand alone
    assert pieces[-1] == "<0x0A>"  # line ends are bytes, in no piece
    assert tokenizer.piece(3) == "<0x00>"  # byte pieces follow the special ones


def test_offsets_point_into_the_text(model):
    tokenizer = Tokenizer(model)
    text = "the 漢fox"
    offsets = tokenizer.encode_with_offsets(text)
    np.testing.assert_array_equal(offsets.ids, tokenizer.encode(text))
    assert offsets.ends[-1] == len(text)
    # Three bytes spell one character, which counts from the last of them on.
    character = text.index("漢")
    first = [tokenizer.piece(token) for token in offsets.ids].index("<0xE6>")
    assert offsets.ends[first : first + 3].tolist() == [character, character, character + 1]


def test_training_is_deterministic_and_sampled(tmp_path):
    for name, limit in (("a", 10_000), ("b", 10_000), ("c", 110), ("d", 110)):
        train_tokenizer(corpus(), tmp_path / name, vocab_size=360, max_sentences=limit)
    data = {name: (tmp_path / name).read_bytes() for name in "abcd"}
    assert data["a"] == data["b"]
    assert data["c"] == data["d"]
    assert data["a"] != data["c"]


def test_a_vocabulary_that_does_not_fit_says_what_does(tmp_path):
    with pytest.raises(UserError, match=r"--vocab-size 32000 is too large.* (\d+) pieces at the most") as caught:
        train_tokenizer(corpus(), tmp_path / "m", 32000, 10_000)
    most = int(str(caught.value).split("fills ")[1].split()[0])
    train_tokenizer(corpus(), tmp_path / "m", most, 10_000)
    assert Tokenizer(tmp_path / "m").vocab_size == most
    with pytest.raises(UserError, match=r"--vocab-size 100 is too small.* need (\d+) at the least"):
        train_tokenizer(corpus(), tmp_path / "n", 100, 10_000)
    assert not (tmp_path / "n").exists()


def test_errors_of_the_documents_pass_through(tmp_path):
    def texts():
        yield "some text"
        raise UserError("a.jsonl:2: broken JSON")

    with pytest.raises(UserError, match=r"a.jsonl:2: broken JSON"):
        train_tokenizer(texts(), tmp_path / "m", 300, 1000)
    with pytest.raises(UserError, match="no text to train"):
        train_tokenizer([], tmp_path / "m", 300, 1000)
    with pytest.raises(UserError, match="--max-sentences 50"):
        train_tokenizer(corpus(), tmp_path / "m", 300, 50)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("data", [b"", b"plain text", b"\x08\x96\x01", b"\0" * 100])
def test_a_file_that_is_no_model(tmp_path, data):
    path = tmp_path / "x.model"
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.model: not a sentencepiece model"):
        Tokenizer(path)


def test_a_missing_model(tmp_path):
    with pytest.raises(UserError, match=r"missing\.model: no such tokenizer"):
        Tokenizer(tmp_path / "missing.model")


def test_a_model_without_bos(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_prefix=str(tmp_path / "x"),
        vocab_size=60,
        model_type="bpe",
        bos_id=-1,
        minloglevel=3,
    )
    with pytest.raises(UserError, match="has no BOS piece"):
        Tokenizer(tmp_path / "x.model")
