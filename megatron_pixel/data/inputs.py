"""Bytes of input files: formats by file ending, decompression, and lines, streamed at flat memory.

Everything that can be wrong with a record or a file is a :class:`BadRecordError`; :mod:`megatron_pixel.data.documents`
decides whether it ends the program or is counted and left out.
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol, cast

from megatron_pixel.config.errors import UserError

Content = Literal["jsonl", "txt", "parquet"]
Compression = Literal["gzip", "zstd"]

STDIN = "-"
CHUNK_BYTES = 1 << 18
MAX_RECORD_BYTES = 1 << 28
"""A longer record is refused: a file without line ends must not fill the memory."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_CONTENTS: dict[str, Content] = {".jsonl": "jsonl", ".json": "jsonl", ".txt": "txt", ".parquet": "parquet"}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
KNOWN_ENDINGS = (
    ".jsonl, .jsonl.gz, .jsonl.zst (.json likewise, a JSON object per line), .parquet, .txt, .txt.gz, .txt.zst"
)


class BadRecordError(Exception):
    """A record, or the rest of a file, that cannot be used.

    ``reason`` is a short name to count by, ``name`` the file, ``line`` the number of the line if there is one,
    ``detail`` says what is wrong.
    """

    def __init__(self, reason: str, name: str, line: int | None, detail: str) -> None:
        super().__init__(f"{name}: {detail}" if line is None else f"{name}:{line}: {detail}")
        self.reason = reason
        self.name = name
        self.line = line
        self.detail = detail

    def moved(self, lines: int) -> "BadRecordError":
        """The same with ``lines`` more lines before it."""
        line = None if self.line is None else self.line + lines
        return BadRecordError(self.reason, self.name, line, self.detail)


class InputFormat(NamedTuple):
    """What a file holds and how it is packed."""

    content: Content
    compression: Compression | None


def input_format(path: str) -> InputFormat:
    """The format of a file by its ending; raises UserError that lists the known endings."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    compression = _COMPRESSIONS.get(suffixes[-1]) if suffixes else None
    if compression is not None:
        suffixes.pop()
    content = _CONTENTS.get(suffixes[-1]) if suffixes else None
    if content is None or (content == "parquet" and compression is not None):
        raise UserError(
            f"{path}: unknown kind of input file; known endings are {KNOWN_ENDINGS}, and - for standard input"
        )
    return InputFormat(content, compression)


def check_input_file(path: str) -> int:
    """Size of an input file in bytes; raises UserError when it cannot be read."""
    file = Path(path)
    if not file.exists():
        raise UserError(f"{path}: no such file")
    if not file.is_file():
        raise UserError(f"{path}: not a file; name the files themselves, for instance {path.rstrip('/')}/*.jsonl.gz")
    try:
        with file.open("rb"):
            return file.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def open_input(path: str) -> BinaryIO:
    """The raw bytes of a file or of standard input."""
    return sys.stdin.buffer if path == STDIN else Path(path).open("rb")


def read_chunks(
    file: BinaryIO, name: str, compression: Compression | None, on_bytes: Callable[[int], None]
) -> Iterator[bytes]:
    """Decompressed chunks of an open file; ``on_bytes`` hears how many raw bytes were taken from it.

    Raises:
        BadRecordError: damaged or truncated compressed data.
    """
    raw = _raw_chunks(file, on_bytes)
    if compression is None:
        return raw
    if compression == "gzip":
        return _decompressed(
            raw, name, compression, lambda: cast(_Decompressor, zlib.decompressobj(wbits=31)), zlib.error
        )
    import zstandard

    # Files written with `zstd --long=31` need the larger window.
    context = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    return _decompressed(
        raw, name, compression, lambda: cast(_Decompressor, context.decompressobj()), zstandard.ZstdError
    )


def _raw_chunks(file: BinaryIO, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        on_bytes(len(chunk))
        yield chunk


class _Decompressor(Protocol):
    """What zlib's and zstandard's decompression objects share; each reads one member or frame."""

    eof: bool
    unused_data: bytes

    def decompress(self, data: bytes, /) -> bytes: ...


def _decompressed(
    raw: Iterator[bytes],
    name: str,
    compression: Compression,
    new_decompressor: Callable[[], _Decompressor],
    error_type: type[Exception],
) -> Iterator[bytes]:
    """Concatenated gzip members or zstd frames; zstandard's own stream would end a truncated file without a word."""
    decompressor: _Decompressor | None = None
    for chunk in raw:
        data = chunk
        while data:
            if decompressor is None:
                if compression == "gzip" and not data.strip(b"\0"):
                    break  # zero padding after the last member, as tape and block tools leave it
                decompressor = new_decompressor()
            try:
                out = decompressor.decompress(data)
            except error_type as error:
                raise BadRecordError("damaged file", name, None, f"damaged {compression} data ({error})") from None
            if out:
                yield out
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data
                decompressor = None
    if decompressor is not None:
        raise BadRecordError(
            "truncated file", name, None, f"the {compression} data end in the middle: the file is truncated"
        )


