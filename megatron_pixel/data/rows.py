"""Rows and micro-batches: what the model reads, as plain arrays.

A row is ``seq_length`` positions. Every position says what it is (modality), where it stands (position id) and to which
piece of text it belongs (segment id), so that packing and other layouts of a pair are data, not code. Patches stay
uint8 until they are on the device: a row of 1024 RGB patches is 786 KB here and would be 3 MB as floats.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b
from math import prod
from typing import Literal, NamedTuple

import numpy as np

WHITE = 255
"""Value of the patches at every position that shows none."""

PairLayout = Literal["compact", "released"]

Origin = tuple[str, int]
"""Name of the source and index of the row in it."""

PADDING_ORIGIN: Origin = ("padding", -1)
"""Origin of a row that only fills up a batch."""


class Kind(IntEnum):
    """What a row holds; all rows of a micro-batch have the same kind."""

    TEXT = 0
    PIXEL = 1
    PAIR = 2


class Modality(IntEnum):
    """What a position holds."""

    PADDING = 0
    TOKEN = 1
    PATCH = 2


class Piece(NamedTuple):
    """A document of a row of several: a page, or a pair of a page and the tokens of the same text."""

    patches: int
    """Patches, the black end patch included."""
    tokens: np.ndarray | None = None
    """Integers [m]; None for a page alone."""
    first_token: int | None = None
    """Position id of the first token: by default the next one after the patches, in ``pair.layout: released`` the cap
    of the patches, as if the padding between stood there."""

    @property
    def length(self) -> int:
        """Positions that it takes."""
        return self.patches + (0 if self.tokens is None else len(self.tokens))


@dataclass(frozen=True, eq=False)
class Row:
    """One row of ``s`` positions; ``d = patch_size * patch_size * num_channels``."""

    tokens: np.ndarray
    """int64 [s]; 0 where the position holds no token."""
    patches: np.ndarray | None
    """uint8 [s, d], each patch in row, column, channel order, white where there is none; None in text rows."""
    modality: np.ndarray
    """uint8 [s], values of :class:`Modality`."""
    position_ids: np.ndarray
    """int32 [s]; 0 begins a document that sees nothing before it."""
    segment_ids: np.ndarray
    """int32 [s]; -1 at padding."""
    origin: Origin

    @classmethod
    def empty(cls, seq_length: int, patch_values: int, origin: Origin) -> "Row":
        """A row whose arrays are to be written; ``patch_values`` is ``d``, 0 for text rows."""
        return MicroBatch.empty(Kind.PIXEL if patch_values else Kind.TEXT, [origin], seq_length, patch_values).row(0)

    def page(self, patch_size: int) -> np.ndarray:
        """The room for patches, uint8 [s, P, P, C]: writing into it writes the row."""
        assert self.patches is not None
        return self.patches.reshape(len(self.patches), patch_size, patch_size, -1)


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """``b`` rows of one kind, stacked."""

    kind: Kind
    tokens: np.ndarray
    """int64 [b, s]."""
    patches: np.ndarray | None
    """uint8 [b, s, d]; None in text batches."""
    modality: np.ndarray
    """uint8 [b, s]."""
    position_ids: np.ndarray
    """int32 [b, s]."""
    segment_ids: np.ndarray
    """int32 [b, s]."""
    rows: list[Origin]
    """Where each row comes from."""

    @classmethod
    def empty(
        cls, kind: Kind, rows: list[Origin], seq_length: int, patch_values: int, buffer: np.ndarray | None = None
    ) -> "MicroBatch":
        """A batch whose arrays are to be written, row by row through :meth:`row`.

        Args:
            kind: kind of the rows.
            rows: where each row comes from.
            seq_length: positions ``s`` of a row.
            patch_values: ``d``, 0 for text rows.
            buffer: uint8 of at least :func:`batch_bytes` elements, for the arrays to lie in; by default new memory.
        """
        if buffer is None:
            buffer = np.empty(batch_bytes(len(rows), seq_length, patch_values), np.uint8)
        arrays: dict[str, np.ndarray] = {}
        start = 0
        for name, dtype, shape in _layout(len(rows), seq_length, patch_values):
            stop = start + prod(shape) * np.dtype(dtype).itemsize
            arrays[name] = buffer[start:stop].view(dtype).reshape(shape)
            start = -(-stop // _ALIGNMENT) * _ALIGNMENT
        return cls(
            kind=kind,
            tokens=arrays["tokens"],
            patches=arrays.get("patches"),
            modality=arrays["modality"],
            position_ids=arrays["position_ids"],
            segment_ids=arrays["segment_ids"],
            rows=rows,
        )

    def row(self, i: int) -> Row:
        """Row ``i``, whose arrays are those of the batch."""
        return Row(
            tokens=self.tokens[i],
            patches=None if self.patches is None else self.patches[i],
            modality=self.modality[i],
            position_ids=self.position_ids[i],
            segment_ids=self.segment_ids[i],
            origin=self.rows[i],
        )

    def count_targets(self, end_patch: bool = True) -> "TargetCounts":
        """Targets of the batch; see :func:`target_masks`."""
        return count_targets(self.modality, self.segment_ids, end_patch)


def rows_digest(rows: Sequence[Origin]) -> int:
    """A number that tells a set of rows from others: the sum of a 40-bit hash of each.

    As a sum it does not depend on the order of the rows, nor on which ranks read them. Padding counts nothing.
    """
    names = (f"{source} {index}".encode() for source, index in rows if (source, index) != PADDING_ORIGIN)
    return sum(int.from_bytes(blake2b(name, digest_size=5).digest()) for name in names)


@dataclass(frozen=True)
class TargetCounts:
    """Number of next-token and next-patch targets."""

    tokens: int
    patches: int

    def __add__(self, other: "TargetCounts") -> "TargetCounts":
        return TargetCounts(self.tokens + other.tokens, self.patches + other.patches)


_ALIGNMENT = 64


def _layout(rows: int, seq_length: int, patch_values: int) -> Iterator[tuple[str, type[np.generic], tuple[int, ...]]]:
    """The arrays of a batch, one after the other in its memory: name, dtype, shape."""
    if patch_values:
        yield "patches", np.uint8, (rows, seq_length, patch_values)
    yield "tokens", np.int64, (rows, seq_length)
    yield "position_ids", np.int32, (rows, seq_length)
    yield "segment_ids", np.int32, (rows, seq_length)
    yield "modality", np.uint8, (rows, seq_length)


def batch_bytes(rows: int, seq_length: int, patch_values: int) -> int:
    """Bytes of memory that the arrays of a batch need."""
    sizes = [prod(shape) * np.dtype(dtype).itemsize for _, dtype, shape in _layout(rows, seq_length, patch_values)]
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)


def fill_text(row: Row, tokens: np.ndarray, document_starts: np.ndarray, apart: bool = False) -> Row:
    """Writes a stretch of the token stream into a row; see :func:`text_row`.

    With ``apart`` the positions of every document count from 0, so that none sees the ones before it.
    """
    n = _check_length(len(tokens), len(row.tokens), "tokens")
    _clear(row, 0)
    starts = np.zeros(n, np.int32)
    starts[document_starts] = 1
    starts[:1] = 0
    row.tokens[:n] = tokens
    row.modality[:n] = Modality.TOKEN
    np.cumsum(starts, out=row.segment_ids[:n])
    if apart:
        first = np.maximum.accumulate(starts * np.arange(n, dtype=np.int32))
        row.position_ids[:n] -= first
    return row


def fill_pixels(row: Row, num_patches: int) -> Row:
    """Writes everything of a pixel row but its patches, which stand at its beginning already."""
    return fill_documents(row, [Piece(num_patches)])


def fill_documents(row: Row, pieces: Sequence[Piece]) -> Row:
    """Writes everything of a row of several documents but their patches, which stand in their places already.

    The positions of each count from 0: none sees the others. Segments count on: one a page, two a pair.
    """
    _check_length(sum(piece.length for piece in pieces), len(row.tokens), "positions")
    _clear(row, len(row.tokens))
    start = segment = 0
    for patches, tokens, first_token in pieces:
        middle = stop = start + patches
        row.modality[start:middle] = Modality.PATCH
        row.segment_ids[start:middle] = segment
        segment += 1
        if tokens is not None:
            stop = middle + len(tokens)
            row.tokens[middle:stop] = tokens
            row.modality[middle:stop] = Modality.TOKEN
            row.segment_ids[middle:stop] = segment
            segment += 1
            if row.patches is not None:
                row.patches[middle:stop] = WHITE
        row.position_ids[start:stop] = np.arange(stop - start, dtype=np.int32)
        if first_token is not None:
            row.position_ids[middle:stop] += first_token - patches
        start = stop
    if row.patches is not None:
        row.patches[start:] = WHITE
    return row


def fill_pair(row: Row, num_patches: int, tokens: np.ndarray, layout: PairLayout, patch_cap: int) -> Row:
    """Writes everything of a pair row but its patches, which stand at its beginning already; see :func:`pair_row`."""
    _check_length(num_patches, patch_cap, "patches")
    first = num_patches if layout == "compact" else patch_cap
    m = _check_length(len(tokens), len(row.tokens) - first, "tokens")
    _clear(row, num_patches)
    row.tokens[first : first + m] = tokens
    row.modality[:num_patches] = Modality.PATCH
    row.modality[first : first + m] = Modality.TOKEN
    row.segment_ids[:num_patches] = 0
    row.segment_ids[first : first + m] = 1
    return row


def fill_padding(row: Row) -> Row:
    """Makes a row without content and without targets."""
    _clear(row, 0)
    return row


def text_row(tokens: np.ndarray, document_starts: np.ndarray, seq_length: int, origin: Origin) -> Row:
    """A stretch of the token stream.

    Args:
        tokens: integers [n], n <= seq_length; fewer only at the end of the stream, the rest is padding.
        document_starts: integers, ascending, the places in ``tokens`` where a document begins.
        seq_length: positions of the row.

    The segment id counts the documents of the row from 0, also where the first one began in an earlier row.
    """
    return fill_text(Row.empty(seq_length, 0, origin), tokens, document_starts)


def pixel_row(patches: np.ndarray, seq_length: int, origin: Origin) -> Row:
    """One page, padded at the end.

    Args:
        patches: uint8 [n, P, P, C] as :meth:`Page.patches` gives them, n <= seq_length, the black end patch included.
        seq_length: positions of the row.
    """
    return fill_pixels(_with_patches(patches, seq_length, origin), len(patches))


def pair_row(
    patches: np.ndarray,
    tokens: np.ndarray,
    seq_length: int,
    origin: Origin,
    layout: PairLayout = "compact",
    patch_cap: int = 512,
) -> Row:
    """The image of a text (segment 0), then the tokens of the same text (segment 1), under one running position index.

    Args:
        patches: uint8 [n, P, P, C], the black end patch included.
        tokens: integers [m].
        seq_length: positions of the row.
        layout: ``compact`` starts the tokens right after the end patch; ``released`` after ``patch_cap`` positions,
            as the released code does, with padding between.
        patch_cap: patches of an image at the most.
    """
    return fill_pair(_with_patches(patches, seq_length, origin), len(patches), tokens, layout, patch_cap)


def padding_row(seq_length: int, patch_values: int = 0) -> Row:
    """A row without content and without targets, to fill up a batch; ``patch_values`` is ``d``, 0 for text rows."""
    return fill_padding(Row.empty(seq_length, patch_values, PADDING_ORIGIN))


def stack_rows(kind: Kind, rows: Sequence[Row]) -> MicroBatch:
    """Rows of one kind as a micro-batch, in the order given."""
    pages = [row.patches for row in rows if row.patches is not None]
    if len(pages) != (0 if kind == Kind.TEXT else len(rows)):
        raise ValueError(f"{len(pages)} of {len(rows)} rows hold patches in a batch of kind {kind.name}")
    return MicroBatch(
        kind=kind,
        tokens=np.stack([row.tokens for row in rows]),
        patches=np.stack(pages) if pages else None,
        modality=np.stack([row.modality for row in rows]),
        position_ids=np.stack([row.position_ids for row in rows]),
        segment_ids=np.stack([row.segment_ids for row in rows]),
        rows=[row.origin for row in rows],
    )


def target_masks(
    modality: np.ndarray, segment_ids: np.ndarray, end_patch: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Which positions predict their successor.

    Args:
        modality: uint8 [..., s].
        segment_ids: int32 [..., s].
        end_patch: whether the last patch of a segment, the black one, is a target.

    Returns:
        ``(token, patch)``, bool [..., s] each: True at position ``i`` if ``i + 1`` is a target of that modality. Both
        positions must have that modality and the same segment, so no target crosses from the last patch to the first
        token or from one document into the next. The last position is never True.
    """
    follows = np.zeros(modality.shape, bool)
    follows[..., :-1] = (modality[..., :-1] == modality[..., 1:]) & (segment_ids[..., :-1] == segment_ids[..., 1:])
    token = follows & (modality == Modality.TOKEN)
    patch = follows & (modality == Modality.PATCH)
    if not end_patch:
        patch[..., :-1] &= patch[..., 1:]
    return token, patch


