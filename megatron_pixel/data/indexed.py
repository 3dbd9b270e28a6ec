"""Megatron's indexed dataset (``MMIDIDX``, version 1): a ``.bin`` of sequences, an ``.idx`` that tells where they are.

The bytes are those of ``megatron.core.datasets.indexed_dataset``. That builder keeps a Python list entry for every
sequence and its reader needs torch; here both sides need numpy only, and writing takes the same memory at any length.
"""

import os
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.files import FileEntry, OutputFile, cannot_write

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES: dict[int, type[np.generic]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    6: np.float64,
    7: np.float32,
    8: np.uint16,
}
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document bounds
_SPOOL_ITEMS = 1 << 16
_MAX_LENGTH = 2**31 - 1


def bin_path(path_prefix: str) -> str:
    """Path of the data file."""
    return path_prefix + ".bin"


def idx_path(path_prefix: str) -> str:
    """Path of the index file."""
    return path_prefix + ".idx"


def token_dtype(vocab_size: int) -> type[np.generic]:
    """Dtype of token ids, as Megatron chooses it: uint16 below 65,500 ids, int32 from there on."""
    return np.uint16 if vocab_size < 65500 else np.int32


class _Spool:
    """Integers on their way to the index, kept in a nameless temporary file beside it."""

    def __init__(self, path: str, typecode: str) -> None:
        self._path = path
        self._buffer = array(typecode)
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=os.path.dirname(path) or ".")  # noqa: SIM115 - see close
        except OSError as error:
            cannot_write(path, 0, error)
        self.count = 0

    def append(self, value: int) -> None:
        self._buffer.append(value)
        self.count += 1
        if len(self._buffer) >= _SPOOL_ITEMS:
            self._flush()

    def extend(self, values: np.ndarray) -> None:
        """Append many."""
        self._buffer.frombytes(values.astype(self._buffer.typecode).tobytes())
        self.count += len(values)
        if len(self._buffer) >= _SPOOL_ITEMS:
            self._flush()

    def _flush(self) -> None:
        try:
            self._file.write(self._buffer.tobytes())
            self._file.flush()
        except OSError as error:
            cannot_write(self._path, self._file.tell(), error)
        del self._buffer[:]

    def chunks(self) -> Iterator[np.ndarray]:
        """Yield everything appended, in order."""
        self._flush()
        self._file.seek(0)
        dtype = np.dtype(self._buffer.typecode)
        while data := self._file.read(_SPOOL_ITEMS * dtype.itemsize):
            yield np.frombuffer(data, dtype=dtype)

    def close(self) -> None:
        with suppress(OSError):  # closing flushes, and the disk may be full
            self._file.close()


class IndexedWriter:
    """Write ``path_prefix.bin`` and ``path_prefix.idx``; nothing carries these names before :meth:`finalize`.

    As a context manager it takes everything back, finished files included, when the block fails or is left before
    :meth:`finalize`. Full disks and the like raise :class:`UserError` with the file and the bytes written.
    """

    def __init__(self, path_prefix: str, dtype: type[np.generic]) -> None:
        self.path_prefix = path_prefix
        self.dtype = np.dtype(dtype)
        self._finalized = False
        self._bin = OutputFile(bin_path(path_prefix))
        try:
            self._idx = OutputFile(idx_path(path_prefix))
        except UserError:
            self._bin.abort()
            raise
        self._lengths = _Spool(idx_path(path_prefix), "i")
        self._documents = _Spool(idx_path(path_prefix), "q")
        self._documents.append(0)

    @property
    def num_sequences(self) -> int:
        """Sequences added so far."""
        return self._lengths.count

    @property
    def num_documents(self) -> int:
        """Documents ended so far."""
        return self._documents.count - 1

    @property
    def num_elements(self) -> int:
        """Tokens or bytes added so far."""
        return self._bin.bytes // self.dtype.itemsize

    def add(self, sequence: np.ndarray | bytes) -> None:
        """Append one sequence: a one-dimensional array, or bytes where the dtype is uint8.

        Raises ValueError for values that the dtype cannot hold.
        """
        values = np.frombuffer(sequence, np.uint8) if isinstance(sequence, bytes) else np.asarray(sequence)
        if values.ndim != 1:
            raise ValueError(f"a sequence has one dimension, not {values.ndim}")
        if values.dtype != self.dtype:
            converted = values.astype(self.dtype)
            if not np.array_equal(converted, values):
                raise ValueError(f"values from {values.min()} to {values.max()} do not fit {self.dtype}")
            values = converted
        if len(values) > _MAX_LENGTH:
            raise UserError(f"{self._bin.path}: a sequence of {len(values):,} elements; the format ends at 2**31 - 1")
        self._bin.write(values.tobytes())
        self._lengths.append(len(values))

    def add_sequences(self, elements: np.ndarray, sizes: np.ndarray) -> None:
        """Append many sequences: their elements, of the writer's dtype, one after the other, and the length of each."""
        if elements.dtype != self.dtype or int(sizes.sum()) != len(elements):
            raise ValueError(f"sequences of {int(sizes.sum())} {self.dtype} are no {len(elements)} {elements.dtype}")
        self._bin.write(elements.tobytes())
        self._lengths.extend(sizes)

    def end_document(self) -> None:
        """End the document that began after the last end; it may be empty."""
        self._documents.append(self._lengths.count)

    def finalize(self) -> dict[str, FileEntry]:
        """Write the index and give both files their names; return path -> size and hash."""
        _write_index(
            self._idx,
            self.dtype,
            (self._lengths.count, self._documents.count),
            self._lengths.chunks,
            self._documents.chunks,
        )
        self._lengths.close()
        self._documents.close()
        # Both are whole on the disk before either gets its name.
        self._bin.close()
        self._idx.close()
        entries = {output.path: output.commit() for output in (self._bin, self._idx)}
        self._finalized = True
        return entries

    def abort(self) -> None:
        """Remove everything that this writer has made, finished files included."""
        self._lengths.close()
        self._documents.close()
        self._bin.abort()
        self._idx.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None or not self._finalized:
            self.abort()