class Line(NamedTuple):
    """One line of a text."""

    number: int
    start: int
    """Place of its first byte in the (decompressed) text."""
    end: int
    """Place after its line end."""
    data: bytes | BadRecordError
    """Its bytes without the line end; an error in place of a line longer than MAX_RECORD_BYTES."""


def read_lines(chunks: Iterator[bytes], name: str, number: int = 1, start: int = 0) -> Iterator[Line]:
    """Lines of a text whose chunks begin at place ``start``, with line ``number``; no longer line fills the memory.

    A byte order mark at place 0 is dropped.
    """
    pending: list[bytes] = []
    size = 0
    for chunk in chunks:
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            size += len(part)
            if pending:
                pending.append(part)
                part = b"".join(pending)
                pending.clear()
            fits = size == len(part) <= MAX_RECORD_BYTES
            yield Line(number, start, start + size + 1, _trim(part, start) if fits else _long(name, number))
            start += size + 1
            size = 0
            number += 1
        if rest:
            size += len(rest)
            if size <= MAX_RECORD_BYTES:
                pending.append(rest)
            else:
                pending = [b""]  # shorter than its size says: that marks a line as too long
    if size:
        part = b"".join(pending)
        yield Line(number, start, start + size, _trim(part, start) if size == len(part) else _long(name, number))


def _trim(line: bytes, start: int) -> bytes:
    if start == 0:
        line = line.removeprefix(BYTE_ORDER_MARK)
    return line.removesuffix(b"\r")


def _long(name: str, number: int) -> BadRecordError:
    return BadRecordError("record too long", name, number, f"the line is longer than {MAX_RECORD_BYTES:,} bytes")


def first_line_start(file: BinaryIO, start: int, stop: int) -> int | None:
    """Place of the first line that begins in [start, stop) of a file; None if there is none."""
    if start == 0:
        return 0 if stop > 0 else None
    place = start - 1
    file.seek(place)
    while place < stop - 1:
        chunk = file.read(min(CHUNK_BYTES, stop - 1 - place))
        if not chunk:
            return None
        found = chunk.find(b"\n")
        if found >= 0:
            return place + found + 1
        place += len(chunk)
    return None


def follows_blank_line(file: BinaryIO, start: int) -> bool:
    """Whether the line before the one that begins at ``start`` is blank (or there is none)."""
    end = start - 1  # its line end
    while end > 0:
        begin = end - CHUNK_BYTES
        if begin < len(BYTE_ORDER_MARK):
            begin = 0
        file.seek(begin)
        before = file.read(end - begin)
        if begin == 0:
            before = before.removeprefix(BYTE_ORDER_MARK)
        line = before[before.rfind(b"\n") + 1 :]
        if line and not line.isspace():
            return False
        if len(line) < len(before):
            return True
        end = begin
    return True


def count_lines(file: BinaryIO, stop: int) -> int:
    """Line ends in the first ``stop`` bytes of a file."""
    file.seek(0)
    lines = place = 0
    while place < stop and (chunk := file.read(min(CHUNK_BYTES, stop - place))):
        lines += chunk.count(b"\n")
        place += len(chunk)
    return lines
