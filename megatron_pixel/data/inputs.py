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

_CONTENTS: dict[str, Content] = {".jsonl": "jsonl", ".json": "jsonl", ".txt": "txt", ".parquet": "parquet"}
_COMPRESSIONS: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
KNOWN_ENDINGS = (
    ".jsonl, .jsonl.gz, .jsonl.zst (.json likewise, a JSON object per line), .parquet, .txt, .txt.gz, .txt.zst"
)


class BadRecordError(Exception):
    """A record, or the rest of a file, that cannot be used.

    ``reason`` is a short name to count by, ``where`` names file and line, ``detail`` says what is wrong.
    """

    def __init__(self, reason: str, where: str, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.reason = reason
        self.where = where
        self.detail = detail


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
    file: BinaryIO, where: str, compression: Compression | None, on_bytes: Callable[[int], None]
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
            raw, where, compression, lambda: cast(_Decompressor, zlib.decompressobj(wbits=31)), zlib.error
        )
    import zstandard

    # Files written with `zstd --long=31` need the larger window.
    context = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    return _decompressed(
        raw, where, compression, lambda: cast(_Decompressor, context.decompressobj()), zstandard.ZstdError
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
    where: str,
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
                raise BadRecordError("damaged file", where, f"damaged {compression} data ({error})") from None
            if out:
                yield out
            data = b""
            if decompressor.eof:
                data = decompressor.unused_data
                decompressor = None
    if decompressor is not None:
        raise BadRecordError(
            "truncated file", where, f"the {compression} data end in the middle: the file is truncated"
        )


def read_lines(chunks: Iterator[bytes], where: str) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, without line ends; a byte order mark at the start is dropped.

    Raises:
        BadRecordError: NUL bytes (a binary file, or UTF-16), or a line longer than MAX_RECORD_BYTES.
    """
    number = 1
    pending: list[bytes] = []
    pending_bytes = 0
    for chunk in chunks:
        nul = chunk.find(b"\0")
        if nul >= 0:
            line = number + chunk.count(b"\n", 0, nul)
            raise BadRecordError(
                "binary file", f"{where}:{line}", "holds NUL bytes: a binary file, or text in UTF-16; UTF-8 is expected"
            )
        *whole, rest = chunk.split(b"\n")
        for part in whole:
            if pending:
                pending.append(part)
                part = b"".join(pending)
                pending.clear()
                pending_bytes = 0
            yield number, _trim(part, number)
            number += 1
        if rest:
            pending.append(rest)
            pending_bytes += len(rest)
            if pending_bytes > MAX_RECORD_BYTES:
                raise BadRecordError(
                    "record too long", f"{where}:{number}", f"the line is longer than {MAX_RECORD_BYTES:,} bytes"
                )
    if pending:
        yield number, _trim(b"".join(pending), number)


def _trim(line: bytes, number: int) -> bytes:
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    return line.removesuffix(b"\r")
