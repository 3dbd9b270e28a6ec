"""Rows and micro-batches: what the model reads, as plain arrays.

A row is ``seq_length`` positions. Every position says what it is (modality), where it stands (position id) and to which
piece of text it belongs (segment id), so that packing and other layouts of a pair are data, not code. Patches stay
uint8 until they are on the device: a row of 1024 RGB patches is 786 KB here and would be 3 MB as floats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

WHITE = 255
"""Value of the patches at every position that shows none."""

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
    """int32 [s]."""
    segment_ids: np.ndarray
    """int32 [s]; -1 at padding."""
    origin: Origin


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

    def count_targets(self, end_patch: bool = True) -> "TargetCounts":
        """Targets of the batch; see :func:`target_masks`."""
        return count_targets(self.modality, self.segment_ids, end_patch)


@dataclass(frozen=True)
class TargetCounts:
    """Number of next-token and next-patch targets."""

    tokens: int
    patches: int

    def __add__(self, other: "TargetCounts") -> "TargetCounts":
        return TargetCounts(self.tokens + other.tokens, self.patches + other.patches)


def text_row(tokens: np.ndarray, document_starts: np.ndarray, seq_length: int, origin: Origin) -> Row:
    """A stretch of the token stream.

    Args:
        tokens: integers [n], n <= seq_length; fewer only at the end of the stream, the rest is padding.
        document_starts: integers, ascending, the places in ``tokens`` where a document begins.
        seq_length: positions of the row.

    The segment id counts the documents of the row from 0, also where the first one began in an earlier row.
    """
    n = _length(tokens, seq_length, "tokens")
    row = _blank(seq_length, None, origin)
    starts = np.zeros(n, np.int32)
    starts[document_starts] = 1
    starts[:1] = 0
    row.tokens[:n] = tokens
    row.modality[:n] = Modality.TOKEN
    row.segment_ids[:n] = np.cumsum(starts, dtype=np.int32)
    return row


def pixel_row(patches: np.ndarray, seq_length: int, origin: Origin) -> Row:
    """One page, padded at the end.

    Args:
        patches: uint8 [n, P, P, C] as :meth:`Page.patches` gives them, n <= seq_length, the black end patch included.
        seq_length: positions of the row.
    """
    n = _length(patches, seq_length, "patches")
    row = _blank(seq_length, _laid_out(patches, seq_length), origin)
    row.modality[:n] = Modality.PATCH
    row.segment_ids[:n] = 0
    return row


def pair_row(
    patches: np.ndarray,
    tokens: np.ndarray,
    seq_length: int,
    origin: Origin,
    layout: Literal["compact", "released"] = "compact",
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
    n = _length(patches, patch_cap, "patches")
    first = n if layout == "compact" else patch_cap
    m = _length(tokens, seq_length - first, "tokens")
    row = _blank(seq_length, _laid_out(patches, seq_length), origin)
    row.tokens[first : first + m] = tokens
    row.modality[:n] = Modality.PATCH
    row.modality[first : first + m] = Modality.TOKEN
    row.segment_ids[:n] = 0
    row.segment_ids[first : first + m] = 1
    return row


def padding_row(seq_length: int, patch_values: int = 0) -> Row:
    """A row without content and without targets, to fill up a batch; ``patch_values`` is ``d``, 0 for text rows."""
    patches = np.full((seq_length, patch_values), WHITE, np.uint8) if patch_values else None
    return _blank(seq_length, patches, PADDING_ORIGIN)


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


def _blank(seq_length: int, patches: np.ndarray | None, origin: Origin) -> Row:
    """A row of padding, but for its patches."""
    return Row(
        tokens=np.zeros(seq_length, np.int64),
        patches=patches,
        modality=np.full(seq_length, Modality.PADDING, np.uint8),
        position_ids=np.arange(seq_length, dtype=np.int32),
        segment_ids=np.full(seq_length, -1, np.int32),
        origin=origin,
    )


def _laid_out(patches: np.ndarray, seq_length: int) -> np.ndarray:
    """Patches [n, P, P, C] as vectors at the beginning of a row, [s, d], and white after them."""
    n = len(patches)
    vectors = patches.reshape(n, -1)
    if n == seq_length:
        return vectors
    result = np.empty((seq_length, vectors.shape[1]), np.uint8)
    result[:n] = vectors
    result[n:] = WHITE
    return result


def _length(sequence: np.ndarray, room: int, what: str) -> int:
    if not 0 < len(sequence) <= room:
        raise ValueError(f"{len(sequence)} {what} do not fit a row with room for 1 to {room}")
    return len(sequence)
