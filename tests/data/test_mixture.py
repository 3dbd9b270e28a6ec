from collections import Counter

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import DataConfig, EvaluationConfig, ModelConfig, PairConfig, TrainingConfig
from megatron_pixel.data.mixture import HeldoutReader, Mixture, MixtureReader, open_heldout, open_training, read_row
from megatron_pixel.data.rows import PADDING_ORIGIN, Kind, Row, TargetCounts, fill_pair, fill_pixels, fill_text

MODEL = ModelConfig(vocab_size=32, seq_length=16, patch_size=4, num_channels=1)
PAIR = PairConfig(patches=8, tokens=8)
LAYOUTS = [(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4)]
"""(micro_batch_rows, dp_size) that divide 40 rows of 4:4:2."""


class TinySource:
    """Rows that hold nothing but a shape."""

    def __init__(self, kind: Kind, num_rows: int, name: str) -> None:
        self.kind = kind
        self.num_rows = num_rows
        self.name = name
        self.identity = name + "@1"
        self.rows_per_block = 3
        self.seq_length = 8
        self.patch_values = 0 if kind == Kind.TEXT else 4
        self.note = ""

    def row(self, index: int, out: Row | None = None) -> Row:
        assert 0 <= index < self.num_rows
        row = out or Row.empty(8, self.patch_values, (self.name, index))
        tokens = np.full(2 + index % 3, index)
        if self.kind == Kind.TEXT:
            return fill_text(row, tokens, np.array([0]))
        patches = 2 + index % 2
        row.patches[:patches] = 0
        if self.kind == Kind.PIXEL:
            return fill_pixels(row, patches)
        return fill_pair(row, patches, tokens, "compact", 4)


def sources() -> dict[Kind, list[tuple[float, TinySource]]]:
    return {
        Kind.TEXT: [(3.0, TinySource(Kind.TEXT, 50, "text:a")), (1.0, TinySource(Kind.TEXT, 7, "text:b"))],
        Kind.PIXEL: [(1.0, TinySource(Kind.PIXEL, 23, "pixel:a"))],
        Kind.PAIR: [(1.0, TinySource(Kind.PAIR, 11, "pair:a"))],
    }


def reader(micro: int = 1, rows: int = 40, mixture: str = "4:4:2", seed: int = 0) -> MixtureReader:
    config = DataConfig(mixture=mixture)
    training = TrainingConfig(global_batch_rows=rows, micro_batch_rows=micro)
    return MixtureReader(Mixture.from_config(config, training, 1), sources(), seed)


def rows_of_step(reader: MixtureReader, step: int, dp_size: int) -> list[tuple[str, int]]:
    return [
        origin
        for rank in range(dp_size)
        for index in range(reader.num_micro_batches(dp_size))
        for origin in reader.micro_batch(step, index, rank, dp_size).rows
    ]


def test_rows_of_each_kind():
    mixture = Mixture.from_config(DataConfig(mixture="4:4:2"), TrainingConfig(global_batch_rows=10240), dp_size=32)
    assert mixture.rows_per_step == {Kind.TEXT: 4096, Kind.PIXEL: 4096, Kind.PAIR: 2048}
    mixture = Mixture.from_config(DataConfig(mixture="0:1:0"), TrainingConfig(global_batch_rows=64), dp_size=8)
    assert mixture.rows_per_step == {Kind.PIXEL: 64}


@pytest.mark.parametrize(
    ("rows", "micro", "dp_size", "mixture", "told"),
    [
        (41, 1, 1, "4:4:2", ["global_batch_rows: 41", "40 or 45"]),
        (3, 1, 1, "4:4:2", ["global_batch_rows: 3 ", "valid: 5$"]),
        (50, 4, 2, "4:4:2", ["20 text, 20 pixel, 10 pair", "4 x 2", "global_batch_rows: 40 or 80", "rows: 1 or 5$"]),
        (40, 3, 2, "4:4:2", ["global_batch_rows: 30 or 60", "micro_batch_rows: 2 or 4$"]),
        (40, 16, 1, "4:4:2", ["global_batch_rows: 80", "micro_batch_rows: 8$"]),
        (10, 1, 3, "1:0:0", ["global_batch_rows: 9 or 12$"]),
        (10, 1, 4, "4:4:2", ["global_batch_rows: 20$"]),
        (40, 1, 1, "4:4", ["data.mixture", "4:4:2"]),
        (40, 1, 1, "0:0:0", ["data.mixture", "not all zero"]),
    ],
)
def test_what_does_not_divide_is_refused_with_the_nearest_that_does(rows, micro, dp_size, mixture, told):
    config, training = DataConfig(mixture=mixture), TrainingConfig(global_batch_rows=rows, micro_batch_rows=micro)
    with pytest.raises(UserError) as error:
        Mixture.from_config(config, training, dp_size)
    for part in told:
        assert error.match(part)


