"""Encoded sets: pages and tokens of a split in flat arrays, kept under a name that is a hash of all that made them.

A set is a folder of plain files, mapped into memory when it is opened: ``pages.bin`` with one encoded page after the
other and the codec's file, ``tokens.npy``, the offsets of both, and ``set.json``. It is written under another name and
renamed, so one that is there is whole. Of the processes that want the same set at once (ranks, points of a search) one
makes it behind a lock, and the others wait; where the file system has no locks, all do, and the first one counts.
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_pixel.data.codec import PageCodec, load_codec, train_codec
from megatron_pixel.data.files import sync_folder
from megatron_pixel.finetuning.encoding import PageEncoder, TextEncoder, texts_of
from megatron_pixel.finetuning.examples import Examples
from megatron_pixel.rendering.page import Page

VERSION = 1
"""Rises with every change of what a set holds."""
_SAMPLE = 1024  # pages that a codec is made from


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """The ``n`` examples of a split as they enter rows."""

    name: str
    codec: PageCodec | None
    pages: np.ndarray
    """uint8: encoded pages, one after the other."""
    page_offsets: np.ndarray
    """int64 [n + 1]."""
    num_patches: np.ndarray
    """int32 [n], black patches included; 0 without an image."""
    tokens: np.ndarray
    """int32, the tokens of all examples."""
    token_offsets: np.ndarray
    """int64 [n + 1]."""
    cut: int
    """Examples of which not all fits."""
    empty: int
    """Examples with an empty text."""

    def __len__(self) -> int:
        return len(self.num_patches)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]: positions of each example."""
        return self.num_patches + np.diff(self.token_offsets)

    def tokens_of(self, index: int) -> np.ndarray:
        """int32 [m]."""
        return self.tokens[self.token_offsets[index] : self.token_offsets[index + 1]]

    def patches_of(self, index: int, channels: int, out: np.ndarray) -> None:
        """Write the patches of an example to the first places of ``out``, uint8 [>= n, P, P, C]."""
        assert self.codec is not None
        data = self.pages[self.page_offsets[index] : self.page_offsets[index + 1]]
        self.codec.decode_patches(data.data, channels, out)

    def note(self) -> str:
        """What became of the texts, for the user."""
        parts = [f"{len(self):,} examples", f"{int(self.lengths.sum()):,} positions", f"longest {self.lengths.max()}"]
        if self.cut:
            parts.append(f"{self.cut:,} ({self.cut / len(self):.1%}) are too long and were cut at the end")
        if self.empty:
            parts.append(f"{self.empty:,} have an empty text")
        return f"{self.name}: {', '.join(parts)}"


