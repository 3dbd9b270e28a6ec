"""How fast ``pack.py`` makes plans of large datasets, for ``packing.py``.

The index of the dataset is real and has as many pages as asked for; its file of pages is that of a small real dataset,
into which the index points over and over. So every page is read, its checksum taken and its length found, and only the
disk is left out: a page of a real dataset lies somewhere else each time.
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.startup_data import ROOT
from megatron_pixel.config.errors import UserError
from megatron_pixel.data.indexed import MAGIC, VERSION, IndexedReader, bin_path, idx_path
from megatron_pixel.data.manifest import CodecEntry, Manifest, SplitEntry, content_prefix, relative_entries
from megatron_pixel.data.packing import plan_prefix, read_facts

_PORTION = 1 << 20
_SECONDS_BETWEEN_LOOKS = 0.05


def measure_plan(folder: Path, small: str, pages: int, seq_length: int) -> dict[str, float]:
    """Seconds and memory of ``pack.py`` in one process on about ``pages`` pages.

    Args:
        folder: for the index, 12 bytes a page, and the plan; empty, and empty again afterwards.
        small: prefix of a small dataset of pixels without held-out pages.
        pages: rounded up to a multiple of the small dataset's.
        seq_length: positions of a row.

    Raises:
        UserError: ``pack.py`` failed.
    """
    prefix = str(folder / "many")
    _simulate(prefix, small, pages)
    command = [sys.executable, str(ROOT / "data_tools" / "pack.py"), prefix, "--seq-length", str(seq_length)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        own = [0]
        watcher = threading.Thread(target=lambda: own.extend(_own_bytes(process.pid)), daemon=True)
        watcher.start()
        said = process.stderr.read()
        process.wait()
        seconds = time.perf_counter() - start
        watcher.join()
    if process.returncode:
        raise UserError(f"pack.py failed: {said[-500:]}")
    facts = read_facts(plan_prefix(prefix, "train", seq_length))
    for path in folder.iterdir():
        path.unlink()
    return {
        "pages": facts.pages,
        "seconds": seconds,
        "pages_per_second": facts.pages / seconds,
        "own_bytes": max(own),
        "alone_fill": facts.fill_alone,
        "packed_fill": facts.fill,
    }


def _own_bytes(process: int) -> Iterator[int]:
    """Memory of a process that is its own, not pages of mapped files, again and again until it ends."""
    while True:
        try:
            status = Path(f"/proc/{process}/status").read_text()
        except OSError:
            return
        lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        if not lines:  # it has ended
            return
        yield int(lines[0].split()[1]) << 10
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _simulate(prefix: str, small: str, pages: int) -> None:
    """A dataset of pixels whose pages are those of a small one, over and over."""
    manifest = Manifest.read(small)
    pages_of_small = IndexedReader(content_prefix(small, "train", "pages"))
    times = -(-pages // len(pages_of_small))
    train, held = (content_prefix(prefix, split, "pages") for split in ("train", "heldout"))
    os.link(bin_path(pages_of_small.path_prefix), bin_path(train))
    _write_index(idx_path(train), pages_of_small, times)
    for path in (bin_path, idx_path):
        os.link(path(content_prefix(small, "heldout", "pages")), path(held))
    [codec] = manifest.codecs
    [name] = codec.files
    os.link(f"{small}.{name}", f"{prefix}.{name}")
    counts = manifest.splits["train"]
    total = counts.sequences * times
    files = {name: entry for name, entry in counts.files.items() if name.endswith(".bin")}
    index = relative_entries(prefix, {idx_path(train): counts.files["train.pages.idx"]})
    index = {name: type(entry)(os.path.getsize(idx_path(train)), entry.sha256) for name, entry in index.items()}
    splits = {
        "train": SplitEntry(1, total, patches=counts.patches * times, files=files | index),
        "heldout": manifest.splits["heldout"],
    }
    codecs = [CodecEntry(codec.name, codec.version, codec.files, {"train": total, "heldout": 0})]
    Manifest("pixels", splits, manifest.rendering, codecs=codecs).write(prefix)


def _write_index(path: str, small: IndexedReader, times: int) -> None:
    """The index of the pages of ``small``, so many times, as one document."""
    repeats = max(1, _PORTION // len(small))
    with open(path, "wb") as file:
        file.write(MAGIC + VERSION.to_bytes(8, "little") + b"\x01")
        file.write((len(small) * times).to_bytes(8, "little") + (2).to_bytes(8, "little"))
        for values in (small.sizes.astype("<i4"), small.pointers.astype("<i8")):
            portion = np.tile(values, repeats).tobytes()
            for first in range(0, times, repeats):
                file.write(portion[: min(repeats, times - first) * values.nbytes])
        file.write((0).to_bytes(8, "little") + (len(small) * times).to_bytes(8, "little"))
