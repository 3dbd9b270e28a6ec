"""Datasets of hundreds of millions of pages that are little more than their index, for ``startup.py``.

The index is real and whole. The data file has the right length and is nearly all holes: page i stands for page i mod m
of a small real dataset, and only pages that a benchmark reads are written. Pixels and text share both files: a page of
n bytes is also a document of n tokens, one byte each, which every program that reads Megatron's format takes.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.files import FileEntry
from megatron_pixel.data.indexed import MAGIC, VERSION, IndexedReader, bin_path, idx_path
from megatron_pixel.data.manifest import CodecEntry, Manifest, SplitEntry, content_prefix
from megatron_pixel.data.sampler import RowOrder, derive_key
from megatron_pixel.data.sources import PixelSource

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = {"file": "bytes.model", "sha256": "0" * 64, "vocab_size": 256, "bos_id": 1, "eos_id": 2}
_PORTION = 1 << 20


class Simulated:
    """A dataset of ``pages`` pages, as pixels at ``folder/pixels`` and as text at ``folder/text``.

    Args:
        folder: where the files go; about 20 bytes a page.
        small: prefix of a real dataset of pixels, see :func:`make_small`.
        pages: pages in its train split.
    """

    def __init__(self, folder: Path, small: str, pages: int) -> None:
        self.folder, self.pages = folder, pages
        self.pixels, self.text = str(folder / "pixels"), str(folder / "text")
        self._small = IndexedReader(content_prefix(small, "train", "pages"))
        self._bytes = int(self._small.sizes.sum()) * (pages // len(self._small))
        self._bytes += int(self._small.sizes[: pages % len(self._small)].sum())
        train = content_prefix(self.pixels, "train", "pages")
        self._write_index(idx_path(train))
        with open(bin_path(train), "wb") as file:
            file.truncate(self._bytes)
        for ending in (".bin", ".idx"):
            os.link(train + ending, content_prefix(self.text, "train", "tokens") + ending)
        self._write_manifests(small)

    def write_pages(self, model: ModelConfig, seed: int, draws: int) -> None:
        """Write the pages that the first ``draws`` draws of a run of this seed read, and the row that warms it up."""
        source = PixelSource(self.pixels, "train", model, f"pixel:{Path(self.pixels).name}")
        order = RowOrder(source.num_rows, source.rows_per_block, derive_key(seed, source.name))
        spread = [number * self.pages // 8 for number in range(8)]  # pretrain.py samples them before it starts
        index = IndexedReader(content_prefix(self.pixels, "train", "pages"))
        with open(bin_path(index.path_prefix), "r+b") as file:
            for page in [*spread, *(order(k) for k in range(draws))]:
                file.seek(int(index.pointers[page]))
                file.write(self._small[page % len(self._small)].tobytes())

    def forget(self) -> None:
        """Have the system write the files and drop them from its cache, so that the next reader reads the disk."""
        for path in self.folder.iterdir():
            file = os.open(path, os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)

    def _write_index(self, path: str) -> None:
        """The index of pages of the small dataset's sizes over and over, a document each; a portion at a time."""
        sizes = np.asarray(self._small.sizes, np.int64)
        starts, cycle = np.cumsum(sizes) - sizes, int(sizes.sum())
        header = MAGIC + VERSION.to_bytes(8, "little") + b"\x01"
        with open(path, "wb") as file:
            file.write(header + self.pages.to_bytes(8, "little") + (self.pages + 1).to_bytes(8, "little"))
            for which in ("sizes", "pointers", "bounds"):
                count = self.pages + (which == "bounds")
                for first in range(0, count, _PORTION):
                    pages = np.arange(first, min(first + _PORTION, count))
                    times, place = np.divmod(pages, len(sizes))
                    if which == "sizes":
                        file.write(sizes[place].astype("<i4").tobytes())
                    elif which == "pointers":
                        file.write((times * cycle + starts[place]).tobytes())
                    else:
                        file.write(pages.tobytes())

    def _write_manifests(self, small: str) -> None:
        manifest = Manifest.read(small)
        empty = {
            content: self._empty(prefix, content) for prefix, content in ((self.pixels, "pages"), (self.text, "tokens"))
        }
        split = SplitEntry(documents=self.pages, sequences=self.pages, tokens=self._bytes)
        pixels = {"train": replace(split, tokens=0), "heldout": SplitEntry()}
        text = {"train": split, "heldout": SplitEntry()}
        for prefix, content, splits in ((self.pixels, "pages", pixels), (self.text, "tokens", text)):
            splits["train"].files = self._entries(prefix, f"train.{content}")
            splits["heldout"].files = empty[content]
        [codec] = manifest.codecs
        [name] = codec.files
        Path(f"{self.pixels}.{name}").write_bytes(Path(f"{small}.{name}").read_bytes())
        codecs = [CodecEntry(codec.name, codec.version, codec.files, {"train": self.pages, "heldout": 0})]
        Manifest("pixels", pixels, manifest.rendering, codecs=codecs).write(self.pixels)
        Manifest("text", text, tokenizer=TOKENIZER).write(self.text)

    def _empty(self, prefix: str, content: str) -> dict[str, FileEntry]:
        held = content_prefix(prefix, "heldout", content)
        header = MAGIC + VERSION.to_bytes(8, "little") + b"\x01" + (0).to_bytes(8, "little")
        Path(idx_path(held)).write_bytes(header + (1).to_bytes(8, "little") + bytes(8))
        Path(bin_path(held)).touch()
        return self._entries(prefix, f"heldout.{content}")

    def _entries(self, prefix: str, name: str) -> dict[str, FileEntry]:
        """Sizes are real; hashes, which opening does not compare, are not: they would take minutes."""
        endings = ("bin", "idx")
        return {f"{name}.{e}": FileEntry(os.path.getsize(f"{prefix}.{name}.{e}"), "0" * 64) for e in endings}


def make_small(folder: Path) -> str:
    """A real dataset of 512 short pages; returns its prefix."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(4000)]
    texts = [" ".join(rng.choices(words, k=rng.randrange(20, 120))) for _ in range(512)]
    source = folder / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prefix = str(folder / "small")
    options = ["pixels", "--input", str(source), "--output-prefix", prefix, "--heldout-fraction", "0"]
    command = [sys.executable, str(ROOT / "data_tools" / "preprocess.py"), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return prefix
