"""How the inputs are cut into parts, each of which one process converts by itself.

The cuts depend on the input files alone. They do not show in the output: a record belongs to the part in which it
begins, and the parts are put together in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from megatron_pixel.data.documents import DocumentReader
from megatron_pixel.data.inputs import STDIN
from megatron_pixel.data.records import Part, ReaderOptions

_MIB = 1 << 20
_USUAL_PART = 32 * _MIB
_LEAST_PARTS = 64
"""Inputs are cut into so many parts if these are 1 MiB at least, so that a few processes end at about the same time."""
_MOST_PARTS = 1 << 14
"""About the most: beyond, the parts grow, so that the folder of parts stays one that file systems like."""
_LONGEST_PACKED = 256 * _MIB


@dataclass(frozen=True)
class Plan:
    """What is to be read."""

    part_bytes: int
    files: tuple[Part, ...]
    """Every input as one part."""
    spooled: frozenset[int]
    """Numbers of the inputs that cannot be entered in the middle, and are therefore cut into files of parts first."""
    limited: bool
    """Only so many documents were asked for. The reader then cuts them itself, from all inputs together."""

    @property
    def size(self) -> int:
        """Bytes of all inputs; standard input counts nothing."""
        return sum(file.size for file in self.files)


def make_plan(reader: DocumentReader, part_bytes: int | None = None) -> Plan:
    """Decide how the inputs of ``reader`` are cut; ``part_bytes`` replaces the size that suits them."""
    files = tuple(reader.files)
    total = sum(file.size for file in files)
    size = part_bytes or usual_part_bytes(total)
    limited = reader.options.max_documents is not None
    spooled = frozenset(
        file.source for file in files if file.path == STDIN or _is_long(file, size, total, reader.options)
    )
    return Plan(size, files, frozenset() if limited else spooled, limited)


def usual_part_bytes(total: int) -> int:
    """Size of the parts of so many bytes of input."""
    return max(_MIB, min(_USUAL_PART, total // _LEAST_PARTS), total // _MOST_PARTS)


def _is_long(file: Part, part_bytes: int, total: int, options: ReaderOptions) -> bool:
    """Whether a compressed file would be a straggler. Of many files of a size none is: each can be a part."""
    if file.compression is None or (file.content == "txt" and options.txt_mode == "file"):
        return False
    return file.size > max(part_bytes // 2, min(total // 256, _LONGEST_PACKED))


def cut_file(file: Part, part_bytes: int, options: ReaderOptions) -> list[Part]:
    """The parts of an input that is not spooled; one without bytes has none."""
    if file.size == 0:
        return []
    if file.content == "parquet":
        return _row_groups(file, part_bytes)
    if file.compression is not None or (file.content == "txt" and options.txt_mode == "file"):
        return [file]
    count = max(1, round(file.size / part_bytes))
    edges = [file.size * number // count for number in range(count + 1)]
    return [
        replace(file, start=start, stop=stop, size=stop - start, first=None if start else 1)
        for start, stop in pairwise(edges)
        if stop > start
    ]


def _row_groups(file: Part, part_bytes: int) -> list[Part]:
    """Neighbouring row groups of about ``part_bytes``, decompressed; each counts by its share of the rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file.path)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        sizes = [(group.total_byte_size, group.num_rows) for group in groups]
    except (pa.ArrowException, OSError):
        return [file]  # who reads it says what is wrong with it
    rows = max(sum(count for _, count in sizes), 1)
    parts: list[Part] = []
    start = behind = gathered = gathered_rows = 0
    for number, (size, count) in enumerate(sizes, start=1):
        gathered += size
        gathered_rows += count
        if gathered >= part_bytes or number == len(sizes):
            before, after = (file.size * done // rows for done in (behind, behind + gathered_rows))
            parts.append(replace(file, start=start, stop=number, first=behind + 1, size=after - before))
            behind += gathered_rows
            start, gathered, gathered_rows = number, 0, 0
    return parts or [file]


def total_size(parts: Sequence[Part]) -> int:
    """Bytes of input that the parts stand for."""
    return sum(part.size for part in parts)
