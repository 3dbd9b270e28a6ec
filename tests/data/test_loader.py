import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig, TrainingConfig
from megatron_pixel.data.loader import PrefetchLoader
from megatron_pixel.data.loader_workers import opened
from megatron_pixel.data.mixture import Mixture, MixtureReader, RowError, open_training
from megatron_pixel.data.rows import Kind, MicroBatch, Row, fill_text

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


def same(batch: MicroBatch, other: MicroBatch) -> None:
    assert batch.kind == other.kind
    assert batch.rows == other.rows
    for name in ("tokens", "modality", "position_ids", "segment_ids"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(other, name))
    assert (batch.patches is None) == (other.patches is None)
    if batch.patches is not None:
        np.testing.assert_array_equal(batch.patches, other.patches)


def children(parent: int | None = None) -> list[int]:
    """Worker processes of this process, by the command that they run."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(state[1]) == (parent or os.getpid()) and state[0] != "Z" and b"loader_workers" in command:
                found.append(int(entry.name))
    return found


def eventually(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert condition()


class SlowSource(FailingSource):
    """Leaves time for a signal, and tells each row that it begins."""

    name = identity = "text:slow"

    def __init__(self, folder: Path) -> None:
        super().__init__(-1, ValueError())
        self.folder = folder

    def row(self, index: int, out: Row | None = None) -> Row:
        (self.folder / str(os.getpid())).write_text(str(index))
        time.sleep(0.05)
        return super().row(index, out)


class UnopenedSource(FailingSource):
    """Lost its files by the time that another process opens them."""

    def __reduce__(self) -> tuple[object, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise UserError("wiki.train.pages.bin is gone")


def test_workers_build_what_the_reader_reads_in_memory_that_they_use_again(reader: MixtureReader) -> None:
    held: list[tuple[int, list[MicroBatch]]] = []
    part: np.ndarray | None = None
    places = set()
    steps = [5, 6, 9, *range(20, 50)]
    open_files = len(os.listdir("/proc/self/fd"))
    with PrefetchLoader(reader, steps, 1, 2, depth=2, workers=2) as loader:
        for expected in steps:
            step, batches = next(loader)
            assert step == expected
            assert len(batches) == reader.num_micro_batches(2) == 5
            for index, batch in enumerate(batches):
                same(batch, reader.micro_batch(step, index, 1, 2))
            patches = batches[1].patches
            assert patches is not None
            places.add(patches.ctypes.data)
            if step < 10:
                held.append((step, batches))
            elif step == 20:
                part = patches[0, 2:]  # a view of a view keeps the memory too
            del batch, batches, patches
        with pytest.raises(StopIteration):
            next(loader)
        assert children() == []
    assert len(places) < 20
    assert len(os.listdir("/proc/self/fd")) < open_files + 8  # 15 micro-batches are held, in a few files
    for step, batches in held:
        for index, batch in enumerate(batches):
            same(batch, reader.micro_batch(step, index, 1, 2))
    expected_patches = reader.micro_batch(20, 1, 1, 2).patches
    assert part is not None
    assert expected_patches is not None
    np.testing.assert_array_equal(part, expected_patches[0, 2:])


def test_an_error_in_a_worker_names_source_row_and_place_after_the_steps_before_it() -> None:
    source = FailingSource(-1, ZeroDivisionError("broken page"))
    source.fails_at = failing_reader(source).micro_batch(3, 1, 0, 1).rows[0][1]
    with PrefetchLoader(failing_reader(source), range(100), 0, 1, depth=50, workers=1) as loader:
        for step in range(3):
            assert next(loader)[0] == step
        with pytest.raises(
            RowError, match=rf"row {source.fails_at} of text:failing: ZeroDivisionError: broken"
        ) as error:
            next(loader)
        assert "raise self.error" in str(error.value)  # the traceback of the worker
        assert list(loader) == []
    assert children() == []


def test_a_worker_sends_user_errors_as_they_are() -> None:
    source = FailingSource(-1, UserError("file x is cut short"))
    reader = failing_reader(source)
    source.fails_at = reader.micro_batch(0, 0, 0, 1).rows[1][1]
    build = opened(pickle.dumps((reader, 0, 1)))
    buffer = np.empty(reader.batch_bytes, np.uint8)
    error = build((0, 0), buffer)
    assert isinstance(error, UserError)
    assert str(error) == f"row {source.fails_at} of text:failing: file x is cut short"
    assert build((0, 1), buffer) == (Kind.TEXT, reader.micro_batch(0, 1, 0, 1).rows)
    error = opened(pickle.dumps((failing_reader(UnopenedSource(-1, ValueError())), 0, 1)))((0, 0), buffer)
    assert isinstance(error, UserError)
    assert str(error) == "wiki.train.pages.bin is gone"


def test_workers_outlast_gentle_signals_and_a_killed_one_ends_the_run_at_its_step(tmp_path: Path) -> None:
    with PrefetchLoader(failing_reader(SlowSource(tmp_path)), range(10**6), 0, 1, depth=1, workers=2) as loader:
        next(loader)
        workers = children()
        for worker, number in zip(workers, (signal.SIGTERM, signal.SIGINT), strict=True):
            os.kill(worker, number)
        for expected in range(1, 6):
            assert next(loader)[0] == expected
        assert children() == workers
        os.kill(workers[0], signal.SIGKILL)
        started = time.monotonic()
        found = []
        with pytest.raises(UserError, match=r"worker process .* died \(SIGKILL\).* fewer --data.workers"):
            found += [step for step, _ in loader]
        assert found == list(range(6, 6 + len(found)))
        assert time.monotonic() - started < 30
        assert list(loader) == []
    assert children() == []


def test_closing_and_dropping_a_loader_end_its_workers(tmp_path: Path) -> None:
    loader = PrefetchLoader(failing_reader(SlowSource(tmp_path)), range(10**6), 0, 1, depth=1, workers=1)
    next(loader)
    assert len(children()) == 1
    loader.close()
    assert children() == []
    loader = PrefetchLoader(failing_reader(SlowSource(tmp_path)), range(10**6), 0, 1, depth=1, workers=1)
    eventually(lambda: len(children()) == 1)
    del loader
    gc.collect()
    eventually(lambda: children() == [] and prefetch_threads() == 0)


_PARENT = """
import pickle, sys
from megatron_pixel.data.loader import PrefetchLoader
with open(sys.argv[1], "rb") as file:
    reader = pickle.load(file)
loader = PrefetchLoader(reader, range(10**6), 0, 1, depth=1, workers=2)
next(loader)
print("ready", flush=True)
for _ in loader:
    pass
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process with a loader of two workers that has handed out a step."""
    (tmp_path / "reader").write_bytes(pickle.dumps(failing_reader(SlowSource(tmp_path))))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "reader")], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_workers_end_with_a_parent_that_is_killed(parent: subprocess.Popen) -> None:
    workers = children(parent.pid)
    assert len(workers) == 2
    parent.kill()
    parent.wait()
    eventually(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
