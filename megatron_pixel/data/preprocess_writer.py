"""Writes the converted documents of one part: a small dataset of its own, and a record of what is in it."""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np

from megatron_pixel.data.files import FileEntry
from megatron_pixel.data.indexed import IndexedWriter, token_dtype
from megatron_pixel.data.manifest import CONTENTS, Kind, SplitEntry, content_prefix, relative_entries
from megatron_pixel.data.preprocess_claims import Tally
from megatron_pixel.data.preprocess_documents import Piece
from megatron_pixel.data.split import HELDOUT, SPLITS, TRAIN


@dataclass
class PartRecord:
    """What is in a part, or in several together."""

    splits: dict[str, SplitEntry] = field(default_factory=lambda: {split: SplitEntry() for split in SPLITS})
    """Counts; of a part also its files, by the name after its prefix."""
    tally: Tally = field(default_factory=Tally)
    page_bytes: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    """Reason -> count."""
    records: dict[int, int] = field(default_factory=dict)
    """Records of each input, blank lines not counted."""
    used: list[int] = field(default_factory=list)
    """What its pages need to be in the file of the codec, sorted."""

    def as_json(self) -> dict[str, Any]:
        """The record as it is written."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """What :meth:`as_json` gave."""
        splits = {}
        for name, entry in content["splits"].items():
            files = {path: FileEntry(**file) for path, file in entry["files"].items()}
            splits[name] = SplitEntry(**{**entry, "files": files})
        records = {int(source): count for source, count in content["records"].items()}
        return cls(**{**content, "splits": splits, "tally": Tally(*content["tally"]), "records": records})

    def add(self, other: "PartRecord") -> None:
        """Count ``other`` in; its files and ``used`` are left out."""
        for split, entry in self.splits.items():
            for name in ("documents", "sequences", "tokens", "patches", "token_targets", "patch_targets"):
                setattr(entry, name, getattr(entry, name) + getattr(other.splits[split], name))
        self.tally = self.tally.plus(other.tally)
        self.page_bytes += other.page_bytes
        for total, more in ((self.skipped, other.skipped), (self.records, other.records)):
            _count_in(total, more)


def _count_in(total: dict[Any, int], more: dict[Any, int]) -> None:
    for key, count in more.items():
        total[key] = total.get(key, 0) + count


def content_dtypes(vocab_size: int) -> dict[str, type[np.generic]]:
    """Dtype of the elements of each content."""
    return {"pages": np.uint8, "strings": np.uint8, "tokens": token_dtype(vocab_size)}


class PartWriter:
    """As a context manager it leaves nothing behind unless :meth:`finish` was reached.

    Raises:
        CannotWriteError: a full disk and the like.
    """

    def __init__(self, prefix: str, kind: Kind, vocab_size: int) -> None:
        self._prefix = prefix
        self._kind = kind
        self.record = PartRecord()
        dtypes = content_dtypes(vocab_size)
        with ExitStack() as stack:
            self._writers = {
                (split, content): stack.enter_context(
                    IndexedWriter(content_prefix(prefix, split, content), dtypes[content])
                )
                for split in SPLITS
                for content in CONTENTS[kind]
            }
            self._stack = stack.pop_all()

    def add(self, heldout: bool, pieces: Iterable[Piece]) -> int:
        """Append a document to its split; returns the number of its sequences."""
        split = HELDOUT if heldout else TRAIN
        counts = self.record.splits[split]
        sequences = 0
        for patches, contents in pieces:
            for content, sequence in contents.items():
                self._writers[split, content].add(sequence)
                if content == "pages":
                    self.record.page_bytes += len(sequence)
                elif content == "tokens":
                    counts.tokens += len(sequence)
                    # Position i predicts i + 1 inside a chunk of tokens. Rows of a text dataset are cut from the
                    # stream at any length, so their targets cannot be counted here.
                    counts.token_targets += len(sequence) - 1 if self._kind == "pairs" else 0
            counts.patches += patches
            counts.patch_targets += max(patches - 1, 0)
            sequences += 1
        counts.sequences += sequences
        counts.documents += 1
        for content in CONTENTS[self._kind]:
            self._writers[split, content].end_document()
        return sequences

    def finish(self) -> PartRecord:
        """Give the files their names; returns the record with sizes and hashes."""
        for (split, _), writer in self._writers.items():
            self.record.splits[split].files.update(relative_entries(self._prefix, writer.finalize()))
        return self.record

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
