"""The file of the glyph codec, ``P.codec.glyphs``: its tables and its atlas. See docs/formats.md."""

import json
import struct
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zstandard

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec_base import read_codec_file
from megatron_pixel.data.files import FileEntry, write_file
from megatron_pixel.data.glyphs import MOST_GLYPHS, MOST_SYMBOLS, split_symbol_keys
from megatron_pixel.rendering.blit import split_keys

if TYPE_CHECKING:
    from megatron_pixel.rendering.renderer import Renderer

MODES = ("gray", "rgb", "binary")
_MAGIC = b"MPXGLYF\x00"
_HEADER = struct.Struct("<8sIIIII")  # magic, version, bytes of the tables' frame, their crc32, the same of the atlas
_TABLES = struct.Struct("<IIIIII")  # patch size, mode, threshold, symbols, dictionary bytes, bytes of the fingerprint
_ATLAS = struct.Struct("<II")  # sprites, bytes of ink
_SYMBOL = np.dtype([("glyph", "<i4"), ("up", "<i2"), ("move", "<i2")])
_SPRITE_FIELDS = 5  # glyph, up, advance, width, bearing
_FARTHEST = 1 << 20  # columns: no letter is so wide
_LEVEL = 19  # once for a dataset


@dataclass(frozen=True, eq=False)
class GlyphTables:
    """What is known before the first page is encoded, and does not change after."""

    patch_size: int
    mode: str
    threshold: int
    """Mode ``binary``: values below it become black."""
    symbols: np.ndarray
    """int64 [S]: key of each symbol; see :mod:`megatron_pixel.data.glyphs`."""
    dictionary: bytes
    """Of zstd; may be empty."""
    rendering: dict[str, Any]
    """Fingerprint of the renderer that makes the pages."""

    @cached_property
    def content(self) -> bytes:
        """The tables as they stand in the file, before compression."""
        glyphs, up, move = split_symbol_keys(self.symbols)
        symbols = np.empty(len(glyphs), _SYMBOL)
        symbols["glyph"], symbols["up"], symbols["move"] = glyphs, up, move
        rendering = json.dumps(self.rendering, sort_keys=True, ensure_ascii=False).encode()
        numbers = self.patch_size, MODES.index(self.mode), self.threshold, len(symbols), len(self.dictionary)
        return _TABLES.pack(*numbers, len(rendering)) + symbols.tobytes() + self.dictionary + rendering

    @cached_property
    def crc(self) -> int:
        """CRC-32 of :attr:`content`; the checksums of the atlas and of every page begin with it."""
        return zlib.crc32(self.content)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """The converse of :attr:`content`; raises ValueError or struct.error where it is not valid."""
        size, mode, threshold, count, dictionary_bytes, rendering_bytes = _TABLES.unpack_from(content)
        at = _TABLES.size + count * _SYMBOL.itemsize
        if len(content) != at + dictionary_bytes + rendering_bytes or mode >= len(MODES) or not 1 <= size <= 4096:
            raise ValueError("sizes")
        symbols = np.frombuffer(content, _SYMBOL, count, _TABLES.size)
        if count > MOST_SYMBOLS or ((symbols["glyph"] < 0) | (symbols["glyph"] >= MOST_GLYPHS)).any():
            raise ValueError("symbols")
        keys = (symbols["glyph"].astype(np.int64) << 32) + ((symbols["up"].astype(np.int64) + 0x8000) << 16)
        keys += symbols["move"].astype(np.int64) + 0x8000
        dictionary = content[at : at + dictionary_bytes]
        return cls(size, MODES[mode], threshold, keys, dictionary, json.loads(content[at + dictionary_bytes :]))