def count_targets(modality: np.ndarray, segment_ids: np.ndarray, end_patch: bool = True) -> TargetCounts:
    """Number of targets that :func:`target_masks` marks."""
    token, patch = target_masks(modality, segment_ids, end_patch)
    return TargetCounts(int(np.count_nonzero(token)), int(np.count_nonzero(patch)))


def _clear(row: Row, num_patches: int) -> None:
    """Makes padding of a row, but for its first patches."""
    row.tokens[:] = 0
    row.modality[:] = Modality.PADDING
    row.position_ids[:] = np.arange(len(row.position_ids), dtype=np.int32)
    row.segment_ids[:] = -1
    if row.patches is not None:
        row.patches[num_patches:] = WHITE


def _with_patches(patches: np.ndarray, seq_length: int, origin: Origin) -> Row:
    """A row that begins with these patches, uint8 [n, P, P, C]; nothing else of it is written."""
    _check_length(len(patches), seq_length, "patches")
    vectors = patches.reshape(len(patches), -1)
    row = Row.empty(seq_length, vectors.shape[1], origin)
    assert row.patches is not None
    row.patches[: len(vectors)] = vectors
    return row


def _check_length(length: int, room: int, what: str) -> int:
    if not 0 < length <= room:
        raise ValueError(f"{length} {what} do not fit a row with room for 1 to {room}")
    return length
