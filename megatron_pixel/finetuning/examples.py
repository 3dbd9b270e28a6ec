"""Labelled examples: what every reader gives and every encoder takes."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Examples:
    """The ``n`` examples of a split, column by column."""

    name: str
    """Of the split: ``train``, ``validation``, ``validation-mismatched``, ``test-sw`` and the like."""
    first: list[str]
    """Text, or the first one of two."""
    second: list[str] | None
    """The second texts; None where a task has one text."""
    labels: np.ndarray | None
    """int64 [n] numbers of classes, or float64 [n] scores; None where the published split has none."""
    ids: list[str]
    """What an example is called in the source: its index there, or file and line."""
    images: list[bytes] | None = None
    """Released rendered rows: the PNG of each example, which is then read instead of its text."""
    image_patches: list[int] | None = None
    """Patches of text in each image, without the black one at the end."""
    skipped: int = 0
    """Examples that the reader left out because a text was empty."""
    notes: list[str] = field(default_factory=list)
    """What a user should know of the split."""

    def __len__(self) -> int:
        return len(self.first)

    def take(self, count: int) -> "Examples":
        """The first ``count`` examples; all for 0."""
        if not count or count >= len(self):
            return self
        return self.select(range(count))

    def select(self, indexes: Sequence[int]) -> "Examples":
        """Some of the examples, in the order given."""
        return Examples(
            self.name,
            [self.first[i] for i in indexes],
            None if self.second is None else [self.second[i] for i in indexes],
            None if self.labels is None else self.labels[list(indexes)],
            [self.ids[i] for i in indexes],
            None if self.images is None else [self.images[i] for i in indexes],
            None if self.image_patches is None else [self.image_patches[i] for i in indexes],
            self.skipped,
            self.notes,
        )

    def digest(self) -> str:
        """SHA-256 of everything that a row is made of, in order; labels are no part of it."""
        state = hashlib.sha256()
        columns: list[Sequence[str] | Sequence[bytes]] = [self.first]
        columns += [column for column in (self.second, self.images) if column is not None]
        for column in columns:
            state.update(f"column {len(column)}\n".encode())
            for value in column:
                content = value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")
                state.update(len(content).to_bytes(8, "little"))
                state.update(content)
        state.update(repr(self.image_patches).encode())
        return state.hexdigest()


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task, read."""

    train: Examples
    selection: list[Examples]
    """The splits whose mean score chooses the best model and ends training early."""
    others: list[Examples]
    """Splits that only the best model is scored on."""
    classes: list[str] | None
    """Names of the classes in the order of their numbers; None for a score."""

    @property
    def evaluation(self) -> list[Examples]:
        """All splits that are scored."""
        return [*self.selection, *self.others]

    def limited(self, train: int, evaluation: int) -> "TaskData":
        """The first examples of each split; 0 takes all."""
        return TaskData(
            self.train.take(train),
            [split.take(evaluation) for split in self.selection],
            [split.take(evaluation) for split in self.others],
            self.classes,
        )