def _write_index(
    output: OutputFile,
    dtype: np.dtype,
    counts: tuple[int, int],
    lengths: Callable[[], Iterable[np.ndarray]],
    bounds: Callable[[], Iterable[np.ndarray]],
) -> None:
    """Write an index of (sequences, document bounds) ``counts``; the arrays come in portions, the lengths twice."""
    code = next(code for code, known in DTYPE_CODES.items() if np.dtype(known) == dtype)
    output.write(_HEADER.pack(MAGIC, VERSION, code, *counts))
    for portion in lengths():
        output.write(portion.astype("<i4").tobytes())
    pointer = 0
    for portion in lengths():
        ends = pointer + np.cumsum(portion, dtype=np.int64) * dtype.itemsize
        output.write((ends - portion.astype(np.int64) * dtype.itemsize).astype("<i8").tobytes())
        pointer = int(ends[-1]) if len(ends) else pointer
    for portion in bounds():
        output.write(portion.astype("<i8").tobytes())


def join_indexes(path_prefixes: Sequence[str], output_prefix: str, dtype: type[np.generic]) -> FileEntry:
    """Write ``output_prefix.idx`` for the data of ``path_prefixes`` one after the other; their .bin need not be there.

    Takes the same memory whatever the number of sequences. Raises UserError for an index that is damaged or of another
    dtype.
    """
    counts = [0, 1]
    for prefix in path_prefixes:
        index = read_index(prefix)
        if index.dtype != np.dtype(dtype):
            raise UserError(f"{idx_path(prefix)} holds {index.dtype}, {np.dtype(dtype)} is expected")
        counts[0] += len(index.sizes)
        counts[1] += index.num_documents

    def lengths() -> Iterator[np.ndarray]:
        for prefix in path_prefixes:
            yield from _portions(read_index(prefix).sizes)

    def bounds() -> Iterator[np.ndarray]:
        yield np.zeros(1, np.int64)
        before = 0
        for prefix in path_prefixes:
            index = read_index(prefix)
            for portion in _portions(index.document_bounds[1:]):
                yield portion + before
            before += len(index.sizes)

    output = OutputFile(idx_path(output_prefix))
    try:
        _write_index(output, np.dtype(dtype), (counts[0], counts[1]), lengths, bounds)
        return output.commit()
    except BaseException:
        output.abort()
        raise


def _portions(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), _SPOOL_ITEMS):
        yield values[start : start + _SPOOL_ITEMS]


class Index(NamedTuple):
    """An ``.idx`` as views of a memory map, read-only and not aligned."""

    dtype: np.dtype
    """Of the elements in the ``.bin``."""
    sizes: np.ndarray
    """int32 [sequences]: elements of each sequence."""
    pointers: np.ndarray
    """int64 [sequences]: byte in the .bin at which each sequence begins."""
    document_bounds: np.ndarray
    """int64 [documents + 1]: document d holds the sequences from bounds[d] to bounds[d + 1]."""

    @property
    def num_documents(self) -> int:
        """Documents, empty ones included."""
        return max(len(self.document_bounds) - 1, 0)

    @property
    def data_bytes(self) -> int:
        """Size of the ``.bin`` that belongs to it."""
        return int(self.pointers[-1]) + int(self.sizes[-1]) * self.dtype.itemsize if len(self.sizes) else 0


