"""Records out of parts of input files: lines of JSON, stretches of text, rows of .parquet.

A part is what one process reads by itself: a whole file, the lines that begin in a range of its bytes, or some of its
row groups. The parts of a file hold its records once each, wherever the cuts are.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, BinaryIO, Literal

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import inputs
from megatron_pixel.data.inputs import STDIN, BadRecordError, Compression, Content, Line

Record = tuple[int, str | BadRecordError]
"""Number of a record's first line (of its row in .parquet), and its text or what is wrong with it."""


@dataclass(frozen=True)
class ReaderOptions:
    """How input files are read."""

    key: str = "text"
    """Name of the text in a JSON object, and of the column in a .parquet file."""
    on_bad_record: Literal["fail", "skip"] = "fail"
    txt_mode: Literal["paragraph", "line", "file"] = "paragraph"
    """A document of a .txt file: a run of lines between blank ones, a line, or the whole file."""
    stdin_format: Literal["jsonl", "txt"] = "jsonl"
    max_documents: int | None = None


@dataclass(frozen=True)
class Part:
    """A stretch of one input."""

    path: str
    """File to read, ``-`` for standard input."""
    name: str
    """What messages call it."""
    content: Content
    compression: Compression | None = None
    start: int = 0
    """First byte (in .parquet: row group); of compressed files the place at which their text stands in the input."""
    stop: int | None = None
    """End of the bytes in which the part's records begin (of its row groups); None: the end of the file."""
    first: int | None = 1
    """Number of the first line or row; None: unknown, and counted when it is asked for."""
    size: int = 0
    """Bytes of the input that the part stands for."""
    source: int = 0
    """Number of the input."""
    error: tuple[str, str] | None = None
    """What ends the text of a damaged input after this part: reason and detail."""


class Records:
    """Iterates over the records of a part; blank ones are passed over."""

    def __init__(self, part: Part, options: ReaderOptions) -> None:
        self.part = part
        self._options = options
        self._start = part.start
        self._raw = 0  # bytes taken from the file
        self._text = 0  # bytes of text that they gave
        self._used = 0  # bytes of text, or rows, of the records so far
        self._rows = 0

    @property
    def size_done(self) -> int:
        """Bytes of the input behind the last record: at most the size of the part."""
        part = self.part
        if part.content == "parquet":
            return part.size * self._used // max(self._rows, 1)
        if part.compression is None:
            return self._used
        # Compressed data come in large portions; the text tells how much of the last one was used.
        return self._raw * self._used // max(self._text, 1)

    def lines_before(self) -> int:
        """Lines to be added to the number of a record."""
        if self.part.first is not None or not self._start:
            return 0
        with open(self.part.path, "rb") as file:
            return inputs.count_lines(file, self._start)

    def __iter__(self) -> Iterator[Record]:
        """Raises BadRecordError where the rest of the part cannot be read, UserError if the file cannot."""
        if self.part.content == "parquet":
            yield from self._parquet()
            return
        try:
            file = inputs.open_input(self.part.path)
            try:
                yield from self._lines(file)
            finally:
                if self.part.path != STDIN:
                    file.close()
        except OSError as error:
            raise UserError(f"{self.part.name}: cannot be read: {error.strerror}") from None

    def _lines(self, file: BinaryIO) -> Iterator[Record]:
        part, options = self.part, self._options
        inside = False
        if part.stop is not None:
            start = inputs.first_line_start(file, part.start, part.stop)
            if start is None:
                return
            paragraphs = part.content == "txt" and options.txt_mode == "paragraph"
            inside = paragraphs and not inputs.follows_blank_line(file, start)
            file.seek(start)
            self._start = start
        lines = inputs.read_lines(self._chunks(file), part.name, part.first or 1, self._start)
        if part.content == "jsonl" or options.txt_mode == "line":
            records = self._until_stop(lines)
        else:
            records = self._joined(lines, options.txt_mode == "paragraph", inside)
        for number, data in records:
            if isinstance(data, BadRecordError):
                yield number, data
            elif data and not data.isspace():
                try:
                    if part.content == "jsonl":
                        yield number, json_text(data, options.key, part.name, number)
                    else:
                        yield number, _decode(data, part.name, number)
                except BadRecordError as bad:
                    yield number, bad

    def _chunks(self, file: BinaryIO) -> Iterator[bytes]:
        for chunk in inputs.read_chunks(file, self.part.name, self.part.compression, self._count_raw):
            self._text += len(chunk)
            yield chunk
        if self.part.error:
            raise BadRecordError(self.part.error[0], self.part.name, None, self.part.error[1])

    def _count_raw(self, count: int) -> None:
        self._raw += count

    def _until_stop(self, lines: Iterator[Line]) -> Iterator[tuple[int, bytes | BadRecordError]]:
        stop = self.part.stop
        for line in lines:
            if stop is not None and line.start >= stop:
                return
            self._used = line.end - self._start
            yield line.number, line.data

    def _joined(
        self, lines: Iterator[Line], paragraphs: bool, inside: bool
    ) -> Iterator[tuple[int, bytes | BadRecordError]]:
        """Paragraphs (or the whole text), each with the number of its first line.

        ``inside``: the first lines belong to a paragraph that began before.
        """
        stop = self.part.stop
        first, size = 1, 0
        gathered: list[bytes] = []
        bad: BadRecordError | None = None
        for line in lines:
            blank = paragraphs and isinstance(line.data, bytes) and not line.data.strip()
            if stop is not None and line.start >= stop and (blank or inside or not (gathered or bad)):
                break
            self._used = line.end - self._start
            if inside or blank:
                inside = inside and not blank
                if gathered or bad:
                    yield first, bad or b"\n".join(gathered)
                gathered, size, bad = [], 0, None
                continue
            if not (gathered or bad):
                first = line.number
            if isinstance(line.data, BadRecordError):
                bad = bad or line.data
            elif bad is None:
                gathered.append(line.data)
                size += len(line.data) + 1
            if size > inputs.MAX_RECORD_BYTES and bad is None:
                what = "paragraph" if paragraphs else "file"
                detail = f"the {what} that starts here is longer than {inputs.MAX_RECORD_BYTES:,} bytes"
                bad = BadRecordError("record too long", self.part.name, first, f"{detail}; try --txt-mode line")
            if bad is not None:
                gathered.clear()
        if gathered or bad:
            yield first, bad or b"\n".join(gathered)

    def _parquet(self) -> Iterator[Record]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, key = self.part.path, self._options.key
        if inputs.check_input_file(path) == 0:
            return
        try:
            with pq.ParquetFile(path, buffer_size=inputs.CHUNK_BYTES) as table:
                _check_column(table.schema_arrow, key, path)
                groups = range(self.part.start, table.num_row_groups if self.part.stop is None else self.part.stop)
                counts = [table.metadata.row_group(group).num_rows for group in groups]
                self._rows = sum(counts)
                behind = 0
                for group, rows in zip(groups, counts, strict=True):
                    try:
                        for values in table.iter_batches(
                            batch_size=256, row_groups=[group], columns=[key], use_threads=False
                        ):
                            for value in values.column(0):
                                self._used += 1
                                row = (self.part.first or 1) + self._used - 1
                                yield row, _parquet_text(value, f"{path}, row {row}")
                    except (pa.ArrowException, OSError) as error:
                        yield (self.part.first or 1) + behind, _damaged_parquet(path, error)
                    behind += rows
                    self._used = behind
        except (pa.ArrowException, OSError) as error:
            raise _damaged_parquet(path, error) from None


