"""Small pages and datasets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.data.codec import train_codec
from megatron_pixel.data.indexed import IndexedWriter, token_dtype
from megatron_pixel.data.manifest import CONTENTS, CodecEntry, Kind, Manifest, SplitEntry, content_prefix
from megatron_pixel.data.split import SPLITS
from megatron_pixel.rendering.page import Page

MakePage = Callable[..., Page]
MakeDataset = Callable[..., str]

DOCUMENTS = [[5, 3], [1], [], [7, 2, 2], [4]]
"""Lengths of the sequences of each document; the third document is empty."""


def _page(num_patches: int, seed: int = 0, patch_size: int = 16, color: str = "") -> Page:
    """A page of columns from a small stock, as a font has; ``color`` is empty, "some" or "none" (of three channels)."""
    stock = np.random.default_rng(99).integers(0, 256, (40, patch_size), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    columns = stock[rng.integers(0, len(stock), num_patches * patch_size)]
    columns[-patch_size:] = 0
    if color:
        columns = np.repeat(columns[:, :, None], 3, axis=2)
    if color == "some":
        columns[3:9] = rng.integers(0, 256, (6, patch_size, 3), dtype=np.uint8)
        columns[7] = columns[3]
    return Page(columns, num_patches, 0, 0, patch_size)


@pytest.fixture
def make_page() -> MakePage:
    return _page


@pytest.fixture
def make_dataset(tmp_path: Path) -> MakeDataset:
    """Writes a dataset whose train split has DOCUMENTS and whose held-out split is empty; returns its prefix."""

    def make(kind: Kind, name: str = "set", sample: int = 1, **manifest_fields: object) -> str:
        prefix = str(tmp_path / name)
        lengths = [length for document in DOCUMENTS for length in document]
        pages = [_page(length, seed) for seed, length in enumerate(lengths)]
        codec = train_codec(pages[:sample])
        manifest = Manifest(kind=kind, splits={split: SplitEntry() for split in SPLITS}, **manifest_fields)  # type: ignore[arg-type]
        for split in SPLITS:
            counts = manifest.splits[split]
            documents = DOCUMENTS if split == "train" else []
            for content in CONTENTS[kind]:
                dtype = token_dtype(1000) if content == "tokens" else np.uint8
                with IndexedWriter(content_prefix(prefix, split, content), dtype) as writer:
                    sequence = 0
                    for document in documents:
                        for length in document:
                            if content == "pages":
                                writer.add(codec.encode(pages[sequence]))
                            elif content == "strings":
                                writer.add(f"piece {sequence} of {name}".encode())
                            else:
                                writer.add(np.arange(length) + 100 * sequence)
                            sequence += 1
                        writer.end_document()
                    manifest.add_files(prefix, split, writer.finalize())
            counts.documents = len(documents)
            counts.sequences = len(lengths) if documents else 0
            counts.tokens = sum(lengths) if documents and kind in ("text", "pairs") else 0
            counts.patches = sum(lengths) if documents and kind != "text" else 0
        if kind in ("pixels", "pairs"):
            sequences = {split: counts.sequences for split, counts in manifest.splits.items()}
            manifest.codecs = [CodecEntry.of(prefix, codec, codec.save(prefix, codec.take_used()), sequences)]
        manifest.write(prefix)
        return prefix

    return make
