"""Color glyphs as small pictures, composed over white."""

import io
import os

import numpy as np
import uharfbuzz as hb

from megatron_pixel.rendering.fonts import FontFile

# The painter gets a margin around the em box for glyphs that reach beyond it.
_MARGIN = 1.0


class ColorPainter:
    """Paints glyphs of a color font at a size: COLR with HarfBuzz's rasterizer, CBDT and sbix from stored bitmaps."""

    def __init__(self, font: FontFile, pixels: float) -> None:
        self._scale = round(pixels * 64)
        face = hb.Face(hb.Blob.from_file_path(os.fspath(font.path)), font.index)
        self._font = hb.Font(face)
        self._font.scale = (self._scale, self._scale)
        self._has_paint = face.has_color_paint or face.has_color_layers
        extents = self._font.get_font_extents("ltr")
        self.ascender: float = extents.ascender / 64
        """Pixels from the baseline to the top of the em box."""
        self.descender: float = extents.descender / 64
        """The same to its bottom, negative."""
        self._paint = hb.RasterPaint()
        self._paint.scale_factor = (64.0, 64.0)

    def glyph(self, glyph: int, shift: float) -> tuple[np.ndarray, int, int]:
        """Paint a glyph ``shift`` pixels below its place.

        Returns uint8 [height, width, 3] over white, the distance from the pen to its left column and the height of
        its top row over the baseline.
        """
        if self._has_paint:
            premultiplied, left, top = self._painted(glyph, shift)
        else:
            premultiplied, left, top = self._stored(glyph, shift)
        # Where nothing is painted there is paper.
        inked = np.flatnonzero(premultiplied[..., 3].any(axis=0))
        if not len(inked):
            return np.zeros((0, 0, 3), dtype=np.uint8), 0, 0
        first, last = inked[0], inked[-1] + 1
        part = premultiplied[:, first:last].astype(np.int32)
        over_white = np.clip(part[..., :3] + 255 - part[..., 3:], 0, 255).astype(np.uint8)
        return over_white, left + int(first), top

    def _painted(self, glyph: int, shift: float) -> tuple[np.ndarray, int, int]:
        em = self._scale / 64
        left, bottom = -int(_MARGIN * em), int(self.descender - shift) - int(_MARGIN * em)
        width, height = int((2 * _MARGIN + 2) * em), int((2 * _MARGIN + 1.5) * em)
        paint = self._paint
        paint.transform = (1.0, 0.0, 0.0, 1.0, 0.0, -shift * 64)
        paint.extents = hb.RasterExtents(x_origin=left, y_origin=bottom, width=width, height=height, stride=0)
        paint.paint_glyph(self._font, glyph)
        image = paint.render()
        stride = image.extents.stride
        rows = np.frombuffer(image.buffer, dtype=np.uint8).reshape(height, stride)[::-1, : width * 4]
        bgra = rows.reshape(height, width, 4)
        return bgra[..., [2, 1, 0, 3]], left, bottom + height

    def _stored(self, glyph: int, shift: float) -> tuple[np.ndarray, int, int]:
        from PIL import Image

        png = self._font.get_glyph_color_png(glyph)
        extents = self._font.get_glyph_extents(glyph)
        if png is None or len(png) == 0 or extents is None:
            return np.zeros((0, 0, 4), dtype=np.uint8), 0, 0
        width, height = max(round(extents.width / 64), 1), max(round(-extents.height / 64), 1)
        with Image.open(io.BytesIO(png.data)) as image:
            # Premultiplied first, or the color of transparent pixels would bleed in.
            small = image.convert("RGBA").convert("RGBa").resize((width, height), Image.Resampling.BOX)
        top = round(extents.y_bearing / 64 - shift)
        return np.asarray(small), round(extents.x_bearing / 64), top
