"""Which pages of a dataset share a row: decided once, by their lengths alone, and kept beside the dataset.

Pages are taken in windows of neighbours of the file. In a window the longest page comes first, and each goes into the
fullest row that still has room for it (best fit, decreasing); every page is in exactly one row, and a row's pages lie
close together in the file. The rows of all windows, one after the other, are the rows of the packed source: their order
in a run is :class:`megatron_pixel.data.sampler.RowOrder` over them, as over rows of single pages.

A plan is an indexed dataset of its own, ``P.<split>.packed<s>.{bin,idx}`` for rows of ``s`` positions: a sequence is a
row, its elements are the pages' places in the window (uint16), its documents are the windows. The window of a row
follows from where its elements lie, as every window but the last holds the same number of pages. A JSON file beside
them, written last, says which content it was made for.
"""

import hashlib
import json
import os
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.files import write_file
from megatron_pixel.data.indexed import IndexedReader, IndexedWriter

VERSION = 1
"""Rises when the same lengths are packed otherwise."""
WINDOW = 4096
"""Pages that are packed together: about 3 MB of a file of pages, and enough to fill nearly every row."""


@dataclass(frozen=True)
class PlanFacts:
    """What the JSON file of a plan says."""

    version: int
    fingerprint: str
    """Of the content that it was made for."""
    seq_length: int
    window: int
    rows: int
    pages: int
    positions: int
    """Positions of the rows that hold something."""

    @property
    def fill(self) -> float:
        """Share of positions that hold something."""
        return self.positions / max(1, self.rows * self.seq_length)


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Rows of at most ``room`` positions for pages of these lengths, by best fit, decreasing.

    Returns:
        The pages of each row, rising; rows in the order of their first pages.

    Raises:
        ValueError: a page is longer than a row.
    """
    if len(lengths) and max(lengths) > room:
        raise ValueError(f"a page of {max(lengths)} positions does not fit a row of {room}")
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # room that is left in a row, and the row; rising
    for page in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        place = bisect_left(free, (lengths[page], -1))
        if place < len(free):
            left, row = free.pop(place)
        else:
            left, row = room, len(rows)
            rows.append([])
        rows[row].append(page)
        if left > lengths[page]:
            insort(free, (left - lengths[page], row))
    return sorted(sorted(row) for row in rows)


def plan_prefix(prefix: str, split: str, seq_length: int) -> str:
    """Where the plan of a split for rows of this length lies."""
    return f"{prefix}.{split}.packed{seq_length}"


def windows(pages: int) -> list[tuple[int, int]]:
    """First page and end of each window of a dataset."""
    return [(first, min(first + WINDOW, pages)) for first in range(0, pages, WINDOW)]


def write_plan(
    path_prefix: str,
    fingerprint: str,
    seq_length: int,
    packed: Iterable[tuple[list[list[int]], int]],
    progress: Callable[[PlanFacts], None] = lambda facts: None,
) -> PlanFacts:
    """Write a plan; nothing of it carries its name before it is whole.

    Args:
        path_prefix: from :func:`plan_prefix`.
        fingerprint: of the content.
        seq_length: positions of a row.
        packed: rows of each window in the order of the file, from :func:`pack`, and the positions that they hold.
        progress: told what has been written so far, after each window.
    """
    forget_plan(path_prefix)
    facts = PlanFacts(VERSION, fingerprint, seq_length, WINDOW, 0, 0, 0)
    with IndexedWriter(path_prefix, np.uint16) as writer:
        for rows, positions in packed:
            for row in rows:
                writer.add(np.array(row, np.uint16))
            writer.end_document()
            sums = (writer.num_sequences, writer.num_elements, facts.positions + positions)
            facts = PlanFacts(VERSION, fingerprint, seq_length, WINDOW, *sums)
            progress(facts)
        writer.finalize()
    write_file(path_prefix + ".json", (json.dumps(asdict(facts), indent=1) + "\n").encode())
    return facts


def forget_plan(path_prefix: str) -> None:
    """Remove a plan, if there is one; the file without which it does not open goes first."""
    for ending in (".json", ".bin", ".idx"):
        if os.path.lexists(path_prefix + ending):
            os.unlink(path_prefix + ending)


class PackingPlan:
    """Opened for reading: which pages are in a row.

    Args:
        prefix, split: of the dataset.
        seq_length: positions of a row.
        fingerprint: of the content that is to be packed.

    Raises:
        UserError: there is no plan for rows of this length, or it was made for other content.
    """

    def __init__(self, prefix: str, split: str, seq_length: int, fingerprint: str) -> None:
        self._arguments = (prefix, split, seq_length, fingerprint)
        path_prefix = plan_prefix(prefix, split, seq_length)
        path, command = path_prefix + ".json", f"python data_tools/pack.py {prefix} --seq-length {seq_length}"
        try:
            with open(path, encoding="utf-8") as file:
                self.facts = PlanFacts(**json.load(file))
        except FileNotFoundError:
            raise UserError(f"data.packing: documents needs {path}, which does not exist: {command} makes it") from None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): {command} makes it again") from error
        if (self.facts.version, self.facts.window) != (VERSION, WINDOW):
            raise UserError(f"{path} is a plan of version {self.facts.version}: {command} makes one of {VERSION}")
        if self.facts.fingerprint != fingerprint:
            raise UserError(f"{path} was made for other content than the dataset has: {command} makes it again")
        self._reader = IndexedReader(path_prefix)
        found = (len(self._reader), self._reader.num_elements)
        if found != (self.facts.rows, self.facts.pages):
            raise UserError(f"{path_prefix}.idx does not agree with {path}: {command} makes both again")
        told = json.dumps([fingerprint, VERSION, seq_length, WINDOW])
        self.identity = hashlib.sha256(told.encode()).hexdigest()
        """Differs where the rows hold other pages."""

    def __len__(self) -> int:
        return len(self._reader)

    def pages(self, row: int) -> list[int]:
        """The pages of a row, in the order of the file."""
        places = self._reader[row]
        before = int(self._reader.pointers[row]) // places.itemsize
        first = before // WINDOW * WINDOW
        return [first + place for place in places.tolist()]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments
