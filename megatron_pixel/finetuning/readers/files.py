"""Records of a table file: one dict a row, with the place that messages name. TSV, CSV, JSON lines, parquet."""

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_pixel.config.errors import UserError

ENDINGS = (".jsonl", ".json", ".tsv", ".csv", ".parquet")
"""Kinds of table files; all but parquet also packed as .gz or .zst."""


class Record(NamedTuple):
    """A row of a file."""

    place: str
    """``file.tsv:12``; the row's number for parquet."""
    values: dict[str, Any]

    def value(self, column: str) -> Any:
        """The value of a column that must be there.

        Raises:
            UserError: it is not; the message lists the columns that are.
        """
        if column not in self.values:
            raise UserError(f"{self.place}: no column {column!r}; there are {', '.join(map(str, self.values))}")
        return self.values[column]

    def text(self, column: str) -> str:
        """A column that must hold text."""
        value = self.value(column)
        if not isinstance(value, str):
            raise UserError(f"{self.place}: column {column!r} holds {_shown(value)} where text is expected")
        return value


def find_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """The table files of the first of ``names`` (without endings) that ``folder`` has: one, or the parts of an export.

    Hugging Face's exports number their parts (``train-00000-of-00002.parquet``) and may lie in a folder ``data``.
    """
    for place in (folder, folder / "data"):
        for name in names:
            for ending in ENDINGS:
                for packed in ("", ".gz", ".zst"):
                    path = place / f"{name}{ending}{packed}"
                    if path.is_file():
                        return [path]
                    parts = sorted(place.glob(f"{name}-[0-9]*-of-[0-9]*{ending}{packed}"))
                    if parts:
                        return parts
    return []


def read_records(
    path: Path, quoting: bool = True, header: Sequence[str] | None = None, ragged: list[str] | None = None
) -> Iterator[Record]:
    """The rows of a table file.

    Args:
        path: its ending says what it is.
        quoting: whether quotation marks of a .tsv enclose values (GLUE's do not).
        header: names of the columns of a .tsv or .csv without a header line.
        ragged: takes the places of lines with another number of columns than the header, which are then left out;
            without it they are refused.

    Raises:
        UserError: no such file, an unknown ending, or a row that cannot be read; the message names file and line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    ending = next((suffix for suffix in reversed(path.suffixes) if suffix not in (".gz", ".zst")), "")
    if ending not in ENDINGS:
        raise UserError(f"{path}: unknown kind of file; known endings: {', '.join(ENDINGS)}, also with .gz or .zst")
    if ending == ".parquet":
        return _parquet(path)
    text = _text(path)
    if ending in (".jsonl", ".json"):
        return _json(path, text)
    return _separated(path, text, "\t" if ending == ".tsv" else ",", quoting, header, ragged)


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        elif path.suffix == ".zst":
            import zstandard

            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte {error.start}: {error.reason})") from None
    except Exception as error:
        raise UserError(f"{path}: cannot be unpacked: {error}") from None


def _json(path: Path, text: str) -> Iterator[Record]:
    """JSON lines, or one JSON array of objects."""
    if text.lstrip()[:1] == "[":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise UserError(f"{path}: not JSON: {error}") from None
        for number, row in enumerate(rows, start=1):
            yield Record(f"{path}, entry {number}", _object(f"{path}, entry {number}", row))
        return
    # Not splitlines: U+2028 and its like may stand inside a string.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{place}: not JSON: {error}") from None
            yield Record(place, _object(place, row))


def _object(place: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object with columns, got {_shown(row)}")
    return row


def _separated(
    path: Path,
    text: str,
    separator: str,
    quoting: bool,
    header: Sequence[str] | None,
    ragged: list[str] | None,
) -> Iterator[Record]:
    csv.field_size_limit(1 << 28)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE,
        strict=quoting,
    )
    try:
        names = list(header) if header is not None else next(reader, None)
        if names is None:
            raise UserError(f"{path}: the file is empty")
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if not row:
                continue
            if len(row) != len(names):
                if ragged is not None:
                    ragged.append(place)
                    continue
                raise UserError(f"{place}: {len(row)} columns, and the header has {len(names)}: {', '.join(names)}")
            yield Record(place, dict(zip(names, row, strict=True)))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}") from None


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield Record(f"{path}, row {number}", row)
                    number += 1
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a parquet file: {error}") from None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
