"""The interface of page codecs: how a page becomes bytes on disk. See docs/formats.md."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.files import FileEntry
from megatron_pixel.rendering.page import Page

if TYPE_CHECKING:
    from megatron_pixel.rendering.renderer import Renderer  # readers of pages need no fonts

Encoded = bytes | memoryview
"""One encoded page; a reader's uint8 array gives ``array.data``."""


class DamagedPageError(UserError):
    """The bytes of a page are not what was written. The stores add which page of which file it is."""


class PageCodec(ABC):
    """Turns pages into bytes and back without loss, each page by itself.

    A codec is made from a sample of the corpus, before anything is encoded, and does not change after: so the same
    corpus gives the same bytes whatever the number of processes. It is picklable and usable from several threads.
    A dataset is made by ``train_codec``, then ``encode`` and ``take_used`` in any processes, then one ``save``.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    """Rises when the bytes change; the manifest keeps it."""
    sample_pages: ClassVar[int]
    """Number of pages that a codec makes good use of when it is made."""
    patch_size: int
    rendering: dict[str, Any] | None = None
    """Fingerprint of the renderer whose pages alone the codec can hold; None if it takes any page."""

    @classmethod
    @abstractmethod
    def load(cls, path: str) -> Self:
        """Open the file that :meth:`save` wrote; raises UserError where it is missing or damaged."""

    @abstractmethod
    def save(self, prefix: str, used: np.ndarray, renderer: "Renderer | None" = None) -> dict[str, FileEntry]:
        """Write ``P.codec.<name>``, everything that decoding takes; return path -> size and hash.

        ``used`` is the sorted union of what :meth:`take_used` gave in all processes that encoded, and ``renderer`` one
        of the kind that made the pages.
        """

    @abstractmethod
    def encode(self, page: Page) -> bytes:
        """Encode one page. Its place in the document (start, end) is not kept."""

    def take_used(self) -> np.ndarray:
        """What the pages encoded since the last call need to be in the file: int64, sorted. Often empty."""
        return np.empty(0, np.int64)

    @abstractmethod
    def decode(self, data: Encoded) -> Page:
        """Give back the page, with start and end 0. Raises :class:`DamagedPageError`."""

    @abstractmethod
    def decode_patches(self, data: Encoded, num_channels: int, out: np.ndarray | None = None) -> np.ndarray:
        """Give back ``page.patches(num_channels)``, uint8 [n, P, P, C].

        ``out``, if given, is C-contiguous uint8 [>= n, P, P, C]; its first n patches are written and returned.
        Raises :class:`DamagedPageError`.
        """

    @abstractmethod
    def num_patches(self, data: Encoded) -> int:
        """Patches of an encoded page, its end patch included, without decoding. Raises :class:`DamagedPageError`."""

    def lengths(self, data: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """:meth:`num_patches` of many pages, int32 [n].

        Args:
            data: uint8, the bytes of a file of pages.
            starts, sizes: integers [n]: first byte of each page, and its bytes; inside ``data``.
        """
        pages = (data[start : start + size].data for start, size in zip(starts.tolist(), sizes.tolist(), strict=True))
        return np.array([self.num_patches(page) for page in pages], np.int32)


def read_codec_file(path: str) -> bytes:
    """Content of a codec's file; raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"cannot open {path}: {error.strerror}; the pages cannot be read without it") from error


def room_for(patches: int, size: int, num_channels: int, out: np.ndarray | None) -> np.ndarray:
    """The first ``patches`` of ``out``, or new ones: uint8 [patches, size, size, num_channels], contiguous.

    Raises ValueError where they do not fit.
    """
    if num_channels not in (1, 3):
        raise ValueError(f"a page has 1 or 3 channels, not {num_channels}")
    shape = (patches, size, size, num_channels)
    if out is None:
        return np.empty(shape, np.uint8)
    if out.dtype != np.uint8 or not out.flags.c_contiguous or out.shape[1:] != shape[1:] or len(out) < patches:
        raise ValueError(f"patches of shape {shape} do not fit into {out.dtype} {out.shape}")
    return out[:patches]