@dataclass(frozen=True, eq=False)
class SpriteAtlas:
    """The sprites of a dataset: every glyph at every height that its pages show, as
    :func:`~megatron_pixel.rendering.blit.draw_sprites` takes them."""

    keys: np.ndarray
    """int64 [A], rising; see :func:`~megatron_pixel.rendering.blit.sprite_keys`."""
    advances: np.ndarray
    """int32 [A]: from the pen of the glyph to the next one's, by default."""
    width: np.ndarray
    """int32 [A]: columns."""
    bearing: np.ndarray
    """int32 [A]: from the pen to the first column."""
    first: np.ndarray
    """int32 [A]: first column in ``ink``, -1 if it has none there."""
    color_first: np.ndarray
    """int32 [A]: first column in ``color_ink``, -1 if it has none there."""
    ink: np.ndarray
    """uint8: columns of P bytes, 255 - value."""
    color_ink: np.ndarray
    """uint8: columns of 3 P bytes."""

    @classmethod
    def of(cls, keys: np.ndarray, advances: np.ndarray, renderer: "Renderer") -> Self:
        """Have the sprites ``keys`` drawn; ``advances`` int16 [glyphs]."""
        cells = renderer.sprite_cells(keys)
        return cls(
            keys,
            advances[keys >> 16].astype(np.int32),
            cells.width,
            cells.bearing,
            cells.first,
            cells.color_first,
            cells.ink,
            cells.color_ink,
        )

    def content(self, size: int) -> bytes:
        """The atlas as it stands in the file, before compression; patches of ``size``."""
        glyphs, up = split_keys(self.keys)
        color = self.color_first >= 0
        width = np.where(color | (self.first >= 0), self.width, 0)
        fields = np.stack([glyphs, up, self.advances, width, self.bearing]).astype("<i4")
        bitmaps = []
        for k in np.flatnonzero(width).tolist():
            cells, first, line = (self.color_ink, self.color_first, 3) if color[k] else (self.ink, self.first, 1)
            bitmaps.append(cells[first[k] * line * size : (first[k] + width[k]) * line * size])
        ink = np.concatenate([np.empty(0, np.uint8), *bitmaps]).tobytes()
        return _ATLAS.pack(len(color), len(ink)) + fields.tobytes() + color.astype(np.uint8).tobytes() + ink

    @classmethod
    def parse(cls, content: bytes, size: int) -> Self:
        """The converse of :meth:`content` for patches of ``size``; raises ValueError or struct.error if not valid."""
        count, ink_bytes = _ATLAS.unpack_from(content)
        at = _ATLAS.size + count * 4 * _SPRITE_FIELDS
        if len(content) != at + count + ink_bytes:
            raise ValueError("sizes")
        fields = np.frombuffer(content, "<i4", count * _SPRITE_FIELDS, _ATLAS.size).reshape(_SPRITE_FIELDS, count)
        glyphs, up, advances, width, bearing = fields.astype(np.int64)
        color = np.frombuffer(content, np.uint8, count, at) != 0
        line = np.where(color, 3 * size, size)
        keys = (glyphs << 16) + up + 0x8000
        sound = (glyphs >= 0) & (glyphs < MOST_GLYPHS) & (abs(up) < 0x8000) & (width >= 0) & (width < _FARTHEST)
        sound &= (abs(advances) < _FARTHEST) & (abs(bearing) < _FARTHEST)
        if not sound.all() or (np.diff(keys) <= 0).any() or int((width * line).sum()) != ink_bytes:
            raise ValueError("sprites")
        ink = np.frombuffer(content, np.uint8, ink_bytes, at + count)
        in_color = np.repeat(color, width * line)
        gray_width, color_width = np.where(color, 0, width), np.where(color, width, 0)
        return cls(
            keys,
            advances.astype(np.int32),
            width.astype(np.int32),
            bearing.astype(np.int32),
            np.where(gray_width > 0, np.cumsum(gray_width) - gray_width, -1).astype(np.int32),
            np.where(color_width > 0, np.cumsum(color_width) - color_width, -1).astype(np.int32),
            ink[~in_color],
            ink[in_color],
        )


def write_glyph_file(path: str, version: int, tables: GlyphTables, atlas: SpriteAtlas) -> FileEntry:
    """Write the file; the same tables and sprites give the same bytes."""
    content = atlas.content(tables.patch_size)
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    frames = compressor.compress(tables.content), compressor.compress(content)
    checksums = tables.crc, zlib.crc32(content, tables.crc)
    header = _HEADER.pack(_MAGIC, version, len(frames[0]), checksums[0], len(frames[1]), checksums[1])
    return write_file(path, header + frames[0] + frames[1])


def read_glyph_file(path: str, version: int) -> tuple[GlyphTables, SpriteAtlas]:
    """Read the file; raises UserError naming it where it is missing, damaged or of another version."""
    data = read_codec_file(path)
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise UserError(f"{path} is no file of a glyph codec")
    _, found, tables_bytes, tables_crc, atlas_bytes, atlas_crc = _HEADER.unpack_from(data)
    if found != version:
        raise UserError(f"{path}: glyph codec version {found}; this program reads version {version}")
    middle = _HEADER.size + tables_bytes
    try:
        if len(data) != middle + atlas_bytes:
            raise ValueError("size")
        decompressor = zstandard.ZstdDecompressor()
        content = decompressor.decompress(data[_HEADER.size : middle])
        if zlib.crc32(content) != tables_crc:
            raise ValueError("checksum of the tables")
        tables = GlyphTables.parse(content)
        content = decompressor.decompress(data[middle:])
        if zlib.crc32(content, tables_crc) != atlas_crc:
            raise ValueError("checksum of the atlas")
        return tables, SpriteAtlas.parse(content, tables.patch_size)
    except (ValueError, struct.error, zstandard.ZstdError) as error:
        raise UserError(f"{path} is damaged ({error}); copy it again or make the dataset again") from error
