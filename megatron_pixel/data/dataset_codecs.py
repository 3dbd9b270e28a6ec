"""The codecs of a dataset: which page was stored by which, and opening them."""

import bisect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec import PageCodec, load_codec
from megatron_pixel.data.files import FileEntry, hash_file
from megatron_pixel.data.manifest import CodecEntry, Manifest, manifest_path

_MOST_OPEN = 64
"""Codecs held open at a time: as many as the places of a file that a reader works on."""


class DatasetCodecs:
    """The codecs of one split of a dataset; each is opened when one of its pages is read. Thread-safe."""

    def __init__(self, prefix: str, manifest: Manifest, split: str) -> None:
        self._prefix = prefix
        self._entries = manifest.codecs
        self._rendering = manifest.rendering
        self._ends = list(itertools.accumulate(entry.sequences.get(split, 0) for entry in manifest.codecs))
        self._open: OrderedDict[str, PageCodec] = OrderedDict()
        self._lock = threading.Lock()

    def of_page(self, index: int) -> PageCodec:
        """The codec of page ``index`` of the split. Raises UserError where its file is damaged or not there."""
        return self._codec(bisect.bisect_right(self._ends, index))

    def first(self) -> PageCodec:
        """The codec of the first pages; all have the same patch size."""
        return self._codec(0)

    def stretches(self, begin: int, end: int) -> Iterator[tuple[PageCodec | UserError, int, int]]:
        """The codecs of the pages [begin, end): each with its pages, or the error that kept it from opening."""
        for number, (first, stop) in enumerate(itertools.pairwise([0, *self._ends])):
            first, stop = max(first, begin), min(stop, end)
            if first >= stop:
                continue
            try:
                codec: PageCodec | UserError = self._codec(number)
            except UserError as error:
                codec = error
            yield codec, first, stop

    def _codec(self, number: int) -> PageCodec:
        if not self._entries:
            raise UserError(f"{manifest_path(self._prefix)} is damaged: it names no codec")
        entry = self._entries[number]
        ((name, file),) = entry.files.items()
        codec = self._open.get(name)
        if codec is None:
            with self._lock:
                codec = self._open.get(name) or self._load(entry, name, file)
                self._open[name] = codec
                while len(self._open) > _MOST_OPEN:
                    self._open.popitem(last=False)
        return codec

    def _load(self, entry: CodecEntry, name: str, file: FileEntry) -> PageCodec:
        path = f"{self._prefix}.{name}"
        codec = load_codec(path, entry.name, entry.version)
        if codec.rendering is not None and self._rendering is not None:
            _check_rendering(path, codec.rendering, self._prefix, self._rendering)
        if hash_file(path) != file.sha256:
            raise UserError(
                f"{path} is not the file that this dataset was made with (sha256); copy it from where the dataset is "
                f"sound, or make the dataset again"
            )
        return codec


def _check_rendering(path: str, found: dict[str, Any], prefix: str, expected: dict[str, Any]) -> None:
    """Refuse a codec made with a renderer that is not the dataset's, naming the first setting that differs."""
    if found != expected:
        name, here, there = first_difference("rendering", expected, found)
        raise UserError(
            f"{path} belongs to other pages: it was made with {name} {there}, but {manifest_path(prefix)} says {here}; "
            f"copy the file that was made with this dataset"
        )


def first_difference(name: str, first: Any, second: Any) -> tuple[str, str, str]:
    """Where two values out of manifests differ first: the dotted name of the place, and what stands there in both."""
    if isinstance(first, dict) and isinstance(second, dict):
        key = next(key for key in sorted(first.keys() | second.keys()) if first.get(key) != second.get(key))
        if not {"name", "sha256"} <= first.keys() & second.keys():
            return first_difference(f"{name}.{key}", first.get(key), second.get(key))
    if isinstance(first, list) and isinstance(second, list):
        pairs = enumerate(itertools.zip_longest(first, second))
        place, pair = next((place, pair) for place, pair in pairs if pair[0] != pair[1])
        return first_difference(f"{name}[{place}]", *pair)
    return name, _words(first), _words(second)


def _words(value: Any) -> str:
    if isinstance(value, dict) and {"name", "sha256"} <= value.keys():
        return f"{value['name']} (sha256 {value['sha256'][:12]}...)"
    return "none" if value is None else str(value)
