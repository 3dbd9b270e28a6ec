"""Pages of the glyph codec: their header, writing their symbols, and drawing them again. See docs/formats.md."""

import itertools
import threading
from typing import NamedTuple, Self

import numpy as np
import zstandard

from megatron_pixel.data import glyphs as kernels
from megatron_pixel.data.codec_base import DamagedPageError
from megatron_pixel.data.codec_glyphs_file import GlyphTables, SpriteAtlas
from megatron_pixel.rendering.blit import draw_sprites, split_keys, sprite_keys
from megatron_pixel.rendering.page import Marks

LEVEL = 12
"""Of zstd. More compression is free as long as encoding takes less time than rendering."""
CRC_BYTES = 4
MOST_PATCHES = 1 << 18
MOST_BYTES = 1 << 26
"""Bounds of what a made-up page can ask for: a strip of 64 MB, and as many bytes of symbols."""


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


class Header(NamedTuple):
    """Where the segments of a page begin and end, and where its frame begins."""

    starts: list[int]
    """Columns."""
    stops: list[int]
    """Columns: of the black patches."""
    counts: list[int]
    """Marks of each segment; of the last one the frame tells."""
    end: int

    @classmethod
    def read(cls, data: memoryview, size: int) -> Self:
        """Raises :class:`DamagedPageError`."""
        at = CRC_BYTES

        def number(most: int) -> int:
            nonlocal at
            value = shift = 0
            while at < len(data) and shift <= 28:
                byte = data[at]
                at += 1
                value |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    if value > most:
                        break
                    return value
            raise DamagedPageError("its header is not valid")

        segments = number(MOST_PATCHES)
        # The patch after each black one. Where there was no room for a segment, its black patch is the one before.
        firsts = [0, *(number(MOST_PATCHES) for _ in range(segments))]
        if segments == 0 or firsts[1] == 0 or any(after < before for before, after in itertools.pairwise(firsts)):
            raise DamagedPageError("its header is not valid")
        counts = [*(number(MOST_BYTES) for _ in range(segments - 1)), 0]
        return cls([first * size for first in firsts[:-1]], [(first - 1) * size for first in firsts[1:]], counts, at)


class Scratch(threading.local):
    """What one thread needs to encode and decode; zstd contexts serve one thread at a time."""

    def __init__(self, dictionary: bytes) -> None:
        self._dictionary = dictionary
        self._compressor: zstandard.ZstdCompressor | None = None
        shared = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
        self.decompressor = zstandard.ZstdDecompressor(dict_data=shared)
        self._buffers: dict[str, np.ndarray] = {}

    @property
    def compressor(self) -> zstandard.ZstdCompressor:
        """Made when first needed: digesting the dictionary takes longer than a page."""
        if self._compressor is None:
            shared = zstandard.ZstdCompressionDict(self._dictionary) if self._dictionary else None
            if shared is not None:
                shared.precompute_compress(LEVEL)
            self._compressor = zstandard.ZstdCompressor(
                level=LEVEL, dict_data=shared, write_checksum=False, write_dict_id=False
            )
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
        length = marks.shape[1]
        out = np.empty(length * kernels.LONGEST_SYMBOL, np.uint8)
        others = np.empty((length, 2), np.int32)
        with self._lock:
            size, unknown = kernels.write_symbols(
                marks,
                starts,
                counts,
                self._advances,
                self._plain,
                self._keys,
                self._slots,
                self._used_symbols,
                self._used_glyphs,
                others,
                out,
            )
            self._others.update(map(tuple, others[:unknown].tolist()))
        return out[:size].tobytes()

    def take_used(self) -> np.ndarray:
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


