from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig, PairConfig
from megatron_pixel.data.rows import Kind, Modality, Row, count_targets
from megatron_pixel.data.synthetic import BOS, EOS, FIRST_WORD, NUM_STROKES, Language, SyntheticSource

MODEL = ModelConfig(vocab_size=64, seq_length=64, patch_size=4, num_channels=1)
PAIR = PairConfig(patches=32, tokens=32)


def source(kind: Kind, split: str = "train", model: ModelConfig = MODEL, pair: PairConfig = PAIR) -> SyntheticSource:
    return SyntheticSource(kind, split, model, pair)


def content(row: Row) -> bytes:
    patches = b"" if row.patches is None else row.patches.tobytes()
    return row.tokens.tobytes() + patches + row.modality.tobytes()


@pytest.mark.parametrize("kind", list(Kind))
def test_rows_are_always_the_same_and_never_repeat(kind):
    rows = [source(kind).row(index) for index in range(30)]
    assert [content(row) for row in rows] == [content(source(kind).row(index)) for index in range(30)]
    heldout = [source(kind, "heldout").row(index) for index in range(30)]
    assert len({content(row) for row in rows + heldout}) == 60
    assert rows[3].origin == (f"{kind.name.lower()}:synthetic", 3)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("vocab_size", [8, 20, 32000])
@pytest.mark.parametrize(("seq_length", "patches", "tokens"), [(4, 2, 2), (16, 8, 8), (96, 64, 32), (96, 10, 86)])
def test_rows_fit_every_model(kind, vocab_size, seq_length, patches, tokens):
    model = ModelConfig(vocab_size=vocab_size, seq_length=seq_length, patch_size=8, num_channels=3)
    it = source(kind, model=model, pair=PairConfig(patches=patches, tokens=tokens))
    for index in range(10):
        row = it.row(index)
        assert row.tokens.max() < vocab_size
        assert (row.patches is None) == (kind == Kind.TEXT)
        assert row.patches is None or row.patches.shape == (seq_length, 8 * 8 * 3)
        targets = count_targets(row.modality, row.segment_ids)
        assert (targets.tokens > 0) == (kind != Kind.PIXEL)
        assert (targets.patches > 0) == (kind != Kind.TEXT)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(UserError, match=r"model\.vocab_size is 7"):
        source(Kind.TEXT, model=ModelConfig(vocab_size=7))


def test_documents_are_opened_and_closed():
    row = source(Kind.TEXT).row(0)
    assert row.tokens[0] == BOS
    begins = np.flatnonzero(np.diff(row.segment_ids)) + 1
    assert (row.tokens[begins] == BOS).all()
    assert (row.tokens[begins - 1] == EOS).all()


def test_pages_end_black():
    model = ModelConfig(vocab_size=64, seq_length=64, patch_size=4, num_channels=3)
    row = source(Kind.PIXEL, model=model).row(1)
    shown = np.flatnonzero(row.modality == Modality.PATCH)
    assert not row.patches[shown[-1]].any()
    assert all(row.patches[position].any() for position in shown[:-1])


def test_the_last_word_tells_the_next():
    follows: dict[int, Counter[int]] = {}
    it = source(Kind.TEXT)
    for index in range(100):
        tokens = it.row(index).tokens.tolist()
        for previous, token in pairwise(tokens):
            if previous >= FIRST_WORD:
                follows.setdefault(previous, Counter())[token] += 1
    guessed = sum(counts.most_common(1)[0][1] for counts in follows.values())
    total = sum(sum(counts.values()) for counts in follows.values())
    all_tokens = sum(follows.values(), Counter())
    assert guessed / total > 0.6
    assert all_tokens.most_common(1)[0][1] / total < 0.3


def test_context_tells_more_of_the_next_patch_than_the_patch_before():
    language = Language(64, 4, 1)
    assert len({patch.tobytes() for patch in language.bank}) == NUM_STROKES + 2
    it = source(Kind.PIXEL)
    pages = []
    for index in range(300):
        row = it.row(index)
        pages.append([row.patches[position].tobytes() for position in np.flatnonzero(row.modality == Modality.PATCH)])

    def accuracy(order: int) -> float:
        seen: dict[tuple[bytes, ...], Counter[bytes]] = {}
        for page in pages:
            for end in range(order, len(page)):
                seen.setdefault(tuple(page[end - order : end]), Counter())[page[end]] += 1
        return sum(c.most_common(1)[0][1] for c in seen.values()) / sum(sum(c.values()) for c in seen.values())

    assert accuracy(3) > accuracy(1) + 0.2
    assert accuracy(1) > accuracy(0) + 0.05


@pytest.mark.parametrize("layout", ["compact", "released"])
def test_the_image_of_a_pair_shows_its_tokens(layout):
    language = Language(MODEL.vocab_size, MODEL.patch_size, MODEL.num_channels)
    it = source(Kind.PAIR, pair=PairConfig(layout=layout, patches=32, tokens=32))
    for index in range(20):
        row = it.row(index)
        tokens = row.tokens[row.modality == Modality.TOKEN]
        assert tokens[0] == BOS
        assert tokens[-1] == EOS
        page = language.page([int(token) - FIRST_WORD for token in tokens[1:-1]], 32)
        np.testing.assert_array_equal(row.patches[row.modality == Modality.PATCH], page.reshape(len(page), -1))


@pytest.mark.parametrize("layout", ["compact", "released"])
def test_packed_pairs_begin_their_tokens_where_their_layout_has_them(layout):
    it = SyntheticSource(Kind.PAIR, "train", MODEL, PairConfig(layout=layout, patches=32, tokens=32), packed=True)
    rows = [it.row(index) for index in range(5)]
    begins = [[*np.flatnonzero(row.position_ids == 0), 64] for row in rows]
    assert all(len(bounds) > 2 for bounds in begins), "several pairs a row"
    for row, bounds in zip(rows, begins, strict=True):
        for start, stop in pairwise(bounds):
            patches = np.count_nonzero(row.modality[start:stop] == Modality.PATCH)
            first = row.position_ids[start:stop][row.modality[start:stop] == Modality.TOKEN][0]
            assert first == (patches if layout == "compact" else 32)
