"""Pages of the glyph codec, written and drawn: what holds the arrays that the compiled loops work on."""

import threading
from typing import NamedTuple

import numpy as np
import zstandard

from megatron_pixel.data import glyph_drawing as drawing
from megatron_pixel.data import glyphs as kernels
from megatron_pixel.data.codec_base import DamagedPageError
from megatron_pixel.data.codec_glyphs_file import GlyphTables, SpriteAtlas
from megatron_pixel.rendering.blit import split_keys, sprite_keys
from megatron_pixel.rendering.page import Marks

LEVEL = 6
"""Of zstd. A higher one, such as 12, saves little more and takes as long as rendering the page."""
MOST_SEGMENTS = 255


def leb128(values: list[int]) -> bytes:
    """Unsigned numbers, 7 bits a byte, the lowest first; the top bit says that more follow."""
    result = bytearray()
    for value in values:
        rest = value
        while rest >= 128:
            result.append(rest & 127 | 128)
            rest >>= 7
        result.append(rest)
    return bytes(result)


class Scratch(threading.local):
    """What one thread needs to encode and decode; zstd contexts serve one thread at a time."""

    def __init__(self, dictionary: bytes) -> None:
        self._dictionary = dictionary
        self._compressor: zstandard.ZstdCompressor | None = None
        shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self.decompressor = zstandard.ZstdDecompressor(dict_data=shared)
        self.segments = np.zeros((3, MOST_SEGMENTS), np.int64)
        """Starts, stops and counts of the segments of the page at hand."""
        self._buffers: dict[str, np.ndarray] = {}

    @property
    def compressor(self) -> zstandard.ZstdCompressor:
        """Made when first needed: digesting the dictionary takes longer than a page."""
        if self._compressor is None:
            shared = zstandard.ZstdCompressionDict(self._dictionary) if self._dictionary else None
            if shared is not None:
                shared.precompute_compress(LEVEL)
            self._compressor = zstandard.ZstdCompressor(level=LEVEL, dict_data=shared, write_dict_id=False)
        return self._compressor

    def room(self, name: str, length: int, dtype: type[np.generic] = np.uint8) -> np.ndarray:
        """A buffer kept for the next page, so that its memory is touched once."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < length:
            buffer = self._buffers[name] = np.empty(length + length // 2, dtype)
        return buffer[:length]


class Writer:
    """Marks to symbols; remembers which sprites a reader will need."""

    def __init__(self, tables: GlyphTables, advances: np.ndarray) -> None:
        self._advances = advances
        self._keys = tables.symbols
        self._slots = kernels.make_slots(self._keys)
        self._glyphs, self._up, move = kernels.split_symbol_keys(self._keys)
        self._plain = np.full(len(advances), kernels.NO_KEY, np.int32)
        plain = np.flatnonzero((self._up == 0) & (move == 0))
        self._plain[self._glyphs[plain]] = plain
        self._lock = threading.Lock()
        self._used_symbols = np.zeros(len(self._keys), np.bool_)
        self._used_glyphs = np.zeros(len(advances), np.bool_)
        self._others: set[tuple[int, int]] = set()

    def write(self, marks: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> bytes:
        """The symbols of a page; arguments as in :func:`~megatron_pixel.data.glyphs.write_symbols`."""
        length = marks.shape[1]
        out = np.empty(length * kernels.LONGEST_SYMBOL, np.uint8)
        others = np.empty((length, 2), np.int32)
        tables = self._advances, self._plain, self._keys, self._slots
        with self._lock:
            used = self._used_symbols, self._used_glyphs, others
            size, unknown = kernels.write_symbols(marks, starts, counts, *tables, *used, out)
            self._others.update(map(tuple, others[:unknown].tolist()))
        return out[:size].tobytes()

    def take_used(self) -> np.ndarray:
        """Keys of the sprites that were met since the last call: int64, sorted."""
        with self._lock:
            glyphs = np.flatnonzero(self._used_glyphs)
            others = np.array(sorted(self._others), np.int64).reshape(-1, 2)
            keys = [
                sprite_keys(self._glyphs[self._used_symbols], self._up[self._used_symbols]),
                sprite_keys(glyphs, np.zeros(len(glyphs), np.int64)),
                sprite_keys(others[:, 0], others[:, 1]),
            ]
            self._used_symbols[:] = False
            self._used_glyphs[:] = False
            self._others.clear()
        return np.unique(np.concatenate(keys))


class Header(NamedTuple):
    """The header of a page; its arrays are scratch of the thread."""

    starts: np.ndarray
    """int64 [s]: first column of each segment."""
    stops: np.ndarray
    """int64 [s]: first column of its black patch."""
    counts: np.ndarray
    """int64 [s]: its marks; of the last one the frame tells."""
    end: int
    """Where the frame begins."""


class Drawn(NamedTuple):
    """A page drawn; its arrays are scratch of the thread."""

    columns: np.ndarray
    """uint8 [n*P*P] or, with color, [n*P*P*3]: column after column."""
    has_color: bool
    header: Header
    sprites: np.ndarray
    """int32 [k]"""
    x: np.ndarray
    """int32 [k]: columns of their pens."""


class Reader:
    """Symbols to pages."""

    def __init__(self, tables: GlyphTables, atlas: SpriteAtlas) -> None:
        self._size = tables.patch_size
        self._threshold = tables.threshold if tables.mode == "binary" else -1
        self._keys = atlas.keys
        glyphs, up, move = kernels.split_symbol_keys(tables.symbols)
        sprites = np.searchsorted(atlas.keys, sprite_keys(glyphs, up)).astype(np.int32)
        there = np.append(atlas.keys, kernels.NO_KEY)[sprites] == sprite_keys(glyphs, up)
        on_baseline = np.flatnonzero((atlas.keys & 0xFFFF) == kernels.HALF).astype(np.int32)
        plain = np.full(int(atlas.keys[-1] >> 16) + 1 if len(atlas.keys) else 0, -1, np.int32)
        plain[atlas.keys[on_baseline] >> 16] = on_baseline
        colored = np.where(atlas.color_first >= 0, atlas.width, 0)
        self._symbols = (
            np.stack([glyphs, up, move]),
            np.where(there, sprites, -1).astype(np.int32),
            plain,
            atlas.keys,
            np.stack([atlas.advances, atlas.bearing, atlas.bearing + colored], axis=1),
        )
        self._gray = _in_strides(atlas, atlas.first, atlas.ink, self._size)
        self._color = _in_strides(atlas, atlas.color_first, atlas.color_ink, 3 * self._size)

    def header(self, data: memoryview, scratch: Scratch) -> Header:
        """Header of a page (the bytes after its checksum). Raises :class:`DamagedPageError`."""
        starts, stops, counts = scratch.segments
        segments, end = drawing.read_header(np.frombuffer(data, np.uint8), self._size, starts, stops, counts)
        if not segments:
            raise DamagedPageError("its header is not valid")
        return Header(starts[:segments], stops[:segments], counts[:segments], end)

    def draw(self, header: Header, body: bytes, scratch: Scratch) -> Drawn:
        """Draw the symbols of a page. Raises :class:`DamagedPageError`."""
        segments = header.starts, header.stops, header.counts
        sprites, x = scratch.room("sprites", len(body), np.int32), scratch.room("x", len(body), np.int32)
        size = self._size
        columns = scratch.room("gray", (int(header.stops[-1]) + size) * size)
        symbols = np.frombuffer(body, np.uint8)
        outcome, missed, has_color = drawing.draw_page(
            symbols, *segments, *self._symbols, sprites, x, columns, size, self._threshold, *self._gray
        )
        if outcome == drawing.NO_SPRITE:
            glyph, up = missed >> 16, (missed & 0xFFFF) - kernels.HALF
            raise DamagedPageError(f"glyph {glyph} at height {up} is not in the atlas")
        if outcome != drawing.FINE:
            raise DamagedPageError("its symbols are not valid")
        if has_color:
            gray, columns = columns, scratch.room("color", 3 * len(columns))
            columns.reshape(-1, 3)[:] = gray[:, None]
            drawing.draw_cells(columns, 3 * size, *segments, sprites, x, *self._color)
        return Drawn(columns, has_color, header, sprites, x)

    def marks(self, drawn: Drawn) -> Marks:
        """What a page shows."""
        total = int(drawn.header.counts.sum())
        glyphs, up = split_keys(self._keys[drawn.sprites[:total]])
        black = tuple((drawn.header.stops // self._size).tolist())
        return Marks(np.stack([glyphs, up, drawn.x[:total]]), black, tuple(drawn.header.counts.tolist()))


def _in_strides(atlas: SpriteAtlas, first: np.ndarray, ink: np.ndarray, line: int) -> tuple[np.ndarray, ...]:
    """Cells of ``line`` bytes a column, filled up with zeros: the last five arguments of ``draw_cells``."""
    sizes = np.where(first >= 0, atlas.width, 0).astype(np.int64) * line
    strides = -(-sizes // drawing.STRIDE)
    places = (np.cumsum(strides) - strides) * drawing.STRIDE
    padded = np.zeros(int(strides.sum()) * drawing.STRIDE, np.uint8)
    # Where each byte of all cells, which follow each other in `ink`, goes to.
    offset = np.repeat(places - (np.cumsum(sizes) - sizes), sizes)
    padded[np.arange(len(offset)) + offset] = ink
    return places, strides, atlas.width, atlas.bearing, padded
