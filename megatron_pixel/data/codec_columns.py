"""The page codec ``columns``: a page as numbers of its pixel columns in a table. See docs/formats.md."""

import struct
import threading
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import zstandard

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import columns as kernels
from megatron_pixel.data.codec_base import DamagedPageError, Encoded, PageCodec, read_codec_file, room_for
from megatron_pixel.data.files import FileEntry, write_file
from megatron_pixel.rendering.page import Page, luma

if TYPE_CHECKING:
    from megatron_pixel.rendering.renderer import Renderer

_TABLE_MAGIC = b"MPXCOLS\x00"
_TABLE_HEADER = struct.Struct("<8sIIIII")  # magic, version, patch size, columns, dictionary bytes, crc32 of the rest
_PAGE_HEADER = struct.Struct("<IBIII")  # crc32, flags, patches, gray extra columns, color extra columns
_CRC_BYTES = 4
_HAS_COLOR = 1
_LEVEL = 3
_MAX_COLUMNS = 49_152
_DICTIONARY_BYTES = 16_384
_DICTIONARY_PAGES = 64


class _Scratch(threading.local):
    """What one thread needs to encode and decode; zstd contexts serve one thread at a time."""

    def __init__(self, table: np.ndarray, dictionary: bytes) -> None:
        shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, dict_data=shared)
        self.decompressor = zstandard.ZstdDecompressor(dict_data=shared)
        self.table = table
        """uint8 [>= T, padded P]: the codec's columns, then room for those that a page brings."""


