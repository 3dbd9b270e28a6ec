import gc
import threading
import time

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig, TrainingConfig
from megatron_pixel.data.loader import PrefetchLoader
from megatron_pixel.data.mixture import Mixture, MixtureReader, RowError, open_training
from megatron_pixel.data.rows import Kind, Row, fill_text

MODEL = ModelConfig(vocab_size=32, seq_length=16, patch_size=4, num_channels=1)
PAIR = PairConfig(patches=8, tokens=8)
TRAINING = TrainingConfig(global_batch_rows=20, micro_batch_rows=2)


@pytest.fixture
def reader() -> MixtureReader:
    return open_training(DataConfig(synthetic=True), MODEL, PAIR, TRAINING, dp_size=1)


class FailingSource:
    """Every row can be read but one."""

    name = identity = "text:failing"
    kind = Kind.TEXT
    num_rows = 100
    rows_per_block = 4
    seq_length, patch_values, note = 16, 0, ""

    def __init__(self, fails_at: int, error: Exception) -> None:
        self.fails_at = fails_at
        self.error = error
        self.reads = 0

    def row(self, index: int, out: Row | None = None) -> Row:
        self.reads += 1
        if index == self.fails_at:
            raise self.error
        return fill_text(out or Row.empty(16, 0, (self.name, index)), np.ones(16, np.int64), np.array([0]))


def failing_reader(source: FailingSource) -> MixtureReader:
    return MixtureReader(Mixture({Kind.TEXT: 4}, micro_batch_rows=2), {Kind.TEXT: [(1.0, source)]}, seed=0)


def prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_yields_what_the_reader_reads(reader, depth):
    with PrefetchLoader(reader, [5, 6, 9], dp_rank=0, dp_size=1, depth=depth) as loader:
        steps = list(loader)
    assert [step for step, _ in steps] == [5, 6, 9]
    for step, batches in steps:
        assert len(batches) == reader.num_micro_batches(1)
        for index, batch in enumerate(batches):
            expected = reader.micro_batch(step, index, 0, 1)
            assert batch.kind == expected.kind
            assert batch.rows == expected.rows
            np.testing.assert_array_equal(batch.tokens, expected.tokens)
    assert prefetch_threads() == 0


def test_reads_ahead_and_no_further_than_depth():
    source = FailingSource(-1, ValueError())
    with PrefetchLoader(failing_reader(source), range(1000), 0, 1, depth=3) as loader:
        deadline = time.monotonic() + 10
        while source.reads < 8 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15)
        # Three micro-batches of two rows wait, one more is in the hand of the thread.
        assert source.reads == 8
        next(loader)


def test_is_exhausted_once_and_for_all(reader):
    with PrefetchLoader(reader, range(1), 0, 1, depth=2) as loader:
        assert len(list(loader)) == 1
        assert list(loader) == []


def test_closing_early_ends_the_thread(reader):
    with PrefetchLoader(reader, range(10**9), 0, 1, depth=2) as loader:
        next(loader)
        assert prefetch_threads() == 1
    assert prefetch_threads() == 0
    assert list(loader) == []


def test_a_dropped_loader_ends_its_thread(reader):
    loader = PrefetchLoader(reader, range(10**9), 0, 1, depth=2)
    next(loader)
    del loader
    gc.collect()
    deadline = time.monotonic() + 10
    while prefetch_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert prefetch_threads() == 0


def test_an_error_names_source_and_row_and_comes_after_the_steps_before_it():
    source = FailingSource(-1, ZeroDivisionError("broken page"))
    reader = failing_reader(source)
    source.fails_at = reader.micro_batch(3, 1, 0, 1).rows[0][1]
    with PrefetchLoader(reader, range(100), 0, 1, depth=50) as loader:
        for step in range(3):
            assert next(loader)[0] == step
        with pytest.raises(RowError, match=rf"row {source.fails_at} of text:failing: ZeroDivisionError: broken page"):
            next(loader)
        assert list(loader) == []
    assert prefetch_threads() == 0


def test_a_user_error_stays_one():
    source = FailingSource(-1, UserError("file x is cut short"))
    reader = failing_reader(source)
    source.fails_at = reader.micro_batch(0, 0, 0, 1).rows[1][1]
    with (
        PrefetchLoader(reader, range(2), 0, 1, depth=1) as loader,
        pytest.raises(UserError, match=rf"row {source.fails_at} of text:failing: file x is cut short"),
    ):
        next(loader)


def test_an_error_of_the_step_list_surfaces(reader):
    def steps():
        yield 0
        raise OSError("no more steps")

    with PrefetchLoader(reader, steps(), 0, 1, depth=2) as loader:
        next(loader)
        with pytest.raises(OSError, match="no more steps"):
            next(loader)