def read_index(path_prefix: str) -> Index:
    """Open ``path_prefix.idx`` alone. Raises UserError for one that is missing, truncated or foreign."""
    path = idx_path(path_prefix)
    size = _size(path)
    if size < _HEADER.size:
        raise UserError(f"{path}: {size} bytes are too few for an index; the file is damaged")
    with open(path, "rb") as file:
        magic, version, code, sequences, bounds = _HEADER.unpack(file.read(_HEADER.size))
    if magic != MAGIC:
        raise UserError(f"{path} is no index: it does not begin with MMIDIDX")
    if version != VERSION:
        raise UserError(f"{path}: index version {version}; this program reads version {VERSION}")
    if code not in DTYPE_CODES:
        raise UserError(f"{path}: unknown dtype code {code}; the file is damaged")
    # A file written with modes (one int8 a sequence) by Megatron's multimodal builder has them at its end.
    expected = _HEADER.size + sequences * 12 + bounds * 8
    if size not in (expected, expected + sequences):
        raise UserError(
            f"{path}: {size:,} bytes, but {sequences:,} sequences and {bounds:,} document bounds take {expected:,}; "
            f"the file is damaged"
        )
    data = np.memmap(path, mode="r", dtype=np.uint8).view(np.ndarray)
    index = Index(
        np.dtype(DTYPE_CODES[code]).newbyteorder("<"),
        np.frombuffer(data, "<i4", sequences, _HEADER.size),
        np.frombuffer(data, "<i8", sequences, _HEADER.size + sequences * 4),
        np.frombuffer(data, "<i8", bounds, _HEADER.size + sequences * 12),
    )
    if bounds and int(index.document_bounds[-1]) != sequences:
        raise UserError(
            f"{path}: the last document ends at sequence {int(index.document_bounds[-1]):,} of {sequences:,}; "
            f"the file is damaged"
        )
    return index


class IndexedReader:
    """Read ``path_prefix.bin`` and ``.idx`` through memory maps.

    Opening reads the header and the last entries only, whatever the size. A missing, truncated or foreign file raises
    :class:`UserError`. Arrays are views of the map, read-only and (in the index) not aligned.
    """

    def __init__(self, path_prefix: str) -> None:
        self.path_prefix = path_prefix
        data_file = bin_path(path_prefix)
        _size(idx_path(path_prefix))  # the index is missed first where both are
        data_bytes = _size(data_file)
        index = read_index(path_prefix)
        self.dtype = index.dtype
        self.sizes = index.sizes
        """int32 [sequences]: elements of each sequence."""
        self.pointers = index.pointers
        """int64 [sequences]: byte in the .bin at which each sequence begins."""
        self.document_bounds = index.document_bounds
        """int64 [documents + 1]: document d holds the sequences from bounds[d] to bounds[d + 1]."""
        if index.data_bytes != data_bytes:
            raise UserError(
                f"{data_file}: {data_bytes:,} bytes, but its index ends at {index.data_bytes:,}; one of them is damaged"
            )
        # An empty file cannot be mapped.
        data = np.memmap(data_file, mode="r", dtype=self.dtype) if data_bytes else np.empty(0, self.dtype)
        self.elements = data.view(np.ndarray)
        """The whole .bin as one array of ``dtype``; sequences follow each other without gaps."""

    @property
    def num_documents(self) -> int:
        """Documents, empty ones included."""
        return max(len(self.document_bounds) - 1, 0)

    @property
    def num_elements(self) -> int:
        """Tokens or bytes of all sequences."""
        return len(self.elements)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence ``index`` as a read-only view of dtype ``dtype``."""
        if not 0 <= index < len(self.sizes):
            raise IndexError(f"sequence {index} of {len(self.sizes)} in {self.path_prefix}")
        start, size = int(self.pointers[index]), int(self.sizes[index])
        begin = start // self.dtype.itemsize
        if start < 0 or size < 0 or begin + size > len(self.elements):
            raise UserError(f"{idx_path(self.path_prefix)}: sequence {index} lies outside the data: damaged")
        return self.elements[begin : begin + size]

    def __reduce__(self) -> tuple[Any, ...]:
        # A map does not travel to another process; the path does.
        return type(self), (self.path_prefix,)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}") from error
