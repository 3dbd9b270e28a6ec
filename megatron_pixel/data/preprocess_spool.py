"""Inputs that cannot be entered in the middle (long compressed files, standard input), cut into files of parts.

One process decompresses one input; the parts lie in the work folder, lightly compressed, until they are converted. The
parts are cut where a record begins, so that they can be read like whole files.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import zstandard

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import inputs
from megatron_pixel.data.documents import DocumentReader, refuse
from megatron_pixel.data.files import OutputFile
from megatron_pixel.data.inputs import STDIN, BadRecordError
from megatron_pixel.data.preprocess_claims import Tally
from megatron_pixel.data.preprocess_plan import Plan
from megatron_pixel.data.preprocess_work import WorkFolder
from megatron_pixel.data.records import Part, ReaderOptions

_LEVEL = 1

Note = Callable[[Tally], None]


@dataclass
class Spooled:
    """What became of an input."""

    parts: list[dict[str, Any]]
    skipped: dict[str, int]
    """Of records that were read already; the others are counted when the parts are."""
    sha256: str
    """Of standard input, or of the documents that were read; empty where nobody asks for it."""


def spool(plan: Plan, number: int, options: ReaderOptions, work: WorkFolder, note: Note) -> None:
    """Cut input ``number`` into parts; the record ``spool-<number>.json`` comes last.

    Raises:
        UserError: damaged data, unless these are to be skipped; CannotWriteError.
    """
    with _PartFiles(work, number) as files:
        spooled = _Spooler(plan.files[number], plan.part_bytes, options, files, note).run()
    work.write(f"spool-{number:06d}.json", asdict(spooled))


def spool_documents(reader: DocumentReader, plan: Plan, work: WorkFolder, note: Note) -> None:
    """Read as many documents as the reader's options ask for into parts of JSON lines."""
    digest = hashlib.sha256()
    before = 0
    with _PartFiles(work, 0) as files:
        for line in _lines_of(reader, digest):
            if not files.is_open:
                files.open(Part("", reader.paths[0], "jsonl", start=len(files.parts)))
            files.write(line)
            note(Tally(reader.bytes_done))
            if files.size >= plan.part_bytes:
                files.close(reader.bytes_done - before)
                before = reader.bytes_done
        if files.is_open:
            files.close(reader.bytes_done - before)
    spooled = Spooled([asdict(part) for part in files.parts], dict(reader.skipped), digest.hexdigest())
    work.write(f"spool-{0:06d}.json", asdict(spooled))


def _lines_of(reader: DocumentReader, digest: "hashlib._Hash") -> Iterator[bytes]:
    for document in reader:
        line = json.dumps({reader.options.key: document.text}, ensure_ascii=False).encode() + b"\n"
        digest.update(line)
        yield line


def check_standard_input(reader: DocumentReader, work: WorkFolder, expected: str) -> None:
    """Compare standard input with that of an earlier run; raises UserError if it is another."""
    digest = hashlib.sha256()
    if reader.options.max_documents is None:
        for chunk in inputs.read_chunks(inputs.open_input(STDIN), STDIN, None, lambda count: None):
            digest.update(chunk)
    else:
        deque(_lines_of(reader, digest), maxlen=0)
    if digest.hexdigest() != expected:
        raise UserError(
            f"standard input holds another text than when the work in {work.path} began; give the same again to "
            f"continue it, or --restart to discard it"
        )