class Drawn(NamedTuple):
    """A decoded page; its arrays are scratch of the thread."""

    columns: np.ndarray
    """uint8 [n*P*P] or, with color, [n*P*P*3]: column after column."""
    patches: int
    has_color: bool
    sprites: np.ndarray
    """int32 [k]"""
    x: np.ndarray
    """int32 [k]"""
    header: Header
    keys: np.ndarray
    """int64 [A]: of all sprites."""

    def marks(self, size: int) -> Marks:
        """What the page shows; a patch has ``size`` columns."""
        glyphs, up = split_keys(self.keys[self.sprites])
        black = tuple(stop // size for stop in self.header.stops)
        return Marks(np.stack([glyphs, up, self.x]), black, tuple(self.header.counts))


class Reader(NamedTuple):
    """Symbols to pages."""

    tables: GlyphTables
    atlas: SpriteAtlas
    symbols: np.ndarray
    """int32 [3, S]: glyph, height, move."""
    symbol_sprites: np.ndarray
    """int32 [S], -1 for symbols that no page uses."""
    reach: np.ndarray
    """int32 [2, A]: columns from the pen where color begins and ends."""

    @classmethod
    def of(cls, tables: GlyphTables, atlas: SpriteAtlas) -> Self:
        glyphs, up, move = kernels.split_symbol_keys(tables.symbols)
        wanted = sprite_keys(glyphs, up)
        place = np.searchsorted(atlas.keys, wanted)
        there = place < len(atlas.keys)
        there[there] = atlas.keys[place[there]] == wanted[there]
        colored = np.where(atlas.color_first >= 0, atlas.width, 0)
        return cls(
            tables,
            atlas,
            np.stack([glyphs, up, move]),
            np.where(there, place, -1).astype(np.int32),
            np.stack([atlas.bearing, atlas.bearing + colored]),
        )

    def draw(self, body: np.ndarray, header: Header, scratch: Scratch) -> Drawn:
        """Raises :class:`DamagedPageError`."""
        atlas, size = self.atlas, self.tables.patch_size
        starts, stops = np.array(header.starts), np.array(header.stops)
        counts = np.array(header.counts)
        sprites, x = scratch.room("sprites", len(body), np.int32), scratch.room("x", len(body), np.int32)
        outcome, missed, has_color = kernels.read_symbols(
            body,
            starts,
            stops,
            counts,
            self.symbols,
            self.symbol_sprites,
            atlas.keys,
            atlas.advances,
            self.reach,
            sprites,
            x,
        )
        if outcome == kernels.NO_SPRITE:
            raise DamagedPageError(f"glyph {missed >> 16} at height {(missed & 0xFFFF) - 0x8000} is not in the atlas")
        if outcome != kernels.FINE:
            raise DamagedPageError("its symbols are not valid")
        total = int(counts.sum())
        sprites, x = sprites[:total], x[:total]
        patches = header.stops[-1] // size + 1
        columns = scratch.room("gray", patches * size * size)
        columns.fill(255)
        self._draw(columns, size, header, counts, sprites, x, atlas.first, atlas.ink)
        if has_color:
            gray, columns = columns, scratch.room("color", 3 * len(columns))
            columns.reshape(-1, 3)[:] = gray[:, None]
            self._draw(columns, 3 * size, header, counts, sprites, x, atlas.color_first, atlas.color_ink)
        if self.tables.mode == "binary":
            kernels.to_black_and_white(columns, self.tables.threshold)
        for stop in header.stops:
            columns.reshape(patches * size, -1)[stop : stop + size] = 0
        return Drawn(columns, patches, has_color, sprites, x, header._replace(counts=counts.tolist()), atlas.keys)

    def _draw(
        self,
        columns: np.ndarray,
        line: int,
        header: Header,
        counts: np.ndarray,
        sprites: np.ndarray,
        x: np.ndarray,
        first: np.ndarray,
        ink: np.ndarray,
    ) -> None:
        """Draw the sprites that have a cell in ``ink``, whose columns are ``line`` bytes."""
        done = 0
        for start, stop, count in zip(header.starts, header.stops, counts.tolist(), strict=True):
            part = slice(done, done + count)
            atlas = self.atlas
            draw_sprites(columns, line, start, stop, sprites[part], x[part], first, atlas.width, atlas.bearing, ink)
            done += count
