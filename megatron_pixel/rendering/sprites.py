"""A page as the renderer leaves it: sprites with their places, drawn when somebody asks for pixels."""

from dataclasses import dataclass

import numpy as np

from megatron_pixel.rendering import blit
from megatron_pixel.rendering.atlas import Atlas
from megatron_pixel.rendering.page import Marks


@dataclass(frozen=True, eq=False, slots=True)
class SpritePage:
    """Sprites of an atlas on a strip of patches of ``size`` pixels; a :class:`~megatron_pixel.rendering.page.Drawing`.

    ``placed``: int32 [2, k], sprites and the page columns of their pens, of which ``counts`` belong to each segment;
    ``black``: the patch at the end of each segment. Values below ``threshold``, if given, become black, others white.
    """

    atlas: Atlas
    size: int
    placed: np.ndarray
    counts: tuple[int, ...]
    black: tuple[int, ...]
    has_color: bool
    threshold: int | None

    def columns(self) -> np.ndarray:
        """uint8 [n*P, P], or [n*P, P, 3] with color, read-only."""
        size = self.size
        length = (self.black[-1] + 1) * size
        gray = np.full(length * size, 255, dtype=np.uint8)
        self._draw(gray, 1, blit.GRAY, self.atlas.ink)
        columns: np.ndarray = gray.reshape(length, size)
        if self.has_color:
            color = np.repeat(gray, 3)
            self._draw(color, 3, blit.COLOR, self.atlas.color_ink)
            columns = color.reshape(length, size, 3)
        if self.threshold is not None:
            columns = np.where(columns < self.threshold, np.uint8(0), np.uint8(255))
        for patch in self.black:
            columns[patch * size : (patch + 1) * size] = 0
        columns.setflags(write=False)
        return columns

    def marks(self) -> Marks:
        """The same by number of glyph, independent of the atlas."""
        sprites, x = self.placed
        table = self.atlas.sprites
        glyphs = np.stack([table[blit.SPRITE_GLYPH, sprites], table[blit.SPRITE_UP, sprites], x])
        return Marks(glyphs, self.black, self.counts)

    def _draw(self, page: np.ndarray, channels: int, cell: int, ink: np.ndarray) -> None:
        table = self.atlas.sprites
        done, left = 0, 0
        for count, patch in zip(self.counts, self.black, strict=True):
            sprites, x = self.placed[:, done : done + count]
            right = patch * self.size
            blit.draw_sprites(
                page,
                self.size * channels,
                left,
                right,
                sprites,
                x,
                table[cell],
                table[blit.WIDTH],
                table[blit.BEARING],
                ink,
            )
            done += count
            left = right + self.size