@pytest.mark.parametrize("rows", [41, 50, 64, 90, 7])
@pytest.mark.parametrize(("micro", "dp_size"), [(3, 2), (4, 2), (1, 3), (8, 1)])
def test_the_values_named_are_valid_and_the_nearest(rows, micro, dp_size):
    def valid(rows):
        try:
            Mixture.from_config(DataConfig(), TrainingConfig(global_batch_rows=rows, micro_batch_rows=micro), dp_size)
        except UserError as error:
            return str(error)
        return None

    message = valid(rows)
    if message is None or "split 4:4:2 are" not in message:
        return
    named = message.partition("valid training.global_batch_rows: ")[2].partition(";")[0]
    all_valid = [number for number in range(1, 3 * rows + 500) if valid(number) is None]
    below, above = [n for n in all_valid if n < rows][-1:], [n for n in all_valid if n > rows][:1]
    assert named == " or ".join(map(str, below + above))


def test_a_kind_without_data_is_named_by_its_key():
    for kind, key in ((Kind.TEXT, "data.text"), (Kind.PIXEL, "data.pixels"), (Kind.PAIR, "data.pairs")):
        mixture = Mixture.from_config(DataConfig(), TrainingConfig(global_batch_rows=40), 1)
        listed = sources()
        listed[kind] = []
        with pytest.raises(UserError, match=rf"{key} is empty"):
            MixtureReader(mixture, listed, 0)


def test_a_source_without_rows_or_listed_twice_is_refused():
    text = TinySource(Kind.TEXT, 5, "text:a")
    mixture = Mixture({Kind.TEXT: 4}, 1)
    with pytest.raises(UserError, match="text:a has no rows"):
        MixtureReader(mixture, {Kind.TEXT: [(1.0, TinySource(Kind.TEXT, 0, "text:a"))]}, 0)
    with pytest.raises(UserError, match=r"data\.text lists text:a twice"):
        MixtureReader(mixture, {Kind.TEXT: [(1.0, text), (2.0, text)]}, 0)


