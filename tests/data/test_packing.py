"""Plans, and the rows that they make."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig, TrainingConfig
from megatron_pixel.data import packing
from megatron_pixel.data.mixture import open_training
from megatron_pixel.data.packed import PackedSource
from megatron_pixel.data.packing import PackingPlan, pack, plan_prefix
from megatron_pixel.data.packing_datasets import pack_dataset
from megatron_pixel.data.rows import Kind, Modality, Piece, Row, fill_documents, fill_text, target_masks
from megatron_pixel.data.sources import PairSource, PixelSource, open_sources
from tests.data.conftest import DOCUMENTS, MakeDataset

MODEL = ModelConfig(vocab_size=1000, seq_length=12, patch_size=16, num_channels=1)
PAIR = PairConfig(patches=8, tokens=8)
RENDERING = {"patch_size": 16, "mode": "gray", "seq_length": 8}
TOKENIZER = {"file": "t.model", "sha256": "0", "vocab_size": 1000, "bos_id": 1, "eos_id": 2}
LENGTHS = [length for document in DOCUMENTS for length in document]


@pytest.fixture
def pixels(make_dataset: MakeDataset) -> str:
    return make_dataset("pixels", rendering=RENDERING)


def test_every_page_is_in_one_row_that_has_room_for_it() -> None:
    rng = random.Random(1)
    lengths = [rng.randint(1, 100) for _ in range(2000)]
    rows = pack(lengths, 100)
    assert sorted(page for row in rows for page in row) == list(range(2000))
    assert max(sum(lengths[page] for page in row) for row in rows) <= 100
    assert len(rows) <= 1.02 * sum(lengths) / 100, "nearly every row is full"
    assert rows == pack(list(lengths), 100)


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        ([], []),
        ([5], [[0]]),
        ([4, 4, 4], [[0], [1], [2]]),
        ([2, 5, 3, 5, 5], [[0, 2], [1], [3], [4]]),
        # Best fit: the page of 1 goes where 1 is left, although the row with 2 came first.
        ([3, 4, 1], [[0], [1, 2]]),
    ],
)
def test_small_cases(lengths: list[int], rows: list[list[int]]) -> None:
    assert pack(lengths, 5) == rows


def test_a_page_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="6 positions does not fit a row of 5"):
        pack([1, 6], 5)


def test_a_plan_is_read_as_it_was_made_over_several_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "WINDOW", 8)
    rng = random.Random(2)
    lengths = [rng.randint(1, 10) for _ in range(29)]
    packed = [(pack(lengths[a:b], 10), sum(lengths[a:b])) for a, b in packing.windows(29)]
    facts = packing.write_plan(plan_prefix(str(tmp_path / "set"), "train", 10), "content", 10, packed)
    plan = PackingPlan(str(tmp_path / "set"), "train", 10, "content")
    rows = [plan.pages(row) for row in range(len(plan))]
    assert rows == [[8 * window + page for page in row] for window, (part, _) in enumerate(packed) for row in part]
    assert sorted(page for row in rows for page in row) == list(range(29))
    assert (facts.pages, facts.rows, facts.positions) == (29, len(rows), sum(lengths))


def test_rows_hold_the_pages_of_the_plan(pixels: str) -> None:
    facts = pack_dataset(pixels, MODEL.seq_length)
    single = PixelSource(pixels, "train", MODEL, "pixel:set")
    plan = PackingPlan(pixels, "train", MODEL.seq_length, single.fingerprint)
    packed = PackedSource(single, plan)
    assert (packed.num_rows, facts.positions) == (2, sum(LENGTHS))
    for index in range(packed.num_rows):
        row = packed.row(index)
        assert row.patches is not None
        start = 0
        for number, page in enumerate(plan.pages(index)):
            alone, stop = single.row(page), start + LENGTHS[page]
            assert alone.patches is not None
            np.testing.assert_array_equal(row.patches[start:stop], alone.patches[: stop - start])
            np.testing.assert_array_equal(row.position_ids[start:stop], np.arange(stop - start))
            assert set(row.segment_ids[start:stop]) == {number}
            start = stop
        assert (row.modality[:start] == Modality.PATCH).all()
        assert (row.modality[start:] == Modality.PADDING).all()
        assert (row.segment_ids[start:] == -1).all()
        assert (row.patches[start:] == 255).all()
        assert (row.position_ids[start:] > 0).all(), "padding begins no document"
    assert packed.identity != single.identity


def test_pairs_keep_their_two_segments(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pairs", rendering=RENDERING, tokenizer=TOKENIZER, pair={"patches": 8, "tokens": 8})
    facts = pack_dataset(prefix, 16)
    model = ModelConfig(vocab_size=1000, seq_length=16, patch_size=16, num_channels=1)
    single = PairSource(prefix, "train", model, PAIR, "pair:set")
    plan = PackingPlan(prefix, "train", 16, single.fingerprint)
    token_targets = patch_targets = 0
    for index in range(len(plan)):
        row = PackedSource(single, plan).row(index)
        token, patch = target_masks(row.modality, row.segment_ids)
        token_targets += int(token.sum())
        patch_targets += int(patch.sum())
        assert (row.segment_ids.max() + 1) == 2 * len(plan.pages(index))
        assert int((row.position_ids == 0).sum()) == len(plan.pages(index))
    alone = [single.row(index) for index in range(single.num_rows)]
    masks = [target_masks(row.modality, row.segment_ids) for row in alone]
    assert token_targets == sum(int(token.sum()) for token, _ in masks)
    assert patch_targets == sum(int(patch.sum()) for _, patch in masks)
    assert facts.pages == single.num_rows


def test_text_begins_anew_in_every_document() -> None:
    row = fill_text(Row.empty(8, 0, ("text", 0)), np.arange(3, 10), np.array([0, 2, 3]), apart=True)
    assert row.position_ids.tolist() == [0, 1, 0, 0, 1, 2, 3, 7]
    row = fill_text(Row.empty(8, 0, ("text", 0)), np.arange(3, 10), np.array([2, 3]), apart=True)
    assert row.position_ids.tolist() == [0, 1, 0, 0, 1, 2, 3, 7], "a document that began in an earlier row"
    row = fill_text(Row.empty(8, 0, ("text", 0)), np.arange(3, 10), np.array([0, 2, 3]))
    assert row.position_ids.tolist() == list(range(8))


def test_rows_too_full_are_refused() -> None:
    with pytest.raises(ValueError, match="9 positions do not fit a row with room for 1 to 8"):
        fill_documents(Row.empty(8, 4, ("pixel", 0)), [Piece(5), Piece(4)])


def test_a_run_reads_each_page_once_an_epoch_over_any_layout(pixels: str) -> None:
    pack_dataset(pixels, MODEL.seq_length)
    data = DataConfig(pixels=[pixels], mixture="0:1:0", packing="documents")
    training = TrainingConfig(global_batch_rows=2, micro_batch_rows=1)
    whole, shared = (open_training(data, MODEL, PAIR, training, ranks) for ranks in (1, 2))
    for step in range(3):
        rows = [whole.micro_batch(step, i, 0, 1) for i in range(2)]
        assert sum(int((row.modality == Modality.PATCH).sum()) for row in rows) == sum(LENGTHS)
        others = [shared.micro_batch(step, 0, rank, 2) for rank in range(2)]
        assert sorted(batch.rows[0] for batch in rows) == sorted(batch.rows[0] for batch in others)
    assert whole.consumed(3) == shared.consumed(3)
    resumed, before = (
        reader.micro_batch(2, 1, 0, 1) for reader in (open_training(data, MODEL, PAIR, training, 1), whole)
    )
    assert resumed.rows == before.rows
    for name in ("patches", "modality", "position_ids", "segment_ids"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(before, name))


def test_held_out_pages_stay_apart(pixels: str) -> None:
    data = DataConfig(pixels=[pixels], mixture="0:1:0", packing="documents")
    [(_, source)] = open_sources([Kind.PIXEL], "heldout", data, MODEL, PAIR)[Kind.PIXEL]
    assert isinstance(source, PixelSource)


def test_a_plan_that_does_not_fit_says_what_to_do(pixels: str, make_dataset: MakeDataset) -> None:
    data = DataConfig(pixels=[pixels], mixture="0:1:0", packing="documents")
    command = rf"python data_tools/pack\.py {pixels} --seq-length 12"
    with pytest.raises(UserError, match=rf"packed12\.json, which does not exist: {command} makes it"):
        open_sources([Kind.PIXEL], "train", data, MODEL, PAIR)
    pack_dataset(pixels, 12)
    path = Path(plan_prefix(pixels, "train", 12) + ".json")
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"fingerprint": "other"}))
    with pytest.raises(UserError, match=rf"made for other content than the dataset has: {command}"):
        open_sources([Kind.PIXEL], "train", data, MODEL, PAIR)
    path.write_text(json.dumps(facts | {"rows": 99}))
    with pytest.raises(UserError, match="does not agree"):
        open_sources([Kind.PIXEL], "train", data, MODEL, PAIR)
    with pytest.raises(UserError, match="takes 7 positions: more than --seq-length 6"):
        pack_dataset(pixels, 6)
    text = make_dataset("text", "text", tokenizer=TOKENIZER)
    with pytest.raises(UserError, match="text needs no plan"):
        pack_dataset(text, 12)
