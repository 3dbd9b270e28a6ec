import errno
import hashlib
import os
import pickle
import resource
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import indexed
from megatron_pixel.data.files import OutputFile
from megatron_pixel.data.indexed import IndexedReader, IndexedWriter, bin_path, idx_path, join_indexes, token_dtype

DOCUMENTS = [[[1, 2, 3], [4]], [], [[5, 6]], [[], [7]]]


def write(prefix: Path, dtype: type[np.generic] = np.uint16) -> None:
    with IndexedWriter(str(prefix), dtype) as writer:
        for document in DOCUMENTS:
            for sequence in document:
                writer.add(np.array(sequence, dtype))
            writer.end_document()
        writer.finalize()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_the_bytes_are_those_of_megatron(
    tmp_path: Path, dtype: type[np.generic], monkeypatch: pytest.MonkeyPatch
) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for document in DOCUMENTS:
        for sequence in document:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    monkeypatch.setattr(indexed, "_SPOOL_ITEMS", 2)  # several chunks even here
    write(tmp_path / "ours", dtype)

    for ending in ("bin", "idx"):
        assert (tmp_path / f"ours.{ending}").read_bytes() == (tmp_path / f"theirs.{ending}").read_bytes()

    dataset = megatron.IndexedDataset(str(tmp_path / "ours"))
    sequences = [sequence for document in DOCUMENTS for sequence in document]
    assert [dataset[index].tolist() for index in range(len(dataset))] == sequences
    assert dataset.document_indices.tolist() == [0, 2, 2, 3, 5]
    reader = IndexedReader(str(tmp_path / "theirs"))
    assert [reader[index].tolist() for index in range(len(reader))] == sequences


def test_reading(tmp_path: Path) -> None:
    write(tmp_path / "set")
    reader = pickle.loads(pickle.dumps(IndexedReader(str(tmp_path / "set"))))
    assert len(reader) == 5
    assert reader.num_documents == 4
    assert reader.num_elements == 7
    assert reader.dtype == np.uint16
    assert reader.sizes.tolist() == [3, 1, 2, 0, 1]
    assert reader.pointers.tolist() == [0, 6, 8, 12, 12]
    assert reader.document_bounds.tolist() == [0, 2, 2, 3, 5]
    assert reader[2].tolist() == [5, 6]
    assert reader.elements.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            reader[index]
    with pytest.raises(ValueError, match="read-only"):
        reader[0][0] = 1


def test_nothing_at_all(tmp_path: Path) -> None:
    with IndexedWriter(str(tmp_path / "set"), np.uint8) as writer:
        writer.finalize()
    reader = IndexedReader(str(tmp_path / "set"))
    assert (len(reader), reader.num_documents, reader.num_elements) == (0, 0, 0)


def test_counts_and_digests(tmp_path: Path) -> None:
    with IndexedWriter(str(tmp_path / "deep" / "set"), np.int32) as writer:
        writer.add(np.arange(3))
        writer.end_document()
        assert (writer.num_sequences, writer.num_documents, writer.num_elements) == (1, 1, 3)
        entries = writer.finalize()
    assert {path: entry.bytes for path, entry in entries.items()} == {
        bin_path(str(tmp_path / "deep" / "set")): 12,
        idx_path(str(tmp_path / "deep" / "set")): 34 + 12 + 16,
    }


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    with IndexedWriter(str(tmp_path / "set"), np.uint16) as writer:
        for value in (70000, -1, 0.5):
            with pytest.raises(ValueError, match="do not fit uint16"):
                writer.add(np.array([value]))
        with pytest.raises(ValueError, match="one dimension"):
            writer.add(np.zeros((2, 2), np.uint16))


def test_token_dtype() -> None:
    assert token_dtype(65499) is np.uint16
    assert token_dtype(65500) is np.int32


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_failure_leaves_nothing(tmp_path: Path, moment: str) -> None:
    def fail() -> None:
        with IndexedWriter(str(tmp_path / "set"), np.uint8) as writer:
            writer.add(b"abc")
            assert os.listdir(tmp_path)
            if moment == "after":
                writer.finalize()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert os.listdir(tmp_path) == []


def test_leaving_without_finalize_leaves_nothing(tmp_path: Path) -> None:
    with IndexedWriter(str(tmp_path / "set"), np.uint8) as writer:
        writer.add(b"abc")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("limit", [100_000, 2_100_000], ids=["index", "data"])
def test_full_disk(tmp_path: Path, limit: int) -> None:
    """The operating system itself refuses: files may not grow beyond a limit."""
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill() -> None:
        sequence = bytes(1_000_000) if limit > 1_000_000 else b""
        with IndexedWriter(str(tmp_path / "set"), np.uint8) as writer:
            for _ in range(100_000):
                writer.add(sequence)
            writer.finalize()

    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old_limit[1]))
        with pytest.raises(UserError, match=rf"cannot write .*set\.\w+: {os.strerror(errno.EFBIG)} after [\d,]+ bytes"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_signal)
    assert os.listdir(tmp_path) == []


