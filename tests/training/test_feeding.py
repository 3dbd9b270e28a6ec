import threading
from typing import Any

import numpy as np
import pytest
import torch

from megatron_pixel.config.schema import DataConfig, LossConfig, ModelConfig, PairConfig, TrainingConfig
from megatron_pixel.data.loader import PrefetchLoader
from megatron_pixel.data.mixture import MixtureReader, open_training
from megatron_pixel.model.batch import Batch, host_tensors, to_tensors
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.training.feeding import Feeder, Prepared
from megatron_pixel.training.losses import tally

MODEL = ModelConfig(vocab_size=32, seq_length=16, patch_size=4, num_channels=1)
OBJECTIVES = pretraining_objectives(MODEL, LossConfig())
CPU = torch.device("cpu")


@pytest.fixture
def reader() -> MixtureReader:
    training = TrainingConfig(global_batch_rows=20, micro_batch_rows=2)
    return open_training(DataConfig(synthetic=True), MODEL, PairConfig(patches=8, tokens=8), training, dp_size=1)


class Diary:
    """Copies that write down when they begin and when they are wanted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._begun = self._taken = 0

    def start(self, batch: Batch) -> Batch:
        self._begun += 1
        self.lines.append(f"copy {self._begun}")
        return batch

    def finish(self, started: Batch) -> Batch:
        self._taken += 1
        self.lines.append(f"take {self._taken}")
        return started


def test_a_copy_runs_beside_the_pass_before_it(reader: MixtureReader) -> None:
    diary = Diary()
    feeder = Feeder(OBJECTIVES, True, CPU, diary)
    prepared = [feeder.prepare(reader.micro_batch(0, i, 0, 1)) for i in range(4)]
    feed = feeder.feed(prepared)
    assert diary.lines == ["copy 1", "copy 2"], "the first copies do not wait for the pass that takes them"
    taken = []
    for number, batch in enumerate(feed, start=1):
        diary.lines.append(f"pass {number}")
        taken.append(batch)
    expected = "copy 1, copy 2, take 1, pass 1, copy 3, take 2, pass 2, copy 4, take 3, pass 3, take 4, pass 4"
    assert diary.lines == expected.split(", ")
    assert [id(batch) for batch in taken] == [id(item.batch) for item in prepared]


@pytest.mark.parametrize("count", [0, 1])
def test_few_micro_batches(reader: MixtureReader, count: int) -> None:
    feeder = Feeder(OBJECTIVES, True, CPU)
    assert len(list(feeder.feed(feeder.prepare(reader.micro_batch(0, i, 0, 1)) for i in range(count)))) == count


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_prepares_in_its_thread(reader: MixtureReader, workers: int) -> None:
    feeder, threads = Feeder(OBJECTIVES, True, CPU), set()

    def prepare(rows: Any) -> Prepared:
        threads.add(threading.current_thread().name)
        return feeder.prepare(rows)

    with PrefetchLoader(reader, [0, 7], 0, 1, depth=3, workers=workers, prepare=prepare) as loader:
        steps = list(loader)
    assert threads == {"prefetch"}
    for step, prepared in steps:
        for index, item in enumerate(prepared):
            rows = reader.micro_batch(step, index, 0, 1)
            expected = to_tensors(rows, OBJECTIVES)
            assert item.tally == tally(rows, True)
            assert item.batch.rows.rows == rows.rows
            assert item.batch.counts == expected.counts
            for mine, theirs in zip(item.batch.inputs, expected.inputs, strict=True):
                assert torch.equal(mine, theirs)
            assert feeder.prepare(item) is item


def test_an_error_of_preparing_comes_at_its_step(reader: MixtureReader) -> None:
    seen = 0

    def prepare(rows: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen > reader.num_micro_batches(1):
            raise ZeroDivisionError("cannot prepare")
        return rows

    with PrefetchLoader(reader, range(10), 0, 1, depth=50, prepare=prepare) as loader:
        assert next(loader)[0] == 0
        with pytest.raises(ZeroDivisionError, match="cannot prepare"):
            next(loader)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_same_arrives(reader: MixtureReader) -> None:
    place = torch.device("cuda", torch.cuda.current_device())
    feeder = Feeder(OBJECTIVES, True, place)
    rows = [reader.micro_batch(0, i, 0, 1) for i in range(reader.num_micro_batches(1))]
    prepared = [feeder.prepare(batch) for batch in rows]
    assert all(tensor.is_pinned() for item in prepared for tensor in item.batch.inputs[:-1] if tensor.numel())
    assert all(np.array_equal(item.batch.rows.tokens, batch.tokens) for item, batch in zip(prepared, rows, strict=True))
    busy = torch.randn(4096, 4096, device=place)
    for batch, expected in zip(feeder.feed(prepared), rows, strict=True):
        for _ in range(8):
            busy = (busy @ busy).clamp(-1, 1)
        for mine, theirs in zip(batch.inputs, host_tensors(expected, OBJECTIVES).inputs, strict=True):
            assert torch.equal(mine.cpu(), theirs)