class SetMaker:
    """Makes sets, or finds those made before.

    Args:
        pages: draws images; None without.
        text: makes tokens; None without.
        settings: everything besides the texts that decides what is in a set, JSON-able.
        cache: folder of the sets; None keeps nothing.
    """

    def __init__(
        self, pages: PageEncoder | None, text: TextEncoder | None, settings: dict[str, Any], cache: Path | None
    ) -> None:
        self._pages, self._text, self._cache = pages, text, cache
        self._settings = json.dumps({"version": VERSION, **settings}, sort_keys=True)

    def key(self, examples: Examples) -> str:
        """SHA-256 of all that makes the set of these examples."""
        return hashlib.sha256(f"{self._settings}\n{examples.digest()}".encode()).hexdigest()

    def make(self, examples: Examples) -> tuple[EncodedSet, bool]:
        """The set, and whether it was there before; waits for another process that is making it, as long as that takes.

        Raises:
            UserError: an image that cannot be read, or no room on the disk.
        """
        if self._cache is None:
            with tempfile.TemporaryDirectory() as temporary:
                self._write(examples, Path(temporary))
                return open_set(examples.name, Path(temporary), mapped=False), False
        target = self._cache / self.key(examples)
        found = (target / "set.json").is_file()
        if not found:
            self._cache.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(target.with_name(f"{target.name}.lock")):
                if not (target / "set.json").is_file():
                    self._write_whole(examples, target)
        return open_set(examples.name, target), found

    def _write_whole(self, examples: Examples, target: Path) -> None:
        folder = Path(tempfile.mkdtemp(prefix="writing-", dir=target.parent))
        try:
            self._write(examples, folder)
            _publish(folder, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, examples: Examples, folder: Path) -> None:
        count = len(examples)
        cut = np.zeros(count, bool)
        num_patches = np.zeros(count, np.int32)
        page_sizes = np.zeros(count, np.int64)
        token_counts = np.zeros(count, np.int64)
        tokens: list[np.ndarray] = []
        codec = None
        with (folder / "pages.bin").open("wb") as file:
            if self._pages is not None:
                codec = self._codec(examples)
                for i, (page, was_cut) in enumerate(self._draw(examples)):
                    data = codec.encode(page)
                    file.write(data)
                    page_sizes[i], num_patches[i], cut[i] = len(data), page.num_patches, was_cut
        if self._text is not None:
            for i, texts in enumerate(texts_of(examples)):
                row, was_cut = self._text.encode(texts)
                tokens.append(row)
                token_counts[i] = len(row)
                cut[i] |= was_cut
        if codec is not None and self._pages is not None:
            codec.save(str(folder / "set"), codec.take_used(), self._pages.renderer)
        for name, array in (
            ("page_offsets", _offsets(page_sizes)),
            ("num_patches", num_patches),
            ("tokens", np.concatenate(tokens) if tokens else np.empty(0, np.int32)),
            ("token_offsets", _offsets(token_counts)),
        ):
            np.save(folder / f"{name}.npy", array)
        facts = {
            "settings": json.loads(self._settings),
            "codec": None if codec is None else {"name": codec.name, "version": codec.version},
            "cut": int(cut.sum()),
            "empty": sum(any(not text.strip() for text in texts) for texts in texts_of(examples)),
        }
        (folder / "set.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def _draw(self, examples: Examples) -> Iterator[tuple[Page, bool]]:
        assert self._pages is not None
        if examples.images is not None and examples.image_patches is not None:
            yield from self._pages.rendered(examples.images, examples.image_patches, examples.ids)
            return
        for texts in texts_of(examples):
            yield self._pages.page(texts)

    def _codec(self, examples: Examples) -> PageCodec:
        assert self._pages is not None
        step = max(1, len(examples) // _SAMPLE)
        sample = examples.select(range(0, len(examples), step))
        renderer = None if examples.images is not None else self._pages.renderer
        return train_codec([page for page, _ in self._draw(sample)], renderer)


def open_set(name: str, folder: Path, mapped: bool = True) -> EncodedSet:
    """Open a whole set; ``mapped`` leaves its files on disk until they are read."""
    facts = json.loads((folder / "set.json").read_text(encoding="utf-8"))
    mode: Any = "r" if mapped else None
    codec = None
    if facts["codec"] is not None:
        known = facts["codec"]
        codec = load_codec(str(folder / f"set.codec.{known['name']}"), known["name"], known["version"])
    size = (folder / "pages.bin").stat().st_size
    if not size:
        pages = np.empty(0, np.uint8)
    elif mapped:
        pages = np.memmap(folder / "pages.bin", np.uint8, "r")
    else:
        pages = np.fromfile(folder / "pages.bin", np.uint8)
    arrays = {
        part: np.load(folder / f"{part}.npy", mmap_mode=mode)
        for part in ("page_offsets", "num_patches", "tokens", "token_offsets")
    }
    return EncodedSet(name, codec, pages, cut=facts["cut"], empty=facts["empty"], **arrays)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """While this process alone holds the lock of that name, which ends with it, however it ends."""
    with path.open("a") as file:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        path.unlink(missing_ok=True)  # whoever opens it anew finds the set


def _offsets(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _publish(folder: Path, target: Path) -> None:
    """Give a folder its name once everything in it is on disk; one that is there already stays."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(str(folder))
    try:
        folder.rename(target)
    except OSError:
        if not (target / "set.json").is_file():
            raise
    sync_folder(str(target.parent))