def test_a_leftover_part_is_overwritten_but_not_one_in_use(tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"left by a process that was killed")
    write(tmp_path / "set")
    assert IndexedReader(str(tmp_path / "set")).num_elements == 7

    other = OutputFile(str(tmp_path / "busy.idx"))
    other.write(b"precious")
    with pytest.raises(UserError, match="being written by another process"):
        IndexedWriter(str(tmp_path / "busy"), np.uint8)
    assert sorted(os.listdir(tmp_path)) == ["busy.idx.part", "set.bin", "set.idx"]
    assert other.commit().bytes == 8


def test_memory_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "_SPOOL_ITEMS", 1000)
    with IndexedWriter(str(tmp_path / "set"), np.uint8) as writer:
        tracemalloc.start()
        writer.add(bytes(300))
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(20_000):
            writer.add(b"abc")
            writer.end_document()
        writer.finalize()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak - before < 64_000  # two lists of 20,000 would take 480,000


def patch(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    prefix = tmp_path / "set"
    index, data = tmp_path / "set.idx", tmp_path / "set.bin"

    def refusal() -> str:
        with pytest.raises(UserError) as caught:
            IndexedReader(str(prefix))
        write(prefix)
        return str(caught.value)

    assert "set.idx: No such file" in refusal()
    data.unlink()
    assert "set.bin: No such file" in refusal()
    index.write_bytes(b"")
    assert "0 bytes are too few" in refusal()
    patch(index, 0, b"X")
    assert "does not begin with MMIDIDX" in refusal()
    patch(index, 9, b"\x02")
    assert "index version 2" in refusal()
    patch(index, 17, b"\x09")
    assert "dtype code 9" in refusal()
    patch(index, 18, b"\x06")
    assert "6 sequences" in refusal()
    index.write_bytes(index.read_bytes()[:-8])
    assert "5 sequences and 5 document bounds take" in refusal()
    data.write_bytes(data.read_bytes()[:-2])
    assert "12 bytes, but its index ends at 14" in refusal()
    data.write_bytes(data.read_bytes() + b"..")
    assert "16 bytes, but its index ends at 14" in refusal()
    patch(index, 34 + 5 * 12 + 4 * 8, b"\x04")
    assert "ends at sequence 4 of 5" in refusal()
    patch(index, 34 + 5 * 4, b"\x7f")
    reader = IndexedReader(str(prefix))
    with pytest.raises(UserError, match="sequence 0 lies outside"):
        reader[0]


def test_joined_indexes_are_that_of_the_joined_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "_SPOOL_ITEMS", 2)
    names = ["a", "b", "empty", "c"]
    with IndexedWriter(str(tmp_path / "whole"), np.uint16) as whole:
        for number, name in enumerate(names):
            with IndexedWriter(str(tmp_path / name), np.uint16) as writer:
                for document in DOCUMENTS[: 0 if name == "empty" else 2 + number]:
                    for sequence in document:
                        for each in (writer, whole):
                            each.add(np.array(sequence, np.uint16))
                    for each in (writer, whole):
                        each.end_document()
                writer.finalize()
            (tmp_path / f"{name}.bin").unlink()  # the indexes are enough
        expected = whole.finalize()
    prefixes = [str(tmp_path / name) for name in names]
    entry = join_indexes(prefixes, str(tmp_path / "joined"), np.uint16)
    assert (tmp_path / "joined.idx").read_bytes() == (tmp_path / "whole.idx").read_bytes()
    assert entry == expected[idx_path(str(tmp_path / "whole"))]
    with pytest.raises(UserError, match=r"a\.idx holds uint16, uint8 is expected"):
        join_indexes(prefixes, str(tmp_path / "other"), np.uint8)
    assert not list(tmp_path.glob("other*"))


def test_a_file_goes_on_after_the_bytes_that_it_keeps(tmp_path: Path) -> None:
    path = str(tmp_path / "file")
    output = OutputFile(path)
    output.write(b"whole and torn")
    output.sync()
    assert not os.path.exists(path)
    output.close()  # as far as a process came that was killed
    again = OutputFile(path, keep=6)
    again.write(b"once more")
    entry = again.commit()
    assert (tmp_path / "file").read_bytes() == b"whole once more"
    assert (entry.bytes, entry.sha256) == (15, hashlib.sha256(b"whole once more").hexdigest())
    with pytest.raises(UserError, match="0 bytes where 4 were written"):
        OutputFile(path, keep=4)
