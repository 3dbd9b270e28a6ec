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
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.dataset_codecs import first_difference
from megatron_pixel.data.files import write_file
from megatron_pixel.data.indexed import IndexedReader, IndexedWriter
from megatron_pixel.data.manifest import manifest_digest

VERSION = 2
"""Rises when the same lengths are packed otherwise, or the files say something else. 2: hashes, digest, rendering."""
WINDOW = 4096
"""Pages that are packed together: about 3 MB of a file of pages, and enough to fill nearly every row."""
ENDINGS = ("bin", "idx")
"""Files of a plan besides its JSON file."""

_NAME = re.compile(r"\.(?P<name>(train|heldout)\.packed[1-9][0-9]*)\.json")


class OtherVersionError(UserError):
    """A plan that another version of this program made."""


@dataclass(frozen=True)
class Content:
    """The pages that a plan is for."""

    fingerprint: str
    """Of the files that hold them."""
    pages: int
    rendering: dict[str, Any] | None = None
    """Fingerprint of the renderer, where pages are drawn when they are read."""


@dataclass(frozen=True)
class PlanFacts:
    """What the JSON file of a plan says, besides ``digest``, as in a manifest."""

    fingerprint: str
    """Of the content that it was made for."""
    seq_length: int
    rendering: dict[str, Any] | None = None
    """As in :class:`Content`."""
    rows: int = 0
    pages: int = 0
    positions: int = 0
    """Positions of the rows that hold something."""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of the files, by their endings."""
    window: int = WINDOW
    version: int = VERSION

    @property
    def fill(self) -> float:
        """Share of positions that hold something."""
        return self.positions / max(1, self.rows * self.seq_length)

    @property
    def fill_alone(self) -> float:
        """The same with a row for each page."""
        return self.positions / max(1, self.pages * self.seq_length)


class PackedWindow(NamedTuple):
    """The rows of a window, as :func:`megatron_pixel.data.packing_kernel.pack` makes them."""

    places: np.ndarray
    """uint16 [n]: the pages of one row after the other, counted from the first of the window."""
    sizes: np.ndarray
    """int32 [rows]"""
    positions: int
    """Positions that they hold."""


def plan_prefix(prefix: str, split: str, seq_length: int) -> str:
    """Where the plan of a split for rows of this length lies."""
    return f"{prefix}.{split}.packed{seq_length}"


def plans_of(prefix: str) -> list[str]:
    """Names after ``P.`` of the plans that lie beside a dataset: ``train.packed1024``."""
    folder, name = os.path.split(prefix)
    found = (_NAME.fullmatch(entry.removeprefix(name)) for entry in os.listdir(folder or ".") if entry.startswith(name))
    return sorted(match["name"] for match in found if match)


def windows(pages: int) -> list[tuple[int, int]]:
    """First page and end of each window of a dataset."""
    return [(first, min(first + WINDOW, pages)) for first in range(0, pages, WINDOW)]


def write_plan(
    path_prefix: str,
    content: Content,
    seq_length: int,
    packed: Iterable[PackedWindow],
    progress: Callable[[PlanFacts], None] = lambda facts: None,
) -> PlanFacts:
    """Write a plan; nothing of it carries its name before it is whole. Takes the same memory at any length.

    Args:
        path_prefix: from :func:`plan_prefix`.
        content: what is packed.
        seq_length: positions of a row.
        packed: the windows in the order of the file.
        progress: told what has been written so far, after each window.
    """
    forget_plan(path_prefix)
    positions = 0

    def facts(sha256: dict[str, str]) -> PlanFacts:
        counts = (writer.num_sequences, writer.num_elements, positions)
        return PlanFacts(content.fingerprint, seq_length, content.rendering, *counts, sha256, WINDOW)

    with IndexedWriter(path_prefix, np.uint16) as writer:
        for window in packed:
            writer.add_sequences(window.places, window.sizes)
            writer.end_document()
            positions += window.positions
            progress(facts({}))
        entries = writer.finalize()
    done = facts({ending: entries[f"{path_prefix}.{ending}"].sha256 for ending in ENDINGS})
    told = asdict(done)
    told["digest"] = manifest_digest(told)
    write_file(path_prefix + ".json", (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    return done


def forget_plan(path_prefix: str) -> None:
    """Remove a plan, if there is one; the file without which it does not open goes first."""
    for ending in ("json", *ENDINGS):
        if os.path.lexists(f"{path_prefix}.{ending}"):
            os.unlink(f"{path_prefix}.{ending}")


def read_facts(path_prefix: str) -> PlanFacts:
    """The JSON file of a plan.

    Raises:
        UserError: it cannot be read or is damaged; the message begins with its path.
        OtherVersionError: it is of another version.
        FileNotFoundError: there is none.
    """
    path = path_prefix + ".json"
    try:
        with open(path, encoding="utf-8") as file:
            told = json.load(file)
        if told["version"] != VERSION and told.get("digest") in (None, manifest_digest(told)):
            raise OtherVersionError(f"{path} is of version {told['version']}, and this program reads {VERSION}")
        if told.pop("digest") != manifest_digest(told):
            raise UserError(f"{path}: the content differs from what was written (sha256)")
        facts = PlanFacts(**told)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    if facts.window != WINDOW:
        raise UserError(f"{path} has windows of {facts.window} pages, and this program reads {WINDOW}")
    return facts


def outdated(facts: PlanFacts, content: Content) -> str:
    """Why a plan is not one for this content, or nothing."""
    if facts.fingerprint != content.fingerprint:
        counts = f"{facts.pages:,} pages then, {content.pages:,} now"
        return f"was made for other content than the dataset has ({counts})"
    if facts.rendering != content.rendering:
        name, then, now = first_difference("rendering", facts.rendering, content.rendering)
        return f"was made for pages drawn with {name} {then}, and they are drawn with {now}"
    return ""


class PackingPlan:
    """Opened for reading: which pages are in a row. Opening takes the same time and memory at any length.

    Args:
        prefix, split: of the dataset.
        seq_length: positions of a row.
        content: what is to be packed.
        options: words that ``pack.py`` needs besides prefix and length, for messages.

    Raises:
        UserError: there is no plan for rows of this length, or it was made for other content.
    """

    def __init__(self, prefix: str, split: str, seq_length: int, content: Content, options: str = "") -> None:
        self._arguments = (prefix, split, seq_length, content, options)
        path_prefix = plan_prefix(prefix, split, seq_length)
        path = path_prefix + ".json"
        command = f"python data_tools/pack.py {prefix} --seq-length {seq_length}{options}"
        try:
            self.facts = read_facts(path_prefix)
            self._reader = IndexedReader(path_prefix)
        except FileNotFoundError:
            raise UserError(f"data.packing: documents needs {path}, which does not exist: {command} makes it") from None
        except UserError as error:
            raise UserError(f"{error}: {command} makes it again") from error
        if why := outdated(self.facts, content):
            raise UserError(f"{path} {why}: {command} makes it again")
        if self.facts.seq_length != seq_length:
            raise UserError(f"{path} is a plan for rows of {self.facts.seq_length} positions: {command} makes another")
        found = (len(self._reader), self._reader.num_elements)
        if found != (self.facts.rows, self.facts.pages):
            raise UserError(f"{path_prefix}.idx does not agree with {path}: {command} makes both again")
        self._again = f"python data_tools/verify.py {prefix} tells what is wrong, and {command} makes it again"
        told = json.dumps([asdict(content), seq_length, self.facts.sha256, VERSION], sort_keys=True)
        self.identity = hashlib.sha256(told.encode()).hexdigest()
        """Differs where the rows hold other pages."""

    def __len__(self) -> int:
        return len(self._reader)

    def pages(self, row: int) -> list[int]:
        """The pages of a row, in the order of the file. Raises UserError where the plan cannot be right."""
        places = self._reader[row]
        before = int(self._reader.pointers[row]) // places.itemsize
        first = before // WINDOW * WINDOW
        pages = [first + place for place in places.tolist()]
        if not pages or max(pages) >= min(first + WINDOW, self.facts.pages):
            raise UserError(f"{self._reader.path_prefix}.bin is damaged at row {row}: {self._again}")
        return pages

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments
