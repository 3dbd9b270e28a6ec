"""Plans, and the rows that they make."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig, RenderingOverrides, TrainingConfig
from megatron_pixel.data import packing, packing_datasets
from megatron_pixel.data.manifest import manifest_digest
from megatron_pixel.data.mixture import Mixture, MixtureReader, open_training
from megatron_pixel.data.packed import PackedSource
from megatron_pixel.data.packing import Content, PackedWindow, PackingPlan, plan_prefix, plans_of
from megatron_pixel.data.packing_datasets import pack_dataset
from megatron_pixel.data.packing_kernel import pack
from megatron_pixel.data.rows import Kind, Modality, Piece, Row, fill_documents, fill_text, target_masks
from megatron_pixel.data.sources import PairSource, PixelSource, TextSource, open_sources
from megatron_pixel.data.stores import PageStore
from tests.data.conftest import DOCUMENTS, MakeDataset

MODEL = ModelConfig(vocab_size=1000, seq_length=12, patch_size=16, num_channels=1)
PAIR = PairConfig(patches=8, tokens=8)
RENDERING = {"patch_size": 16, "mode": "gray", "seq_length": 8}
TOKENIZER = {"file": "t.model", "sha256": "0", "vocab_size": 1000, "bos_id": 1, "eos_id": 2}
LENGTHS = [length for document in DOCUMENTS for length in document]


@pytest.fixture
def pixels(make_dataset: MakeDataset) -> str:
    return make_dataset("pixels", rendering=RENDERING)


def rows_of(lengths: list[int], room: int) -> list[list[int]]:
    """What the compiled loop makes of these lengths, as lists."""
    places, sizes = pack(np.array(lengths, np.int32), room)
    return [part.tolist() for part in np.split(places, np.cumsum(sizes)[:-1])] if lengths else []


def plainly(lengths: list[int], room: int) -> list[list[int]]:
    """Best fit, decreasing, as it is told: the longest page first, each into the fullest row that has room."""
    rows: list[list[int]] = []
    for page in sorted(range(len(lengths)), key=lambda page: (-lengths[page], page)):
        free = [room - sum(lengths[other] for other in row) for row in rows]
        fitting = [row for row in range(len(rows)) if free[row] >= lengths[page]]
        if fitting:
            rows[min(fitting, key=lambda row: (free[row], row))].append(page)
        else:
            rows.append([page])
    return sorted(sorted(row) for row in rows)


@pytest.mark.parametrize("seed", range(30))
def test_the_compiled_loop_packs_as_it_is_told(seed: int) -> None:
    rng = random.Random(seed)
    room = rng.choice([1, 7, 64, 100, 200])
    longest = rng.randint(1, room)
    lengths = [min(rng.randint(1, longest), rng.randint(1, longest)) for _ in range(rng.randint(1, 120))]
    assert rows_of(lengths, room) == plainly(lengths, room)


def test_every_page_is_in_one_row_that_has_room_for_it() -> None:
    rng = random.Random(1)
    lengths = [rng.randint(1, 100) for _ in range(4096)]
    rows = rows_of(lengths, 100)
    assert sorted(page for row in rows for page in row) == list(range(4096))
    assert max(sum(lengths[page] for page in row) for row in rows) <= 100
    assert len(rows) <= 1.02 * sum(lengths) / 100, "nearly every row is full"


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
    assert rows_of(lengths, 5) == rows


@pytest.mark.parametrize("lengths", [[1, 6], [0, 5]])
def test_a_page_longer_than_a_row_is_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=f"pages of {lengths[0]} to {lengths[1]} positions do not fit rows of 5"):
        rows_of(lengths, 5)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(packing, "WINDOW", 8)
    monkeypatch.setattr(packing_datasets, "WINDOW", 8)
    return 8


def write(prefix: str, lengths: list[int], room: int) -> list[list[int]]:
    """A plan for pages of these lengths; the rows that it should have."""
    parts = [lengths[first:stop] for first, stop in packing.windows(len(lengths))]
    packed = [PackedWindow(*pack(np.array(part, np.int32), room), sum(part)) for part in parts]
    packing.write_plan(plan_prefix(prefix, "train", room), Content("content", len(lengths)), room, packed)
    return [[8 * window + page for page in row] for window, part in enumerate(parts) for row in rows_of(part, room)]


def test_a_plan_is_read_as_it_was_made_over_several_windows(tmp_path: Path, small_windows: int) -> None:
    rng = random.Random(2)
    lengths = [rng.randint(1, 10) for _ in range(29)]
    expected = write(str(tmp_path / "set"), lengths, 10)
    plan = PackingPlan(str(tmp_path / "set"), "train", 10, Content("content", 29))
    assert [plan.pages(row) for row in range(len(plan))] == expected
    assert sorted(page for row in expected for page in row) == list(range(29))
    assert (plan.facts.pages, plan.facts.rows, plan.facts.positions) == (29, len(expected), sum(lengths))
    assert plan.facts.fill == pytest.approx(sum(lengths) / (10 * len(expected)))
    assert plan.facts.fill_alone == pytest.approx(sum(lengths) / 290)


class Numbered:
    """Pages of any lengths whose patches say which page they are of, and which patch."""

    kind, note, manifest = Kind.PIXEL, "", SimpleNamespace()
    rows_per_block, seq_length, patch_values = 3, 10, 4

    def __init__(self, name: str, lengths: list[int]) -> None:
        self.name = self.identity = name
        self.lengths, self.num_rows = lengths, len(lengths)

    def piece(self, index: int, row: Row, start: int) -> Piece:
        assert row.patches is not None
        length = self.lengths[index]
        row.patches[start : start + length] = [[index // 256, index % 256, i, 0] for i in range(length)]
        return Piece(length)


def shown(patches: np.ndarray, modality: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Pages of a row, with the numbers of their patches."""
    content = patches[modality == Modality.PATCH].astype(int)
    ends = [*(np.flatnonzero(np.diff(content[:, 2]) <= 0) + 1), len(content)]
    for start, stop in zip([0, *ends], ends, strict=False):
        (page,) = set(256 * content[start:stop, 0] + content[start:stop, 1])
        yield int(page), content[start:stop, 2].tolist()


def test_every_page_is_read_once_an_epoch_from_sources_of_any_weight(tmp_path: Path, small_windows: int) -> None:
    """Among them pages as long as a row, of one patch, and a window that is not full."""
    rng = random.Random(3)
    sources = []
    for name, count in (("a", 60), ("b", 25)):
        lengths = [rng.choice([1, rng.randint(1, 10), 10]) for _ in range(count)]
        write(str(tmp_path / name), lengths, 10)
        plan = PackingPlan(str(tmp_path / name), "train", 10, Content("content", count))
        sources.append((Numbered(name, lengths), plan))
    packed: list[Any] = [PackedSource(pages, plan) for pages, plan in sources]  # type: ignore[arg-type]
    reader = MixtureReader(Mixture({Kind.PIXEL: 4}, 2), {Kind.PIXEL: [(3.0, packed[0]), (1.0, packed[1])]}, 7)
    epochs = {name: [(Counter[int](), list[int]())] for name in ("a", "b")}
    for step in range(3 * sum(len(plan) for _, plan in sources)):
        for index in range(2):
            batch = reader.micro_batch(step, index, 0, 1)
            assert batch.patches is not None
            for i, (name, row) in enumerate(batch.rows):
                pages, plan = sources["ab".index(name)]
                if len(epochs[name][-1][1]) == len(plan):
                    epochs[name].append((Counter(), []))
                read, order = epochs[name][-1]
                order.append(row)
                for page, patches in shown(batch.patches[i], batch.modality[i]):
                    assert patches == list(range(pages.lengths[page]))
                    read[page] += 1
    for pages, plan in sources:
        *whole, _ = epochs[pages.name]
        assert len(whole) > 2
        for read, order in whole:
            assert read == dict.fromkeys(range(len(pages.lengths)), 1)
            assert sorted(order) == list(range(len(plan)))
        assert whole[0][1] != whole[1][1], "each epoch has an order of its own"
    rows_read = {name: sum(len(order) for _, order in found) for name, found in epochs.items()}
    assert rows_read["a"] == 3 * rows_read["b"]


def test_lengths_are_read_in_bulk_as_one_by_one(pixels: str) -> None:
    store = PageStore(pixels)
    assert store.lengths(0, 7).tolist() == [store.num_patches(page) for page in range(7)] == LENGTHS
    assert store.lengths(2, 5).tolist() == LENGTHS[2:5]
    assert store.lengths(3, 3).tolist() == []


def test_rows_hold_the_pages_of_the_plan(pixels: str) -> None:
    facts = pack_dataset(pixels, MODEL.seq_length)
    single = PixelSource(pixels, "train", MODEL, "pixel:set")
    plan = PackingPlan(pixels, "train", MODEL.seq_length, single.content)
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


@pytest.mark.parametrize("layout", ["compact", "released"])
def test_pairs_keep_their_two_segments_and_their_positions(make_dataset: MakeDataset, layout: Any) -> None:
    prefix = make_dataset("pairs", rendering=RENDERING, tokenizer=TOKENIZER, pair={"patches": 8, "tokens": 8})
    facts = pack_dataset(prefix, 16)
    model = ModelConfig(vocab_size=1000, seq_length=16, patch_size=16, num_channels=1)
    single = PairSource(prefix, "train", model, PairConfig(layout, patches=8, tokens=8), "pair:set")
    plan = PackingPlan(prefix, "train", 16, single.content)
    token_targets = patch_targets = 0
    for index in range(len(plan)):
        row = PackedSource(single, plan).row(index)
        token, patch = target_masks(row.modality, row.segment_ids)
        token_targets += int(token.sum())
        patch_targets += int(patch.sum())
        assert (row.segment_ids.max() + 1) == 2 * len(plan.pages(index))
        assert int((row.position_ids == 0).sum()) == len(plan.pages(index))
        alone = [single.row(page) for page in plan.pages(index)]
        for name in ("tokens", "position_ids"):
            expected = np.concatenate([getattr(page, name)[page.modality != Modality.PADDING] for page in alone])
            np.testing.assert_array_equal(getattr(row, name)[row.modality != Modality.PADDING], expected)
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


def test_text_of_a_dataset_begins_anew_in_every_document(make_dataset: MakeDataset) -> None:
    """Documents of 8, 1, 0, 11 and 4 tokens in rows of 12: one without a token is no beginning of its own."""
    prefix = make_dataset("text", "text", tokenizer=TOKENIZER)
    source = TextSource(prefix, "train", MODEL, "text:text", apart=True)
    positions = [source.row(index).position_ids.tolist() for index in range(source.num_rows)]
    assert positions == [[*range(8), 0, 0, 1, 2], [*range(8), 0, 1, 2, 3]]


def rewrite(path: Path, **changes: object) -> None:
    """The JSON file of a plan with other values and the digest that belongs to them."""
    told = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(told | {"digest": manifest_digest(told)}))


def test_a_plan_that_does_not_fit_says_what_to_do(pixels: str) -> None:
    data = DataConfig(pixels=[pixels], mixture="0:1:0", packing="documents")
    command = rf"python data_tools/pack\.py {pixels} --seq-length 12"

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message) as error:
            open_sources([Kind.PIXEL], "train", data, MODEL, PAIR)
        assert "\n" not in str(error.value)

    refused(rf"packed12\.json, which does not exist: {command} makes it")
    pack_dataset(pixels, 12)
    path = Path(plan_prefix(pixels, "train", 12) + ".json")
    written = path.read_text()
    assert plans_of(pixels) == ["train.packed12"]
    rewrite(path, fingerprint="other", pages=5)
    refused(rf"made for other content than the dataset has \(5 pages then, 7 now\): {command} makes it again")
    rewrite(path, fingerprint=json.loads(written)["fingerprint"], rendering={"font_size": 8.0}, pages=7)
    refused(rf"drawn with rendering {{'font_size': 8.0}}, and they are drawn with none: {command} makes it again")
    path.write_text(written)
    rewrite(path, rows=99)
    refused("does not agree")
    rewrite(path, rows=2, seq_length=24)
    refused(rf"is a plan for rows of 24 positions: {command} makes another")
    rewrite(path, seq_length=12, window=8)
    refused("has windows of 8 pages, and this program reads 4096")
    path.write_text(written.replace('"rows": 2', '"rows": 3'))
    refused(rf"the content differs from what was written \(sha256\): {command} makes it again")
    path.write_text(json.dumps({"version": 1}))
    refused(rf"is of version 1, and this program reads 2: {command} makes it again")
    path.write_text(written)
    Path(plan_prefix(pixels, "train", 12) + ".bin").unlink()
    refused(rf"cannot open .*\.bin: No such file or directory: {command} makes it again")


def test_what_cannot_be_packed(pixels: str, make_dataset: MakeDataset) -> None:
    with pytest.raises(UserError, match=r"page 3 of .* takes 7 positions: more than --seq-length 6, and no"):
        pack_dataset(pixels, 6)
    with pytest.raises(UserError, match=r"data\.rendering\.dpi: .* is a pixels dataset, whose pages are drawn already"):
        pack_dataset(pixels, 12, rendering=RenderingOverrides(dpi=100))
    text = make_dataset("text", "text", tokenizer=TOKENIZER)
    with pytest.raises(UserError, match="text needs no plan"):
        pack_dataset(text, 12)
    assert plans_of(pixels) == plans_of(text) == []


def test_damage_is_named(pixels: str) -> None:
    pages = Path(pixels + ".train.pages.bin")
    content = bytearray(pages.read_bytes())
    content[-1] ^= 1
    pages.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.pages\.bin: page 6 is damaged"):
        pack_dataset(pixels, 12)
    content[-1] ^= 1
    pages.write_bytes(content)
    pack_dataset(pixels, 12)
    single = PixelSource(pixels, "train", MODEL, "pixel:set")
    Path(plan_prefix(pixels, "train", 12) + ".bin").write_bytes(np.array([0, 1, 2, 3, 4, 5, 7], np.uint16).tobytes())
    plan = PackingPlan(pixels, "train", 12, single.content)
    with pytest.raises(UserError, match=rf"packed12\.bin is damaged at row 1: .*verify\.py {pixels} tells"):
        [plan.pages(row) for row in range(len(plan))]


def test_another_plan_of_the_same_pages_is_another_source(pixels: str) -> None:
    pack_dataset(pixels, 12)
    single = PixelSource(pixels, "train", MODEL, "pixel:set")
    first = PackedSource(single, PackingPlan(pixels, "train", 12, single.content))
    alone = [PackedWindow(np.arange(7, dtype=np.uint16), np.ones(7, np.int32), sum(LENGTHS))]
    packing.write_plan(plan_prefix(pixels, "train", 12), single.content, 12, alone)
    second = PackedSource(single, PackingPlan(pixels, "train", 12, single.content))
    assert (first.num_rows, second.num_rows) == (2, 7)
    assert first.identity != second.identity
    assert first.identity.startswith(f"{single.identity} packed ")