class ColumnCodec(PageCodec):
    """A page as numbers of its pixel columns in a table, compressed with zstd.

    Rendered text repeats few distinct columns. The table holds the gray columns of the first pages, the most frequent
    first; a page carries the columns that the table lacks, and every column with color.
    """

    name = "columns"
    version = 1
    sample_pages = 512

    def __init__(self, table: np.ndarray, dictionary: bytes = b"") -> None:
        """``table`` is uint8 [T, P], distinct columns; ``dictionary`` a zstd dictionary or empty."""
        self.patch_size = table.shape[1]
        self._table = np.ascontiguousarray(table)
        self._dictionary = dictionary
        self._words = kernels.as_words(self._table)
        self._slots = kernels.make_slots(self._words)
        self._content = self._table.tobytes() + dictionary
        # Seeds the checksum of every page, so that a page read with another table is refused.
        self._crc = zlib.crc32(self._content)
        self._scratch = _Scratch(self._words.view(np.uint8), dictionary)

    @property
    def num_columns(self) -> int:
        """Columns of the table."""
        return len(self._table)

    @classmethod
    def build(cls, pages: Sequence[Page], patch_size: int) -> Self:
        """Make a codec whose table suits pages like ``pages`` (any number, none included)."""
        # The white and the black column come with every page; so the table is never empty.
        counts: Counter[bytes] = Counter({bytes([255]) * patch_size: 1, bytes(patch_size): 1})
        for page in pages:
            gray = page.columns
            if page.has_color:
                gray = np.ascontiguousarray(gray[~kernels.colored_columns(gray)][:, :, 0])
            first, which = kernels.distinct(kernels.as_words(gray))
            for index, count in zip(first, np.bincount(which, minlength=len(first)), strict=True):
                counts[gray[index].tobytes()] += int(count)
        # Frequent columns get small numbers; of equally frequent ones that which appeared first.
        table = np.array([np.frombuffer(column, np.uint8) for column, _ in counts.most_common(_MAX_COLUMNS)])
        codec = cls(table)
        if len(pages) < _DICTIONARY_PAGES:
            return codec
        try:
            trained = zstandard.train_dictionary(_DICTIONARY_BYTES, [codec._body(page)[0] for page in pages])
        except zstandard.ZstdError:
            return codec  # pages too short or too alike to learn from
        return cls(table, trained.as_bytes())

    @classmethod
    def load(cls, path: str) -> Self:
        data = read_codec_file(path)
        if len(data) < _TABLE_HEADER.size or not data.startswith(_TABLE_MAGIC):
            raise UserError(f"{path} is no column table")
        _, version, patch_size, columns, dictionary, crc = _TABLE_HEADER.unpack_from(data)
        content = data[_TABLE_HEADER.size :]
        if version != cls.version:
            raise UserError(f"{path}: column table version {version}; this program reads version {cls.version}")
        if len(content) != columns * patch_size + dictionary or zlib.crc32(content) != crc:
            raise UserError(f"{path} is damaged (size or checksum); copy it again or make the dataset again")
        table = np.frombuffer(content, np.uint8, columns * patch_size).reshape(columns, patch_size)
        return cls(table, content[columns * patch_size :])

    def save(
        self, prefix: str, used: np.ndarray | None = None, renderer: "Renderer | None" = None
    ) -> dict[str, FileEntry]:
        header = _TABLE_HEADER.pack(
            _TABLE_MAGIC, self.version, self.patch_size, len(self._table), len(self._dictionary), self._crc
        )
        path = f"{prefix}.codec.{self.name}"
        return {path: write_file(path, header + self._content)}

    def encode(self, page: Page) -> bytes:
        if page.patch_size != self.patch_size:
            raise ValueError(f"a page of patch size {page.patch_size} for a codec of {self.patch_size}")
        body, extra, colors = self._body(page)
        header = _PAGE_HEADER.pack(0, _HAS_COLOR if page.has_color else 0, page.num_patches, extra, colors)
        rest = header[_CRC_BYTES:] + self._scratch.compressor.compress(body)
        return zlib.crc32(rest, self._crc).to_bytes(_CRC_BYTES, "little") + rest

    def _body(self, page: Page) -> tuple[bytes, int, int]:
        """What zstd compresses: extra gray columns, extra color columns, numbers; and how many of each extra."""
        gray = page.columns
        colored = np.empty(0, np.bool_)
        if page.has_color:
            colored = kernels.colored_columns(gray)
            gray = np.ascontiguousarray(gray[:, :, 0])
        words = kernels.as_words(gray)
        found = np.empty(len(words), np.int32)
        extra = colors = b""
        known = len(self._table)
        if kernels.find(words, self._words, self._slots, found) or colored.any():
            missing = found == kernels.MISSING
            if page.has_color:
                missing &= ~colored
            first, which = kernels.distinct(words[missing])
            found[missing] = known + which
            extra = gray[missing][first].tobytes()
            known += len(first)
        if colored.any():
            chosen = page.columns[colored]
            first, which = kernels.distinct(kernels.as_words(chosen))
            found[colored] = known + which
            colors = chosen[first].tobytes()
        numbers = np.empty(5 * len(found), np.uint8)
        size = kernels.number(found, numbers)
        body = extra + colors + numbers[:size].tobytes()
        return body, len(extra) // self.patch_size, len(colors) // (3 * self.patch_size)

    def num_patches(self, data: Encoded) -> int:
        return self._header(data)[1]

    def _header(self, data: Encoded) -> tuple[int, int, int, int]:
        """Flags, patches, extra gray columns, extra color columns of an encoded page whose checksum is right."""
        if len(data) <= _PAGE_HEADER.size:
            raise DamagedPageError(f"{len(data)} bytes are no page")
        crc, flags, patches, extra, colors = _PAGE_HEADER.unpack_from(data)
        if zlib.crc32(data[_CRC_BYTES:], self._crc) != crc:
            raise DamagedPageError("wrong checksum, or a page of another column table")
        return flags, patches, extra, colors

    def _decode(self, data: Encoded) -> "_Decoded":
        flags, patches, num_extra, num_colors = self._header(data)
        size = self.patch_size
        try:
            body = self._scratch.decompressor.decompress(data[_PAGE_HEADER.size :])
        except zstandard.ZstdError as error:
            raise DamagedPageError(str(error)) from error
        carried = (num_extra + 3 * num_colors) * size
        # A number takes a byte at least, so this also bounds what a made-up header can ask for.
        if carried + patches * size > len(body):
            raise DamagedPageError("its header and its content disagree")
        first_color = len(self._table) + num_extra
        columns = first_color + num_colors
        numbers = np.empty(patches * size, np.int32)
        if not kernels.denumber(np.frombuffer(body, np.uint8, offset=carried), columns, numbers):
            raise DamagedPageError("its column numbers are not valid")
        table = self._scratch.table
        colors = np.frombuffer(body, np.uint8, 3 * num_colors * size, num_extra * size).reshape(num_colors, size, 3)
        if carried:
            if len(table) < columns:
                table = np.zeros((2 * columns, table.shape[1]), np.uint8)
                table[: len(self._table), :size] = self._table
                self._scratch.table = table
            extra = np.frombuffer(body, np.uint8, num_extra * size).reshape(num_extra, size)
            table[len(self._table) : first_color, :size] = extra
            table[first_color:columns, :size] = luma(colors)
        return _Decoded(numbers, table, colors, first_color, bool(flags & _HAS_COLOR))

    def decode(self, data: Encoded) -> Page:
        page = self._decode(data)
        columns = page.table[page.numbers, : self.patch_size]
        if page.has_color:
            columns = np.repeat(columns[:, :, None], 3, axis=2)
            colored = page.numbers >= page.first_color
            columns[colored] = page.colors[page.numbers[colored] - page.first_color]
        return Page(columns, len(page.numbers) // self.patch_size, 0, 0, self.patch_size)

    def decode_patches(self, data: Encoded, num_channels: int, out: np.ndarray | None = None) -> np.ndarray:
        page = self._decode(data)
        size = self.patch_size
        out = room_for(len(page.numbers) // size, size, num_channels, out)
        if size % 8:
            kernels.any_patches(page.numbers, page.table, out)
        elif num_channels == 1:
            kernels.gray_patches(page.numbers, page.table.view(np.uint64), out.reshape(-1).view(np.uint64))
        else:
            kernels.rgb_patches(page.numbers, page.table.view(np.uint64), out.reshape(-1))
        if num_channels == 3 and len(page.colors):
            kernels.paint_color(page.numbers, page.first_color, page.colors, out)
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._table, self._dictionary)


class _Decoded(NamedTuple):
    """A decoded page as numbers of columns."""

    numbers: np.ndarray
    """int32 [n*P]"""
    table: np.ndarray
    """uint8 [., padded P]: the codec's columns, the page's gray ones, the page's color ones as their luma."""
    colors: np.ndarray
    """uint8 [k, P, 3]"""
    first_color: int
    """Number of the first column with color."""
    has_color: bool