@pytest.mark.parametrize(("micro", "dp_size"), LAYOUTS)
def test_schedule_has_every_kind_evenly(micro, dp_size):
    mixture = Mixture.from_config(DataConfig(), TrainingConfig(global_batch_rows=40, micro_batch_rows=micro), dp_size)
    schedule = mixture.schedule(dp_size)
    unit = micro * dp_size
    assert Counter(schedule) == {Kind.TEXT: 16 // unit, Kind.PIXEL: 16 // unit, Kind.PAIR: 8 // unit}
    for kind, share in ((Kind.TEXT, 0.4), (Kind.PIXEL, 0.4), (Kind.PAIR, 0.2)):
        taken = np.cumsum([entry == kind for entry in schedule])
        assert np.abs(taken - share * np.arange(1, len(schedule) + 1)).max() <= 1.5


def test_all_ranks_read_the_same_kinds():
    it = reader(micro=2)
    for index in range(it.num_micro_batches(2)):
        kinds = {it.micro_batch(step, index, rank, 2).kind for step in (0, 7) for rank in (0, 1)}
        assert kinds == {it.mixture.schedule(2)[index]}


@pytest.mark.parametrize("step", [0, 1, 5])
def test_rows_of_a_step_are_the_same_in_every_layout(step):
    expected = sorted(rows_of_step(reader(), step, 1))
    assert len(expected) == 40
    for micro, dp_size in LAYOUTS[1:]:
        assert sorted(rows_of_step(reader(micro), step, dp_size)) == expected


def test_order_of_the_rows_of_a_kind_is_the_same_in_every_layout():
    def order(micro: int, dp_size: int) -> list[tuple[str, int]]:
        it = reader(micro)
        batches = [
            it.micro_batch(2, index, rank, dp_size)
            for index in range(it.num_micro_batches(dp_size))
            for rank in range(dp_size)
        ]
        return [origin for batch in batches if batch.kind == Kind.PIXEL for origin in batch.rows]

    assert all(order(micro, dp_size) == order(1, 1) for micro, dp_size in LAYOUTS)


def test_target_counts_of_a_step_are_the_same_in_every_layout():
    def counts(micro: int, dp_size: int) -> TargetCounts:
        it = reader(micro)
        total = TargetCounts(0, 0)
        for rank in range(dp_size):
            for index in range(it.num_micro_batches(dp_size)):
                total += it.micro_batch(3, index, rank, dp_size).count_targets()
        return total

    assert counts(1, 1).tokens > 0
    assert counts(1, 1).patches > 0
    assert {counts(*layout) for layout in LAYOUTS} == {counts(1, 1)}


def test_every_row_once_per_epoch_and_weights_across_steps():
    it = reader()
    seen = Counter(origin for step in range(20) for origin in rows_of_step(it, step, 1))
    by_source = Counter()
    for (source, _), times in seen.items():
        by_source[source] += times
    assert by_source == {"text:a": 240, "text:b": 80, "pixel:a": 320, "pair:a": 160}
    for name, num_rows in (("text:a", 50), ("text:b", 7), ("pixel:a", 23), ("pair:a", 11)):
        times = [seen[name, index] for index in range(num_rows)]
        assert min(times) >= by_source[name] // num_rows
        assert max(times) <= by_source[name] // num_rows + 1


def test_consumed_is_what_was_read():
    it = reader(micro=2)
    seen: Counter[str] = Counter()
    assert it.consumed(0) == {"text:a@1": 0, "text:b@1": 0, "pixel:a@1": 0, "pair:a@1": 0}
    for step in range(7):
        seen.update(f"{name}@1" for name, _ in rows_of_step(it, step, 2))
        assert it.consumed(step + 1) == dict(seen)


def test_seed_and_nothing_else_changes_the_order():
    first = [rows_of_step(reader(seed=1), step, 1) for step in range(3)]
    assert [rows_of_step(reader(seed=1), step, 1) for step in reversed(range(3))] == first[::-1]
    assert [rows_of_step(reader(seed=2), step, 1) for step in range(3)] != first


def test_micro_batch_rows_are_the_rows_named():
    it = reader(micro=4)
    by_name = {source.name: source for weighted in sources().values() for _, source in weighted}
    for index in range(it.num_micro_batches(1)):
        batch = it.micro_batch(1, index, 0, 1)
        for number, (name, row_index) in enumerate(batch.rows):
            row = read_row(by_name[name], row_index)
            np.testing.assert_array_equal(batch.tokens[number], row.tokens)
            np.testing.assert_array_equal(batch.modality[number], row.modality)


@pytest.mark.parametrize(("limit", "micro", "dp_size"), [(1, 4, 2), (9, 2, 2), (16, 4, 2), (1000, 4, 1), (10, 1, 3)])
def test_heldout_reads_every_row_once(limit, micro, dp_size):
    it = HeldoutReader(sources(), limit, micro)
    for kind, available in ((Kind.TEXT, 57), (Kind.PIXEL, 23), (Kind.PAIR, 11)):
        batches = [list(it.batches(kind, rank, dp_size)) for rank in range(dp_size)]
        assert {len(of_rank) for of_rank in batches} == {it.num_batches(kind, dp_size)}
        origins = [origin for of_rank in batches for batch in of_rank for origin in batch.rows]
        assert all(len(batch.rows) == micro for of_rank in batches for batch in of_rank)
        real = [origin for origin in origins if origin != PADDING_ORIGIN]
        assert len(real) == len(set(real)) == it.num_rows(kind) == min(limit, available)
        # No more padding than the division over the ranks needs.
        assert len(origins) - len(real) < micro * dp_size
        for of_rank in batches:
            for batch in of_rank:
                for number, origin in enumerate(batch.rows):
                    if origin == PADDING_ORIGIN:
                        assert not batch.modality[number].any()


def test_heldout_counts_are_the_same_in_every_layout():
    def counts(kind: Kind, micro: int, dp_size: int) -> TargetCounts:
        it = HeldoutReader(sources(), 9, micro)
        batches = [batch for rank in range(dp_size) for batch in it.batches(kind, rank, dp_size)]
        return sum((batch.count_targets() for batch in batches), TargetCounts(0, 0))

    for kind in Kind:
        assert {counts(kind, micro, dp_size) for micro in (1, 2, 4, 16) for dp_size in (1, 2, 3)} == {
            counts(kind, 1, 1)
        }


def test_heldout_reads_in_order_and_by_weight():
    origins = [origin for batch in HeldoutReader(sources(), 20, 1).batches(Kind.TEXT) for origin in batch.rows]
    assert origins == [("text:a", index) for index in range(15)] + [("text:b", index) for index in range(5)]
    # A source that is too small leaves its share to the other.
    origins = [origin for batch in HeldoutReader(sources(), 40, 1).batches(Kind.TEXT) for origin in batch.rows]
    assert Counter(name for name, _ in origins) == {"text:a": 33, "text:b": 7}


def test_heldout_without_rows_has_no_batches():
    it = HeldoutReader({Kind.TEXT: [(1.0, TinySource(Kind.TEXT, 0, "text:a"))], Kind.PAIR: []}, 10, 2)
    for kind in Kind:
        assert it.num_rows(kind) == it.num_batches(kind, 2) == 0
        assert list(it.batches(kind)) == []
    assert HeldoutReader(sources(), 0, 2).num_rows(Kind.TEXT) == 0


class WatchedSource(TinySource):
    """Notes which rows are read; one of them cannot be."""

    def __init__(self, kind: Kind, num_rows: int, name: str, damaged: int | None = None) -> None:
        super().__init__(kind, num_rows, name)
        self.damaged = damaged
        self.read: list[int] = []

    def row(self, index: int, out: Row | None = None) -> Row:
        self.read.append(index)
        if index == self.damaged:
            raise ValueError("its checksum is wrong")
        return super().row(index, out)


@pytest.mark.parametrize(("num_rows", "shares"), [(1000, 1), (1000, 3), (32, 4), (5, 2), (1, 1)])
def test_a_sample_is_spread_over_every_source_and_other_rows_in_every_share(num_rows, shares):
    big, small = WatchedSource(Kind.TEXT, num_rows, "text:a"), WatchedSource(Kind.TEXT, 2, "text:b")
    it = MixtureReader(Mixture({Kind.TEXT: 4}, 1), {Kind.TEXT: [(1.0, big), (1.0, small)]}, 0)
    for share in range(shares):
        it.sample(share, shares)
    assert len(big.read) == shares * min(8, num_rows)
    assert set(small.read) <= {0, 1}
    if num_rows >= 8 * shares:
        assert len(set(big.read)) == len(big.read), "no row is read twice"
        gaps = np.diff([*sorted(big.read), num_rows])
        assert min(big.read) == 0
        assert gaps.max() <= -(-num_rows // (8 * shares))


def test_a_row_of_the_sample_that_cannot_be_read_is_named():
    for share in range(2):
        source = WatchedSource(Kind.TEXT, 16, "text:a", damaged=3)
        it = MixtureReader(Mixture({Kind.TEXT: 4}, 1), {Kind.TEXT: [(1.0, source)]}, 0)
        if share == 0:
            it.sample(share, 2)
            continue
        with pytest.raises(UserError, match=r"row 3 of text:a: ValueError: its checksum is wrong; python data_tools"):
            it.sample(share, 2)


def test_synthetic_run_opens_the_kinds_of_its_mixture():
    data = DataConfig(synthetic=True, mixture="1:0:1")
    training = TrainingConfig(global_batch_rows=8, micro_batch_rows=2)
    it = open_training(data, MODEL, PAIR, training, dp_size=2)
    assert it.mixture.schedule(2) == (Kind.TEXT, Kind.PAIR)
    batch = it.micro_batch(0, 1, 1, 2)
    assert batch.kind == Kind.PAIR
    assert batch.patches.shape == (2, 16, 16)
    heldout = open_heldout(data, MODEL, PAIR, training, EvaluationConfig(rows=5))
    assert [heldout.num_rows(kind) for kind in Kind] == [5, 0, 5]
