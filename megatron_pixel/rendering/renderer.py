"""The renderer: text to pages."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering import blit, harfbuzz
from megatron_pixel.rendering.atlas import Atlas, SpriteCells
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.layout import Layout, Line
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.released import is_rtl
from megatron_pixel.rendering.shaping import COUNT
from megatron_pixel.rendering.sprites import SpritePage
from megatron_pixel.rendering.strategies import STRATEGIES
from megatron_pixel.rendering.unicode_tables import unicode_versions
from megatron_pixel.rendering.unit_layout import UnitLayout

RENDERER_VERSION = 2
"""To be raised with every change that alters a pixel of any page; stands in the manifest of every dataset."""

_START = 2  # first pixel column of text where patches are not tied to it
_PADDING = 4  # pixels that such a text takes besides its width: two before it, two after
_FAR = 1 << 29  # pixels: beyond any page


class Renderer:
    """Renders text to pages by one :class:`RenderingConfig`. Build one per process; it is not thread-safe.

    Preset ``default``: documents are cut between words into as many pages as they need; a paragraph separator ends a
    bidi paragraph, and paragraphs follow each other from left to right. Preset ``released``: what the renderer of the
    released checkpoints does (see :meth:`render` and :meth:`render_pair`).

    Raises :class:`UserError` for settings that cannot be, and for missing fonts.
    """

    def __init__(self, config: RenderingConfig) -> None:
        _check(config)
        self.config = config
        self.patch_size = config.patch_size
        self._released = config.preset == "released"
        self._points = config.font_size if config.font_size is not None else config.patch_size / 2
        self.baseline = round(config.patch_size * 12 / 16)
        """Pixel rows above the baseline, the same for every font."""
        self._fonts = find_fonts(config.fonts, config.preset, mono=config.strategy == "mono")
        pixels = self._points * config.dpi / 72
        self._layout: Layout
        if config.strategy == "continuous":
            self._start, self._padding = _START, _PADDING
            self._layout = Layout(self._fonts, pixels, one_paragraph=self._released)
        else:
            self._start = self._padding = 0
            self._layout = UnitLayout(self._fonts, pixels, config.strategy, config.patch_size, self._ink)
        self._atlas = Atlas(
            self._fonts,
            self._layout.first_glyph,
            self._layout.color_font,
            self._points,
            config.dpi,
            config.patch_size,
            self.baseline,
            fit=not self._released,
            in_color=config.mode == "rgb",
        )
        self._missing = np.empty((256, 2), dtype=np.int32)

    def render(self, text: str, max_patches: int | None = None) -> Page:
        """Render the beginning of ``text`` as one page of at most ``max_patches`` (end patch included).

        A text that does not fit is cut between words: next to white space, between CJK characters, in a word longer
        than a page between grapheme clusters; ``page.end`` says where. With preset ``released`` it is cut at the right
        edge of the strip, as if by scissors, wherever a right-to-left text has its end; ``page.end`` is then the
        character after the last one that begins before the edge. ``max_patches`` is at least 2.
        """
        patches = self._max_patches(max_patches)
        limit = self._limit(patches)
        if not self._released:
            most = self._layout.most_characters(limit)
            return self._text_page(self._layout.fitting(_codepoints(text[: most + 1]), limit), 0, patches)
        return self._text_page(self._layout.whole(_codepoints(text), limit), 0, patches)

    def pages(self, text: str, max_patches: int | None = None) -> list[Page]:
        """Render all of ``text`` on as many pages as it needs; they tile it, and each is what :meth:`render` makes of
        its part alone. Empty text gives one page."""
        return list(self.iter_pages(text, max_patches))

    def iter_pages(self, text: str, max_patches: int | None = None) -> Iterator[Page]:
        """:meth:`pages` one by one: the pages of a text of 10 MB take more than 1 GB."""
        patches = self._max_patches(max_patches)
        limit = self._limit(patches)
        codepoints = _codepoints(text)
        start = 0
        while start < len(codepoints) or start == 0:
            line = self._layout.fitting(codepoints[start:], limit)
            yield self._text_page(line, start, patches)
            start += max(line.end, 1)

    def render_pair(self, first: str, second: str) -> Page:
        """Render ``first``, a black patch, ``second`` and the black end patch, at most ``config.seq_length`` patches.

        Where both do not fit, the longer one is cut between words, both if each takes more than half. ``page.end``
        counts the characters shown of ``first``, then of ``second``. Preset ``released``: as the released renderer,
        nothing is cut but at the right edge, so that a long ``first`` leaves nothing of ``second``.
        """
        patches = self.config.seq_length
        if patches < 4:
            raise ValueError(f"a pair needs at least 4 patches, not {patches}")
        if self._released:
            return self._released_pair(first, second, patches)
        free = patches - 2
        line = self._fitting(first, free)
        other = self._fitting(second, free)
        needs = self._text_patches(line.width), self._text_patches(other.width)
        cut_first, cut_second = line.end < len(first), other.end < len(second)
        rooms = needs
        if sum(needs) > free or cut_first or cut_second:
            half = free // 2
            if needs[0] <= half and not cut_first:
                rooms = needs[0], free - needs[0]
            elif needs[1] <= free - half and not cut_second:
                rooms = free - needs[1], needs[1]
            else:
                rooms = half, free - half
            line = self._fitting(first, rooms[0])
            other = self._fitting(second, rooms[1])
        black = min(self._text_patches(line.width), rooms[0])
        last = black + 1 + min(self._text_patches(other.width), rooms[1])
        return self._compose([(line, 0), (other, black + 1)], [black, last], 0, line.end + other.end)

    def fingerprint(self) -> dict:
        """What decides the pixels: settings, fonts by hash, versions. JSON-able; goes into every manifest."""
        import freetype

        config = self.config
        # Left out where it is continuous: so it was before there was a choice.
        strategy = {} if config.strategy == "continuous" else {"strategy": config.strategy}
        return {
            "renderer_version": RENDERER_VERSION,
            **strategy,
            "preset": config.preset,
            "mode": config.mode,
            "binary_threshold": config.binary_threshold,
            "patch_size": config.patch_size,
            "font_size": self._points,
            "dpi": config.dpi,
            "seq_length": config.seq_length,
            "fonts": [
                {"name": font.path.name, "index": font.index, "height": font.height, "sha256": font.sha256}
                for font in self._fonts
            ],
            "harfbuzz": harfbuzz.version(),
            "freetype": ".".join(map(str, freetype.version())),
            "unicode": unicode_versions(),
        }

    def glyph_advances(self) -> np.ndarray:
        """int16 [glyphs of all fonts]: pixels from the pen of each glyph to the next one's, as the fonts have it by
        default; shaping may change it."""
        return self._layout.glyph_advances()

    def sprite_cells(self, keys: np.ndarray) -> SpriteCells:
        """Bitmaps of glyphs at heights: int64 [k] keys as :func:`~megatron_pixel.rendering.blit.sprite_keys` makes of
        the first two rows of :class:`~megatron_pixel.rendering.page.Marks`."""
        return self._atlas.cells(keys)

    def _fitting(self, text: str, patches: int) -> Line:
        limit = patches * self.patch_size - self._padding
        most = self._layout.most_characters(limit)
        return self._layout.fitting(_codepoints(text[: most + 1]), limit).kept()

    def _released_pair(self, first: str, second: str, patches: int) -> Page:
        # The paragraph direction is forced where both texts read from right to left, otherwise each has its own.
        base = 1 if is_rtl(first) and is_rtl(second) else -1
        limit = self._limit(patches)
        line = self._layout.whole(_codepoints(first), limit, base).kept()
        black = min(self._text_patches(line.width), patches - 1)
        room = (patches - 2 - black) * self.patch_size
        other = self._layout.whole(_codepoints(second), max(room, 0), base).kept()
        last = min(black + 1 + self._text_patches(other.width), patches - 1)
        if black == patches - 1:
            other = replace(other, end=0)
        return self._compose([(line, 0), (other, black + 1)], [black, last], 0, line.end + other.end)

    def _max_patches(self, max_patches: int | None) -> int:
        if max_patches is None:
            return self.config.seq_length
        if max_patches < 2:
            raise ValueError(f"a page needs at least 2 patches, text and end, not {max_patches}")
        return max_patches

    def _limit(self, max_patches: int) -> int:
        """Pixels of text that fit on a page."""
        return (max_patches - 1) * self.patch_size - self._padding

    def _text_patches(self, width: int) -> int:
        """Patches that a text of ``width`` pixels takes; the released renderer draws a blank one for empty text."""
        if width == 0 and not self._released:
            return 0
        return -(-(width + self._padding) // self.patch_size)

    def _text_page(self, line: Line, start: int, max_patches: int) -> Page:
        # Too wide is a single letter that is wider than a page, and any text with preset `released`.
        patches = min(self._text_patches(line.width), max_patches - 1)
        return self._compose([(line, 0)], [patches], start, start + line.end)

    def _compose(self, lines: list[tuple[Line, int]], black: list[int], start: int, end: int) -> Page:
        """A page of lines, each from a patch on up to its black one; the last black patch ends the page."""
        size = self.patch_size
        placed: list[np.ndarray] = []
        has_color = False
        for (line, first), patch in zip(lines, black, strict=True):
            left = first * size
            part, colored = self._choose_sprites(line, left, patch * size, left + self._start)
            placed.append(part)
            has_color |= colored
        drawing = SpritePage(
            self._atlas,
            size,
            placed[0] if len(placed) == 1 else np.concatenate(placed, axis=1),
            tuple(part.shape[1] for part in placed),
            tuple(black),
            has_color,
            self.config.binary_threshold if self.config.mode == "binary" else None,
        )
        return Page(None, black[-1] + 1, start, end, size, drawing=drawing)

    def _ink(self, line: Line) -> np.ndarray:
        """int32 [2, k]: of each glyph of a line, pixels from the pen to the ink, and of the ink."""
        chosen, _ = self._choose_sprites(line, -_FAR, _FAR, 0)
        return np.take(self._atlas.sprites[[blit.BEARING, blit.WIDTH]], chosen[0], axis=1)

    def _choose_sprites(self, line: Line, left: int, right: int, origin: int) -> tuple[np.ndarray, bool]:
        """int32 [2, k]: sprites of a line that begins at column ``origin`` and the columns of their pens; and whether
        they show color."""
        room = int(line.runs[:, COUNT].sum())
        chosen = np.empty((2, room), dtype=np.int32)
        atlas = self._atlas
        while True:
            count, missing, has_color = blit.choose_sprites(
                left,
                right,
                origin,
                line.glyphs,
                line.runs,
                line.order,
                atlas.table,
                atlas.lifted,
                atlas.sprites,
                chosen,
                self._missing,
            )
            if not missing:
                return chosen[:, :count], has_color
            for glyph, up in set(map(tuple, self._missing[:missing].tolist())):
                atlas.sprite(glyph, up)


def _codepoints(text: str) -> np.ndarray:
    """uint32 [n]; lone surrogates are kept here and drawn as U+FFFD."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


def _check(config: RenderingConfig) -> None:
    for name, value, least in (
        ("patch_size", config.patch_size, 8),
        ("seq_length", config.seq_length, 2),
        ("dpi", config.dpi, 1),
    ):
        if value < least:
            raise UserError(f"rendering.{name}: {value} is less than {least}")
    if config.font_size is not None and not 0 < config.font_size <= 1000:
        raise UserError(f"rendering.font_size: {config.font_size} points is no size for text")
    if not 0 <= config.binary_threshold <= 256:
        raise UserError(f"rendering.binary_threshold: {config.binary_threshold} is outside 0 to 256")
    for name, choice, known in (
        ("mode", config.mode, ("rgb", "gray", "binary")),
        ("preset", config.preset, ("default", "released")),
        ("strategy", config.strategy, STRATEGIES),
    ):
        if choice not in known:
            raise UserError(f"rendering.{name}: {choice!r} is none of {', '.join(known)}")
    if config.preset == "released" and config.strategy != "continuous":
        raise UserError(f"rendering.strategy: {config.strategy} does not go with preset released, which is continuous")