class _PartFiles:
    """Writes the parts of an input one after the other."""

    def __init__(self, work: WorkFolder, number: int) -> None:
        self.parts: list[Part] = []
        self.size = 0
        """Bytes of text in the part at hand."""
        self._name = work.file(f"spool-{number:06d}")
        self._part: Part | None = None
        self._output: OutputFile | None = None
        self._compressor: Any = None

    @property
    def is_open(self) -> bool:
        return self._output is not None

    def open(self, part: Part) -> None:
        """Begin a part; its path is filled in."""
        self._part = replace(part, path=f"{self._name}-{len(self.parts):06d}.zst", compression="zstd")
        self._output = OutputFile(self._part.path)
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        self.size = 0

    def write(self, data: bytes) -> None:
        assert self._output is not None
        self.size += len(data)
        if packed := self._compressor.compress(data):
            self._output.write(packed)

    def close(self, input_bytes: int) -> None:
        """End the part, which took so many bytes of the input."""
        assert self._output is not None
        assert self._part is not None
        self._output.write(self._compressor.flush())
        self._output.commit()
        self.parts.append(replace(self._part, size=input_bytes))
        self._output = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._output is not None:
            self._output.abort()


class _Spooler:
    """Cuts one input."""

    def __init__(self, file: Part, part_bytes: int, options: ReaderOptions, files: _PartFiles, note: Note) -> None:
        self._file = file
        self._part_bytes = part_bytes
        self._options = options
        self._files = files
        self._note = note
        self._digest = hashlib.sha256()
        self._raw = self._raw_before = 0
        self._place = 0
        self._line = 1
        self._blank = True
        """Whether the line at hand holds nothing so far."""

    def run(self) -> Spooled:
        error: BadRecordError | None = None
        try:
            for chunk in self._chunks():
                self._take(chunk)
        except BadRecordError as bad:
            if self._options.on_bad_record == "fail":
                refuse(bad, self._options, {})
            error = bad
        parts = self._files.parts
        if error is not None and not self._files.is_open:
            self._open()
        if self._files.is_open:
            self._close()
        if error is not None:
            # Who reads the last part meets the error where this process met it, and counts it.
            parts[-1] = replace(parts[-1], error=(error.reason, error.detail))
        digest = self._digest.hexdigest() if self._file.path == STDIN else ""
        return Spooled([asdict(part) for part in parts], {}, digest)

    def _chunks(self) -> Iterator[bytes]:
        file = self._file
        try:
            stream = inputs.open_input(file.path)
            try:
                for chunk in inputs.read_chunks(stream, file.name, file.compression, self._count):
                    if file.path == STDIN:
                        self._digest.update(chunk)
                    yield chunk
            finally:
                if file.path != STDIN:
                    stream.close()
        except OSError as error:
            raise UserError(f"{file.name}: cannot be read: {error.strerror}") from None

    def _count(self, count: int) -> None:
        self._raw += count
        self._note(Tally(self._raw))

    def _take(self, chunk: bytes) -> None:
        """Write a chunk, with a cut at every first good place once a part is long enough."""
        begin = 0
        while begin < len(chunk):
            if not self._files.is_open:
                self._open()
            end = self._cut(chunk, begin, begin + max(self._part_bytes - self._files.size, 0))
            self._write(chunk[begin:end] if end else chunk[begin:])
            if not end:
                return
            self._close()
            begin = end

    def _cut(self, chunk: bytes, begin: int, enough: int) -> int:
        """The place after the first line end from ``enough`` on, for paragraphs that of a blank line; 0 if none."""
        paragraphs = self._file.content == "txt" and self._options.txt_mode == "paragraph"
        while (end := chunk.find(b"\n", enough) + 1) > 0:
            start = chunk.rfind(b"\n", begin, end - 1) + 1
            if not paragraphs or (not chunk[start or begin : end].strip() and (start > 0 or self._blank)):
                return end
            enough = end
        return 0

    def _write(self, data: bytes) -> None:
        self._files.write(data)
        self._place += len(data)
        self._line += data.count(b"\n")
        start = data.rfind(b"\n") + 1
        self._blank = not data[start:].strip() and (start > 0 or self._blank)

    def _open(self) -> None:
        self._files.open(replace(self._file, start=self._place, first=self._line))

    def _close(self) -> None:
        self._files.close(self._raw - self._raw_before)
        self._raw_before = self._raw
