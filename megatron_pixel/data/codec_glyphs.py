"""The page codec ``glyphs``: which glyph stands where, and the bitmaps of all glyphs once. See docs/formats.md."""

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zstandard

from megatron_pixel.config.errors import UserError
from megatron_pixel.data import glyph_drawing as drawing
from megatron_pixel.data import glyphs as kernels
from megatron_pixel.data.codec_base import DamagedPageError, Encoded, PageCodec, room_for
from megatron_pixel.data.codec_glyphs_file import GlyphTables, SpriteAtlas, read_glyph_file, write_glyph_file
from megatron_pixel.data.files import FileEntry
from megatron_pixel.data.glyph_drawing import MOST_BYTES, MOST_PATCHES
from megatron_pixel.data.glyph_pages import LEVEL, MOST_SEGMENTS, Drawn, Header, Reader, Scratch, Writer, leb128
from megatron_pixel.rendering.expand import gray_to_gray, gray_to_rgb, rgb_to_rgb
from megatron_pixel.rendering.page import Page, luma

if TYPE_CHECKING:
    from megatron_pixel.rendering.renderer import Renderer

_CRC_BYTES = 4
_DICTIONARY_BYTES = 112 << 10
_LEAST_DICTIONARY = 1 << 10


class GlyphCodec(PageCodec):
    """A page as the glyphs on it and where their pens stand, compressed with zstd.

    The symbols and the dictionary of zstd come from a sample of the pages; the bitmaps of all glyphs that were used are
    written at the end. Only pages that know their marks can be encoded, and only by a codec that :meth:`build` made:
    one that was opened from a dataset reads.
    """

    name = "glyphs"
    version = 1
    sample_pages = 1024

    def __init__(self, tables: GlyphTables, atlas: SpriteAtlas | None, advances: np.ndarray | None) -> None:
        """With an ``atlas`` it decodes, with ``advances`` (int16 [glyphs]) it encodes."""
        self.patch_size = tables.patch_size
        self.rendering = tables.rendering
        self._tables = tables
        self._atlas = atlas
        self._advances = advances
        self._reader = Reader(tables, atlas) if atlas is not None else None
        self._writer = Writer(tables, advances) if advances is not None else None
        self._scratch = Scratch(tables.dictionary)

    @classmethod
    def build(cls, pages: Sequence[Page], renderer: "Renderer") -> Self:
        """Make a codec whose tables suit pages like ``pages`` (any number), which ``renderer`` made.

        Raises UserError for fonts with more glyphs than the format has numbers for.
        """
        advances = renderer.glyph_advances()
        if len(advances) > kernels.MOST_GLYPHS:
            raise UserError(f"rendering.fonts: {len(advances):,} glyphs; datasets hold up to {kernels.MOST_GLYPHS:,}")
        config = renderer.config
        seen = [np.empty(0, np.int64)]
        seen += [kernels.symbol_keys(*_marks(page, renderer.patch_size), advances) for page in pages]
        keys, counts = np.unique(np.concatenate(seen), return_counts=True)
        frequent = keys[np.argsort(-counts, kind="stable")]
        frequent = frequent[frequent != kernels.NO_KEY][: kernels.MOST_SYMBOLS]
        # The most frequent take one byte; among the others, glyphs of one script get neighbouring numbers.
        split = kernels.ONE_BYTE
        symbols = np.concatenate([frequent[:split], np.sort(frequent[split:])])

        def tables(dictionary: bytes) -> GlyphTables:
            settings = renderer.patch_size, config.mode, config.binary_threshold
            return GlyphTables(*settings, symbols, dictionary, renderer.fingerprint())

        codec = cls(tables(b""), None, advances)
        bodies = [codec._body(page)[1] for page in pages]
        size = min(_DICTIONARY_BYTES, sum(map(len, bodies)) // 8)
        if size < _LEAST_DICTIONARY:
            size = 0
        return cls(tables(_train(size, bodies)), None, advances)

    @classmethod
    def load(cls, path: str) -> Self:
        tables, atlas = read_glyph_file(path, cls.version)
        return cls(tables, atlas, None)

    def save(self, prefix: str, used: np.ndarray, renderer: "Renderer | None" = None) -> dict[str, FileEntry]:
        if renderer is None or self._advances is None:
            raise ValueError("a glyph codec is saved by who made it, with the renderer of its pages")
        path = f"{prefix}.codec.{self.name}"
        atlas = SpriteAtlas.of(used, self._advances, renderer)
        return {path: write_glyph_file(path, self.version, self._tables, atlas)}

    def encode(self, page: Page) -> bytes:
        header, body = self._body(page)
        rest = header + self._scratch.compressor.compress(body)
        return zlib.crc32(rest, self._tables.crc).to_bytes(_CRC_BYTES, "little") + rest

    def _body(self, page: Page) -> tuple[bytes, bytes]:
        """The header after the checksum, and what zstd compresses."""
        if self._writer is None:
            raise ValueError("a glyph codec opened from a dataset cannot encode")
        marks, starts, counts = _marks(page, self.patch_size)
        if page.num_patches > MOST_PATCHES:
            raise UserError(f"a page of {page.num_patches:,} patches; datasets hold up to {MOST_PATCHES:,} a page")
        segments = len(counts)
        if segments > MOST_SEGMENTS:
            raise ValueError(f"a page of {segments} segments")
        firsts = (starts // self.patch_size).tolist()
        header = leb128([segments, *firsts[1:], page.num_patches, *counts.tolist()[:-1]])
        return header, self._writer.write(marks, starts, counts)

    def take_used(self) -> np.ndarray:
        return self._writer.take_used() if self._writer is not None else super().take_used()

    def num_patches(self, data: Encoded) -> int:
        return int(self._header(data).stops[-1]) // self.patch_size + 1

    def lengths(self, data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        starts, sizes = starts.astype(np.int64), sizes.astype(np.int64)
        view, seed = data.data, self._tables.crc
        bounds = zip((starts + _CRC_BYTES).tolist(), (starts + sizes).tolist(), strict=True)
        checksums = np.array([zlib.crc32(view[start:stop], seed) for start, stop in bounds], np.uint32)
        lengths = np.empty(len(starts), np.int32)
        if drawing.read_lengths(data, starts, sizes, checksums, *self._scratch.segments, lengths) < len(starts):
            raise DamagedPageError("wrong checksum or header")
        return lengths

    def _header(self, data: Encoded) -> Header:
        """Header of a page whose checksum is right."""
        if self._reader is None:
            raise ValueError("a glyph codec decodes when it was opened from a dataset")
        view = memoryview(data)
        if zlib.crc32(view[_CRC_BYTES:], self._tables.crc) != int.from_bytes(view[:_CRC_BYTES], "little"):
            raise DamagedPageError("wrong checksum, or a page of another dataset than the tables")
        return self._reader.header(view[_CRC_BYTES:], self._scratch)

    def _draw(self, data: Encoded) -> Drawn:
        header = self._header(data)
        assert self._reader is not None
        frame = memoryview(data)[_CRC_BYTES + header.end :]
        try:
            if not 0 <= zstandard.frame_content_size(frame) <= MOST_BYTES:
                raise DamagedPageError("it claims to be too long")
            body = self._scratch.decompressor.decompress(frame)
        except zstandard.ZstdError as error:
            raise DamagedPageError(str(error)) from error
        return self._reader.draw(header, body, self._scratch)

    def decode(self, data: Encoded) -> Page:
        drawn = self._draw(data)
        assert self._reader is not None
        size = self.patch_size
        columns = drawn.columns.copy().reshape((-1, size, 3) if drawn.has_color else (-1, size))
        return Page(columns, len(columns) // size, 0, 0, size, self._reader.marks(drawn))

    def decode_patches(self, data: Encoded, num_channels: int, out: np.ndarray | None = None) -> np.ndarray:
        drawn = self._draw(data)
        size = self.patch_size
        out = room_for(int(drawn.header.stops[-1]) // size + 1, size, num_channels, out)
        flat = out.reshape(-1)
        if not drawn.has_color:
            (gray_to_gray if num_channels == 1 else gray_to_rgb)(drawn.columns, size, flat)
        elif num_channels == 3:
            rgb_to_rgb(drawn.columns, size, flat)
        else:
            gray_to_gray(luma(drawn.columns.reshape(-1, 3)), size, flat)
        return out

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._tables, self._atlas, self._advances)


def _train(size: int, bodies: list[bytes]) -> bytes:
    """A dictionary of zstd of at most ``size`` bytes; none where there is too little to learn from."""
    if not size:
        return b""
    try:
        return zstandard.train_dictionary(size, [*bodies], level=LEVEL).as_bytes()
    except zstandard.ZstdError:
        return b""


def _marks(page: Page, patch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Glyphs of a page (int32 [3, k]), and first column and number of glyphs of its segments (int64 each)."""
    if page.patch_size != patch_size:
        raise ValueError(f"a page of patch size {page.patch_size} for a codec of {patch_size}")
    marks = page.marks
    if marks is None:
        raise ValueError("a page that does not know its glyphs; codec columns takes any page")
    starts = np.array([0, *marks.black[:-1]], np.int64)
    starts[1:] += 1
    return np.ascontiguousarray(marks.glyphs), starts * patch_size, np.array(marks.counts, np.int64)
