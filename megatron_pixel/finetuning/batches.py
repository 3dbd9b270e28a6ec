"""Rows of encoded sets, and which examples a step or an evaluation reads."""

from collections.abc import Iterator

import numpy as np

from megatron_pixel.data.rows import (
    PADDING_ORIGIN,
    Kind,
    MicroBatch,
    Origin,
    PairLayout,
    fill_padding,
    fill_pair,
    fill_pixels,
    fill_text,
)
from megatron_pixel.finetuning.sets import EncodedSet

KINDS = {"text": Kind.TEXT, "pixel": Kind.PIXEL, "pair": Kind.PAIR}
ROUND = 8
"""Rows of a micro-batch are as long as its longest example, rounded up to a multiple."""


class RowBuilder:
    """Micro-batches from example numbers.

    Args:
        source: the encoded set.
        modality: ``text``, ``pixel`` or ``pair``.
        patch_size, channels: shape of a patch.
        layout: of pair rows; ``released`` pads the image to ``patch_cap``.
        patch_cap: patches of an image at the most.
        bos_id: where it stands, a text begins.
    """

    def __init__(
        self,
        source: EncodedSet,
        modality: str,
        patch_size: int,
        channels: int,
        layout: PairLayout = "compact",
        patch_cap: int = 0,
        bos_id: int = 1,
    ) -> None:
        self.source = source
        self.kind = KINDS[modality]
        self._shape = (patch_size, patch_size, channels)
        self._values = 0 if self.kind == Kind.TEXT else patch_size * patch_size * channels
        self._layout, self._patch_cap, self._bos = layout, patch_cap, bos_id
        lengths = source.lengths
        if self.kind == Kind.PAIR and layout == "released":
            lengths = patch_cap + np.diff(source.token_offsets)
        self.lengths = np.asarray(lengths)
        """int64 [n]: positions that the row of each example takes."""

    def batch(self, indexes: np.ndarray) -> MicroBatch:
        """Rows of the examples, as long as the longest of them; -1 gives a row of padding."""
        longest = int(self.lengths[indexes[indexes >= 0]].max()) if (indexes >= 0).any() else 1
        length = -(-longest // ROUND) * ROUND
        origins: list[Origin] = [(self.source.name, int(i)) if i >= 0 else PADDING_ORIGIN for i in indexes]
        batch = MicroBatch.empty(self.kind, origins, length, self._values)
        for place, index in enumerate(indexes.tolist()):
            row = batch.row(place)
            if index < 0:
                fill_padding(row)
                continue
            count = int(self.source.num_patches[index])
            if self._values:
                assert row.patches is not None
                self.source.patches_of(index, self._shape[2], row.patches.reshape(-1, *self._shape))
            if self.kind == Kind.PIXEL:
                fill_pixels(row, count)
                continue
            tokens = self.source.tokens_of(index)
            if self.kind == Kind.TEXT:
                fill_text(row, tokens, np.flatnonzero(tokens == self._bos))
            else:
                fill_pair(row, count, tokens, self._layout, self._patch_cap)
        return batch


class TrainingOrder:
    """Which examples a step reads: permutations of the set one after the other, a formula of seed and step."""

    def __init__(self, examples: int, rows: int, seed: int) -> None:
        self._examples, self._rows, self._seed = examples, rows, seed
        self._epoch = -1
        self._order = np.empty(0, np.int64)

    def step(self, index: int) -> np.ndarray:
        """int64 [rows]: examples of the step with this number from 0."""
        first = index * self._rows
        return np.array([self._at(place) for place in range(first, first + self._rows)])

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, self._examples)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = np.random.default_rng([self._seed, epoch]).permutation(self._examples)
        return int(self._order[within])


def cut_step(indexes: np.ndarray, lengths: np.ndarray, micro_rows: int, rank: int, ranks: int) -> Iterator[np.ndarray]:
    """The micro-batches of this rank from the examples of a step.

    Examples of like length stand together, so that little is padding: the mean over the step does not know their order.
    Each rank gets neighboring micro-batches, so that ranks have as much to do.
    """
    by_length = indexes[np.argsort(lengths[indexes], kind="stable")]
    for group in by_length.reshape(-1, ranks, micro_rows):
        yield group[rank]


def evaluation_batches(lengths: np.ndarray, rows: int, rank: int, ranks: int) -> list[np.ndarray]:
    """Micro-batches of all examples by length, as many on every rank; -1 fills up."""
    order = np.argsort(-lengths, kind="stable")
    count = -(-len(order) // (rows * ranks))
    filled = np.full(count * rows * ranks, -1, np.int64)
    filled[: len(order)] = order
    return list(filled.reshape(count, ranks, rows)[:, rank])
