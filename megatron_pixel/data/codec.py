"""The page codecs that this program knows: one is made for a new dataset, or opened for an existing one.

They are imported when one is asked for: their compiled code wants numba, which takes a second to import, and a run on
tokens or made-up rows does without.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec_base import DamagedPageError, Encoded, PageCodec
from megatron_pixel.rendering.page import Page

if TYPE_CHECKING:
    from megatron_pixel.data.codec_columns import ColumnCodec
    from megatron_pixel.data.codec_glyphs import GlyphCodec
    from megatron_pixel.rendering.renderer import Renderer

__all__ = ["DamagedPageError", "Encoded", "PageCodec", "codec_class", "load_codec", "train_codec"]

DEFAULT = "glyphs"
"""What the pages of a renderer are stored with."""


def _codecs() -> "tuple[type[ColumnCodec], type[GlyphCodec]]":
    """Those that there are; the one place that imports them."""
    from megatron_pixel.data.codec_columns import ColumnCodec
    from megatron_pixel.data.codec_glyphs import GlyphCodec

    return ColumnCodec, GlyphCodec


def codec_class(name: str, version: int | None = None) -> type[PageCodec]:
    """Codec of that name, in the newest version by default. Raises UserError where this program has none."""
    for codec in _codecs():
        if codec.name == name and version in (None, codec.version):
            return codec
    raise UserError(f"no page codec {name!r} version {version} here; a newer program may know it")


def train_codec(pages: Sequence[Page], renderer: "Renderer | None" = None) -> PageCodec:
    """Make a codec for a new dataset from a sample of its pages and the renderer that made them.

    Without a renderer, the codec takes pages from anywhere, known by their pixels alone.
    """
    columns, glyphs = _codecs()
    if renderer is not None:
        return glyphs.build(pages, renderer)
    patch_size = pages[0].patch_size if pages else 16  # without pages nothing will be encoded
    return columns.build(pages, patch_size)


def load_codec(path: str, name: str, version: int) -> PageCodec:
    """Open the codec of an existing dataset, whose file is ``path``."""
    return codec_class(name, version).load(path)
