"""Documents out of text files: .jsonl (.gz, .zst), .parquet, .txt and standard input, one after another at flat memory.

reader = DocumentReader(["a.jsonl.gz", "b.parquet"], ReaderOptions(on_bad_record="skip"))
for document in reader:
    ...
print(reader.documents, reader.skipped)
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import inputs
from megatron_pixel.data.inputs import STDIN, BadRecordError, InputFormat
from megatron_pixel.data.records import Part, ReaderOptions, Records

STDIN_NAME = "standard input"
EMPTY_DOCUMENT = "empty document"
"""Reason under which documents without a visible character are counted; they are left out always."""


class Document(NamedTuple):
    """One text and where it came from: ``line`` counts from 1 (rows in .parquet files)."""

    text: str
    file: str
    line: int


class PartReader:
    """Iterates over the documents of one part of an input.

    While and after iterating, ``documents`` and ``text_bytes`` (in UTF-8) count what was yielded, ``records`` also what
    was not, ``skipped`` what was left out by reason, and ``bytes_done`` how much of the part was read.

    Raises:
        UserError: while iterating, for a bad record, naming file and line, unless ``on_bad_record`` is ``skip``.
    """

    def __init__(self, part: Part, options: ReaderOptions, skipped: Counter[str] | None = None) -> None:
        self.part = part
        self.skipped = Counter() if skipped is None else skipped
        self.documents = self.text_bytes = self.records = 0
        self._options = options
        self._records = Records(part, options)
        self._finished = False

    @property
    def bytes_done(self) -> int:
        """Bytes of the input behind the last document."""
        return self.part.size if self._finished and self.part.path != STDIN else self._records.size_done

    def __iter__(self) -> Iterator[Document]:
        try:
            for line, value in self._records:
                self.records += 1
                if isinstance(value, BadRecordError):
                    self._refuse(value)
                elif not value or value.isspace():
                    self.skipped[EMPTY_DOCUMENT] += 1
                else:
                    self.documents += 1
                    self.text_bytes += len(value.encode())
                    yield Document(value, self.part.name, line)
        except BadRecordError as bad:  # the rest of the part is lost
            self.records += 1
            self._refuse(bad)
        self._finished = True

    def where(self, document: Document) -> str:
        """File and line of one of its documents."""
        return f"{document.file}:{document.line + self._records.lines_before()}"

    def _refuse(self, bad: BadRecordError) -> None:
        if self._options.on_bad_record == "fail":
            refuse(bad.moved(self._records.lines_before()), self._options, self.skipped)
        refuse(bad, self._options, self.skipped)


def refuse(bad: BadRecordError, options: ReaderOptions, skipped: dict[str, int]) -> None:
    """Raise UserError for a bad record, or count it where that was asked for."""
    if options.on_bad_record == "fail":
        raise UserError(f"{bad}\n  (--on-bad-record skip counts such records and leaves them out)") from None
    skipped[bad.reason] = skipped.get(bad.reason, 0) + 1


def empty_file(name: str) -> BadRecordError:
    """What is wrong with an input without a record."""
    detail = "nothing was read" if name == STDIN_NAME else "holds no text: the file is empty"
    return BadRecordError("empty file", name, None, detail)


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
        self.files = [self._whole(path, number) for number, path in enumerate(self.paths)]
        """Every input as one part."""
        self.total_bytes = None if STDIN in self.paths else sum(file.size for file in self.files)
        self.documents = 0
        self.skipped: Counter[str] = Counter()
        self._done = self._text_done = 0
        self._current: PartReader | None = None

    @property
    def bytes_done(self) -> int:
        """Bytes of the files that were read."""
        return self._done + (self._current.bytes_done if self._current else 0)

    @property
    def text_bytes(self) -> int:
        """Bytes of the documents in UTF-8."""
        return self._text_done + (self._current.text_bytes if self._current else 0)

    def __iter__(self) -> Iterator[Document]:
        limit = self.options.max_documents
        if limit is not None and limit <= self.documents:
            return
        for file in self.files:
            reader = self._current = PartReader(file, self.options, self.skipped)
            for document in reader:
                self.documents += 1
                yield document
                if limit is not None and self.documents >= limit:
                    return
            if not reader.records:
                refuse(empty_file(file.name), self.options, self.skipped)
            self._done += reader.bytes_done
            self._text_done += reader.text_bytes
            self._current = None

    def _whole(self, path: str, number: int) -> Part:
        if path == STDIN:
            return Part(path, STDIN_NAME, InputFormat(self.options.stdin_format, None).content, source=number)
        content, compression = inputs.input_format(path)
        return Part(path, path, content, compression, size=inputs.check_input_file(path), source=number)


def read_documents(paths: Sequence[str], options: ReaderOptions | None = None) -> DocumentReader:
    """The documents of ``paths``; see :class:`DocumentReader`."""
    return DocumentReader(paths, options)
