import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.stores import PageStore, PairStore, TokenStore
from megatron_pixel.rendering.page import Page

MakeDataset = Callable[..., str]
MakePage = Callable[..., Page]

SEQUENCES = [5, 3, 1, 7, 2, 2, 4]
"""Lengths in the datasets of conftest.py; sequence i holds the tokens 100 i, 100 i + 1, ..."""
STREAM = [100 * sequence + token for sequence, length in enumerate(SEQUENCES) for token in range(length)]
STARTS = [0, 8, 9, 9, 20]
"""Where its documents begin; the third is empty."""


def test_tokens_across_documents(make_dataset: MakeDataset) -> None:
    store = pickle.loads(pickle.dumps(TokenStore(make_dataset("text"))))
    assert (store.num_tokens, store.num_documents) == (24, 5)
    for start in range(25):
        for stop in range(start, 25):
            assert store.read(start, stop).tolist() == STREAM[start:stop]
    for start, stop in [(-1, 3), (3, 2), (0, 25)]:
        with pytest.raises(IndexError):
            store.read(start, stop)


def test_documents(make_dataset: MakeDataset) -> None:
    store = TokenStore(make_dataset("text"))
    assert store.documents.tolist() == [*STARTS, 24]
    assert [store.document_start(document) for document in range(6)] == [*STARTS, 24]
    # The empty document 2 holds no token.
    assert [store.document_at(position) for position in range(24)] == [0] * 8 + [1] + [3] * 11 + [4] * 4
    for start in range(25):
        for stop in range(start, 25):
            expected = [position for position in STARTS if start <= position < stop]
            assert store.starts_between(start, stop).tolist() == expected


def test_finding_a_document_reads_few_entries(make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TokenStore(make_dataset("text"))
    documents = 2**20
    monkeypatch.setattr(TokenStore, "num_documents", documents)
    asked = []

    def document_start(document: int) -> int:
        asked.append(document)
        return 3 * document

    monkeypatch.setattr(store, "document_start", document_start)
    assert store.document_at(300_001) == 100_000
    assert len(asked) <= 21
    assert store.starts_between(300_001, 300_007).tolist() == [300_003, 300_006]
    assert len(asked) <= 70


def test_an_empty_split(make_dataset: MakeDataset) -> None:
    store = TokenStore(make_dataset("text"), "heldout")
    assert (store.num_tokens, store.num_documents) == (0, 0)
    assert store.read(0, 0).tolist() == []
    assert store.documents.tolist() == [0]
    assert len(PageStore(make_dataset("pixels", "pixels"), "heldout")) == 0


def test_pages(make_dataset: MakeDataset, make_page: MakePage) -> None:
    store = pickle.loads(pickle.dumps(PageStore(make_dataset("pixels"))))
    assert len(store) == 7
    assert store.patch_size == 16
    row = np.zeros((9, 16, 16, 3), np.uint8)
    for index, length in enumerate(SEQUENCES):
        page = make_page(length, index)
        assert np.array_equal(store.page(index).columns, page.columns)
        assert np.array_equal(store.patches(index, 3, row), page.patches(3))
        assert np.array_equal(store.patches(index, 1), page.patches(1))
        assert store.num_patches(index) == length
    for index in (-1, 7):
        with pytest.raises(IndexError):
            store.page(index)


def test_pairs(make_dataset: MakeDataset, make_page: MakePage) -> None:
    store = PairStore(make_dataset("pairs"))
    assert len(store) == 7
    page, tokens = store.pair(3)
    assert np.array_equal(page.columns, make_page(7, 3).columns)
    assert tokens.tolist() == [300, 301, 302, 303, 304, 305, 306]
    assert store.tokens[6].tolist() == [600, 601, 602, 603]


def test_a_damaged_page_is_named(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pixels")
    store = PageStore(prefix)
    with open(prefix + ".train.pages.bin", "r+b") as file:
        file.seek(int(store.pages.pointers[5]) + 20)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    store.page(4)
    for read in (store.page, store.num_patches, lambda index: store.patches(index, 3)):
        with pytest.raises(UserError, match=r"set\.train\.pages\.bin: page 5 is damaged: wrong checksum"):
            read(5)


def test_another_kind_is_refused_by_name(make_dataset: MakeDataset) -> None:
    stores = {"text": TokenStore, "pixels": PageStore, "pairs": PairStore}
    for kind in stores:
        prefix = make_dataset(kind, kind)
        for other, store in stores.items():
            if other != kind:
                with pytest.raises(UserError, match=rf"a {kind} dataset .* as {other}; it belongs under data\.{kind}"):
                    store(prefix)


def test_no_such_split(make_dataset: MakeDataset) -> None:
    with pytest.raises(UserError, match="no split 'test': a dataset has train and heldout"):
        TokenStore(make_dataset("text"), "test")


def test_fingerprints(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Equal for equal content under any name; different for another split or content."""
    first = PairStore(make_dataset("pairs", "first", command="one"))
    again = PairStore(make_dataset("pairs", "again", command="other"))
    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != PairStore(first.prefix, "heldout").fingerprint
    assert first.fingerprint != PageStore(make_dataset("pixels", "pixels")).fingerprint
    for path in tmp_path.glob("first.*"):
        shutil.copy(path, tmp_path / path.name.replace("first", "copy"))
    assert PairStore(str(tmp_path / "copy")).fingerprint == first.fingerprint


def test_opening_does_not_touch_the_data(make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = make_dataset("pixels")
    monkeypatch.setattr("megatron_pixel.data.dataset_codecs.load_codec", lambda *_: pytest.fail("tables read"))
    assert len(PageStore(prefix)) == 7