def json_text(data: bytes, key: str, name: str, line: int) -> str:
    """The text of one JSON line; raises BadRecordError."""
    _check_nul(data, name, line)
    try:
        record = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecordError(
            "invalid UTF-8", name, line, f"invalid UTF-8 at byte {error.start} of the line ({error.reason})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadRecordError("broken JSON", name, line, f"broken JSON: {error}") from None
    if not isinstance(record, dict):
        kind = _kind(record)
        raise BadRecordError("broken JSON", name, line, f"expected a JSON object on every line, found {kind}")
    if key not in record:
        raise BadRecordError("missing key", name, line, f'no "{key}" in the record{_suggestion(key, record)}')
    text = record[key]
    if not isinstance(text, str):
        raise BadRecordError("not a string", name, line, f'"{key}" is {_kind(text)}, a string is expected')
    _check_surrogates(text, name, line)
    return text


def _decode(data: bytes, name: str, line: int) -> str:
    _check_nul(data, name, line)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise BadRecordError("invalid UTF-8", name, line, f"invalid UTF-8 ({error.reason})") from None


def _check_nul(data: bytes, name: str, line: int) -> None:
    place = data.find(b"\0")
    if place >= 0:
        detail = "holds NUL bytes: a binary file, or text in UTF-16; UTF-8 is expected"
        raise BadRecordError("NUL bytes", name, line + data.count(b"\n", 0, place), detail)


def _check_surrogates(text: str, name: str, line: int) -> None:
    """JSON escapes can spell half a surrogate pair; no encoding can hold it and no font can draw it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        detail = f"lone surrogate \\u{code:04x} at character {error.start} of the text"
        raise BadRecordError("lone surrogate", name, line, detail) from None


def _check_column(schema: Any, key: str, path: str) -> None:
    import pyarrow as pa

    if key not in schema.names:
        raise BadRecordError("missing key", path, None, f'no column "{key}"{_suggestion(key, schema.names)}')
    kind = schema.field(key).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()):
        raise BadRecordError("not a string", path, None, f'column "{key}" holds {kind}, strings are expected')


def _parquet_text(value: Any, where: str) -> "str | BadRecordError":
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        return BadRecordError("invalid UTF-8", where, None, f"invalid UTF-8 at byte {error.start} ({error.reason})")
    if text is None:
        return BadRecordError("not a string", where, None, "the text is null, a string is expected")
    return str(text)


def _suggestion(key: str, names: Iterable[str]) -> str:
    """The part of a message that helps with a wrong ``--key``."""
    names = list(names)
    near = get_close_matches(key, names, 1)
    if near:
        return f"; did you mean --key {near[0]}?"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"; it has: {shown} (choose with --key)" if names else ""


def _kind(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names: dict[type, str] = {dict: "an object", list: "an array", str: "a string", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)


def _damaged_parquet(path: str, error: Exception) -> BadRecordError:
    return BadRecordError("damaged file", path, None, f"not a readable parquet file ({str(error).splitlines()[0]})")
