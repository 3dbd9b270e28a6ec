"""Documents out of text files: .jsonl (.gz, .zst), .parquet, .txt and standard input, one after another at flat memory.

reader = DocumentReader(["a.jsonl.gz", "b.parquet"], ReaderOptions(on_bad_record="skip"))
for document in reader:
    ...
print(reader.documents, reader.skipped)
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import inputs
from megatron_pixel.data.inputs import STDIN, BadRecordError, InputFormat

EMPTY_DOCUMENT = "empty document"
"""Reason under which documents without a visible character are counted; they are left out always."""


class Document(NamedTuple):
    """One text and where it came from: ``line`` counts from 1 (rows in .parquet files)."""

    text: str
    file: str
    line: int


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


class DocumentReader:
    """Iterates over the documents of ``paths`` in order.

    While and after iterating, ``documents`` and ``text_bytes`` (in UTF-8) count what was yielded, ``skipped`` what was
    left out by reason, and ``bytes_done`` how much of the files' ``total_bytes`` was read (None with standard input,
    whose size nobody knows).

    Raises:
        UserError: at construction for a missing or unreadable file and an unknown ending; while iterating for a bad
            record, naming file and line, unless ``on_bad_record`` is ``skip``.
    """

    def __init__(self, paths: Sequence[str], options: ReaderOptions | None = None) -> None:
        self.options = options or ReaderOptions()
        if not paths:
            raise UserError("no input files given")
        if list(paths).count(STDIN) > 1:
            raise UserError("standard input (-) can be read only once")
        self.paths = list(paths)
        self.formats = [self._format(path) for path in self.paths]
        sizes = {path: inputs.check_input_file(path) for path in self.paths if path != STDIN}
        self.total_bytes = None if STDIN in self.paths else sum(sizes[path] for path in self.paths)
        self.documents = 0
        self.text_bytes = 0
        self.bytes_done = 0
        self.skipped: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Document]:
        limit = self.options.max_documents
        if limit is not None and limit <= self.documents:
            return
        for path, file_format in zip(self.paths, self.formats, strict=True):
            for document in self._documents_of(path, file_format):
                self.documents += 1
                self.text_bytes += len(document.text.encode())
                yield document
                if limit is not None and self.documents >= limit:
                    return

    def _format(self, path: str) -> InputFormat:
        return InputFormat(self.options.stdin_format, None) if path == STDIN else inputs.input_format(path)

    def _documents_of(self, path: str, file_format: InputFormat) -> Iterator[Document]:
        """Documents of one file, with bad records counted or raised; empty ones are counted always."""
        name = "standard input" if path == STDIN else path
        records = (
            self._parquet_records(path) if file_format.content == "parquet" else self._records(path, name, file_format)
        )
        seen_any = False
        try:
            for line, value in records:
                seen_any = True
                if isinstance(value, BadRecordError):
                    self._refuse(value)
                elif not value or value.isspace():
                    self.skipped[EMPTY_DOCUMENT] += 1
                else:
                    yield Document(value, name, line)
            if not seen_any:
                raise BadRecordError(
                    "empty file", name, "holds no text: the file is empty" if path != STDIN else "nothing was read"
                )
        except BadRecordError as bad:  # the rest of the file is lost
            self._refuse(bad)

    def _refuse(self, bad: BadRecordError) -> None:
        if self.options.on_bad_record == "fail":
            raise UserError(f"{bad}\n  (--on-bad-record skip counts such records and leaves them out)") from None
        self.skipped[bad.reason] += 1

    def _records(self, path: str, name: str, file_format: InputFormat) -> Iterator[tuple[int, "str | BadRecordError"]]:
        file = inputs.open_input(path)
        try:
            chunks = inputs.read_chunks(file, name, file_format.compression, self._count_bytes)
            lines = inputs.read_lines(chunks, name)
            records = lines if file_format.content == "jsonl" else _text_records(lines, name, self.options.txt_mode)
            for line, data in records:
                if not data or data.isspace():
                    continue
                try:
                    if file_format.content == "jsonl":
                        yield line, json_text(data, self.options.key, f"{name}:{line}")
                    else:
                        yield line, _decode(data, name, line)
                except BadRecordError as bad:
                    yield line, bad
        except OSError as error:
            raise UserError(f"{name}: cannot be read: {error.strerror}") from None
        finally:
            if path != STDIN:
                file.close()

    def _count_bytes(self, count: int) -> None:
        self.bytes_done += count

    def _parquet_records(self, path: str) -> Iterator[tuple[int, "str | BadRecordError"]]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        size = inputs.check_input_file(path)
        if size == 0:
            return
        before = self.bytes_done
        try:
            with pq.ParquetFile(path) as table:
                _check_column(table.schema_arrow, self.options.key, path)
                rows = table.metadata.num_rows
                row = 0
                for batch in table.iter_batches(batch_size=256, columns=[self.options.key], use_threads=False):
                    for value in batch.column(0):
                        row += 1
                        yield row, _parquet_text(value, f"{path}, row {row}")
                    self.bytes_done = before + size * row // max(rows, 1)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise BadRecordError("damaged file", path, f"not a readable parquet file ({reason})") from None


def read_documents(paths: Sequence[str], options: ReaderOptions | None = None) -> DocumentReader:
    """The documents of ``paths``; see :class:`DocumentReader`."""
    return DocumentReader(paths, options)


def json_text(data: bytes, key: str, where: str) -> str:
    """The text of one JSON line; raises BadRecordError."""
    try:
        record = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadRecordError(
            "invalid UTF-8", where, f"invalid UTF-8 at byte {error.start} of the line ({error.reason})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise BadRecordError("broken JSON", where, f"broken JSON: {error}") from None
    if not isinstance(record, dict):
        kind = _kind(record)
        raise BadRecordError("broken JSON", where, f"expected a JSON object on every line, found {kind}")
    if key not in record:
        raise BadRecordError("missing key", where, f'no "{key}" in the record{_suggestion(key, record)}')
    text = record[key]
    if not isinstance(text, str):
        raise BadRecordError("not a string", where, f'"{key}" is {_kind(text)}, a string is expected')
    _check_surrogates(text, where)
    return text


def _text_records(
    lines: Iterator[tuple[int, bytes]], name: str, mode: Literal["paragraph", "line", "file"]
) -> Iterator[tuple[int, bytes]]:
    """Lines of a .txt file joined to documents, each with the number of its first line."""
    if mode == "line":
        yield from lines
        return
    first, parts, size = 1, list[bytes](), 0
    for number, line in lines:
        if mode == "paragraph" and not line.strip():
            if parts:
                yield first, b"\n".join(parts)
            parts, size = [], 0
            continue
        if not parts:
            first = number
        parts.append(line)
        size += len(line) + 1
        if size > inputs.MAX_RECORD_BYTES:
            detail = (
                f"the {mode} that starts here is longer than {inputs.MAX_RECORD_BYTES:,} bytes; try --txt-mode line"
            )
            raise BadRecordError("record too long", f"{name}:{first}", detail)
    if parts:
        yield first, b"\n".join(parts)


def _decode(data: bytes, name: str, line: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        raise BadRecordError("invalid UTF-8", f"{name}:{line}", f"invalid UTF-8 ({error.reason})") from None


def _check_surrogates(text: str, where: str) -> None:
    """JSON escapes can spell half a surrogate pair; no encoding can hold it and no font can draw it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        detail = f"lone surrogate \\u{code:04x} at character {error.start} of the text"
        raise BadRecordError("lone surrogate", where, detail) from None


def _check_column(schema: Any, key: str, path: str) -> None:
    import pyarrow as pa

    if key not in schema.names:
        raise BadRecordError("missing key", path, f'no column "{key}"{_suggestion(key, schema.names)}')
    kind = schema.field(key).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()):
        raise BadRecordError("not a string", path, f'column "{key}" holds {kind}, strings are expected')


def _parquet_text(value: Any, where: str) -> "str | BadRecordError":
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        return BadRecordError("invalid UTF-8", where, f"invalid UTF-8 at byte {error.start} ({error.reason})")
    if text is None:
        return BadRecordError("not a string", where, "the text is null, a string is expected")
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
