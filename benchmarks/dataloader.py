#!/usr/bin/env python
"""How many rows a second does the data loader hand to training, read from stored pages and rendered from stored text?

    python benchmarks/dataloader.py
    python benchmarks/dataloader.py --json dataloader.json

Two small datasets are made of the same text (presidential messages, or interface translations in twelve languages) in a
folder that is removed again: pages, and strings, whose rows are drawn when they are read. The loader then builds
micro-batches of 1,024-position RGB rows, uint8, in the thread of this process and in 1, 2 and 4 worker processes. A row
counts when this process holds it. Files are in the page cache; caches of compiled code and of glyphs are warm.

The loader is compared with what eats its rows: a step of the model of the CPU's benchmarks on this machine (4 layers of
the paper's width, fp32, forward and backward pass), and a 350M model at half of the peak of an H200, which eats about
210,000 patches a second: 205 rows of 1,024.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from benchmarks.rendering import mixes
from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig, RenderingOverrides, TrainingConfig
from megatron_pixel.data.loader import PrefetchLoader
from megatron_pixel.data.mixture import MixtureReader, open_training
from megatron_pixel.data.rendered import StringPages, renderer_for
from megatron_pixel.data.rows import MicroBatch, Modality, Row, fill_pixels
from megatron_pixel.data.stores import PageStore, StringStore

GPU_PATCHES = 210_000
"""Patches a second that the 350M model consumes on one H200-class GPU at half of its peak."""
MODEL = ModelConfig()
GPU_ROWS = GPU_PATCHES / MODEL.seq_length
MICRO_BATCH_ROWS = 8
MICRO_BATCHES = 4
WORKERS = (0, 1, 2, 4)
STEP_ROWS = 2
"""Rows of a micro-batch of the step that is measured: more of them take no less time each on a CPU."""
STEPS = 4
"""Micro-batches that the step is measured over, the first of them left out."""
FORMS = {"stored": "pixels", "on_the_fly": "strings"}
"""Key of the figures -> kind of the dataset."""
JOINED = 6
"""Stretches of 2,500 characters that make a document: most of its pages are full then."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mix", choices=["english", "multilingual"], default="english", help="text of the rows")
    parser.add_argument("--documents", type=int, default=60, help="documents of 15,000 characters (default: 60)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a measurement (default: 4)")
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each way, of which the median counts")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        prefixes = make_datasets(Path(folder), arguments.mix, arguments.documents)
        figures = measure(prefixes, arguments.seconds, arguments.repeats)
        figures["step"] = step(prefixes["stored"])
    figures["mix"] = arguments.mix
    for form in FORMS:
        figures[form]["steps_fed"] = figures[form]["rows_per_second"] / figures["step"]["rows_per_second"]
        figures[form]["gpus_fed"] = figures[form]["rows_per_second"] / GPU_ROWS
    print(table(figures))
    result_file.write(arguments.json, figures)


def make_datasets(folder: Path, mix: str, documents: int) -> dict[str, str]:
    """Prefix of a dataset of each kind, made of the same text."""
    stretches = mixes(documents * JOINED)[mix]
    joined = [" ".join(stretches[i : i + JOINED]) for i in range(0, len(stretches), JOINED)]
    source = folder / "documents.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in joined), encoding="utf-8")
    prefixes = {}
    for form, kind in FORMS.items():
        prefixes[form] = str(folder / kind)
        words = [kind, "--input", str(source), "--output-prefix", prefixes[form], "--heldout-fraction", "0"]
        command = [sys.executable, str(ROOT / "data_tools" / "preprocess.py"), *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return prefixes


def measure(prefixes: dict[str, str], seconds: float, repeats: int) -> dict[str, Any]:
    """The figures of both forms; their measurements take turns, so that what else the machine does hits both."""
    readers = {form: open_reader(prefix) for form, prefix in prefixes.items()}
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(repeats):
        for workers in WORKERS:
            print(f"{workers} workers ...", file=sys.stderr, flush=True)
            for form, reader in readers.items():
                runs.setdefault((form, workers), []).append(timed(reader, workers, seconds))
    figures: dict[str, Any] = {"gpu": {"patches_per_second": GPU_PATCHES, "rows_per_second": GPU_ROWS}}
    for form, prefix in prefixes.items():
        by_workers = {}
        for workers in WORKERS:
            measured = runs[form, workers]
            by_workers[str(workers)] = {name: statistics.median(run[name] for run in measured) for name in measured[0]}
        best = max(by_workers, key=lambda workers: by_workers[workers]["rows_per_second"])
        rate, core_rate = by_workers[best]["rows_per_second"], by_workers["0"]["rows_per_cpu_second"]
        figures[form] = {
            "rows_per_second": rate,
            "workers": int(best),
            "cores": max(1, int(best)),
            "patches_per_second": by_workers[best]["patches_per_second"],
            "rows_per_core_second": core_rate,
            "gpus_per_core": core_rate / GPU_ROWS,
            "by_workers": by_workers,
            "microseconds_a_row": stages(form, prefix, repeats),
            "bytes_a_row": bytes_a_row(prefix),
        }
    return figures


def open_reader(prefix: str, micro_batch_rows: int = MICRO_BATCH_ROWS) -> MixtureReader:
    """A reader of pixel rows alone."""
    training = TrainingConfig(global_batch_rows=micro_batch_rows * MICRO_BATCHES, micro_batch_rows=micro_batch_rows)
    return open_training(DataConfig(pixels=[prefix], mixture="0:1:0"), MODEL, PairConfig(), training, dp_size=1)


def timed(reader: MixtureReader, workers: int, seconds: float) -> dict[str, float]:
    """Rates of a loader, its start left out."""
    rows = patches = 0
    with PrefetchLoader[MicroBatch](reader, range(10**9), 0, 1, MICRO_BATCHES, workers) as loader:
        for _ in range(3 + workers):
            next(loader)
        started, cpu = time.perf_counter(), time.process_time()
        while time.perf_counter() - started < seconds:
            for batch in next(loader)[1]:
                rows += len(batch.rows)
                patches += int(np.count_nonzero(batch.modality == Modality.PATCH))
        elapsed, used = time.perf_counter() - started, time.process_time() - cpu
    figures = {"rows_per_second": rows / elapsed, "patches_per_second": patches / elapsed}
    # With workers this process only takes note of what they have done.
    name = "rows_per_cpu_second" if workers == 0 else "loader_cpu_share"
    return figures | {name: rows / used if workers == 0 else used / elapsed}


def step(prefix: str) -> dict[str, float]:
    """What a step on this machine eats."""
    from benchmarks.dataloader_step import CPU_MODEL, step_rows_per_second

    print("measuring a training step ...", file=sys.stderr, flush=True)
    reader = open_reader(prefix, STEP_ROWS)
    rate = step_rows_per_second([reader.micro_batch(0, number, 0, 1) for number in range(STEPS)])
    return {"rows_per_second": rate, "layers": CPU_MODEL.layers, "hidden": CPU_MODEL.hidden}


def stages(form: str, prefix: str, repeats: int) -> dict[str, float]:
    """Microseconds of CPU time for each part of a row, median over rows and the least over repeats."""
    row = Row.empty(MODEL.seq_length, MODEL.patch_size**2 * MODEL.num_channels, ("", 0))
    room = row.page(MODEL.patch_size)
    if form == "stored":
        pages = PageStore(prefix)
        parts = [
            stored_parts(pages, index, row, room) for _ in range(repeats + 1) for index in range(min(64, len(pages)))
        ]
    else:
        strings = StringStore(prefix)
        config = StringPages(strings, RenderingOverrides()).config
        parts = [
            rendered_parts(strings, config, index, row, room)
            for _ in range(repeats + 1)
            for index in range(min(64, len(strings)))
        ]
    warm = parts[len(parts) // (repeats + 1) :]
    return {name: statistics.median(part[name] for part in warm) * 1e6 for name in warm[0]}


class Stopwatch:
    """CPU seconds between calls."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, name: str) -> None:
        """Ends the part ``name``."""
        now = time.process_time()
        self.parts[name] = now - self._last
        self._last = now


def stored_parts(store: PageStore, index: int, row: Row, room: Any) -> dict[str, float]:
    """Seconds of the parts of a stored row."""
    watch = Stopwatch()
    patches = store.patches(index, MODEL.num_channels, room)
    watch.lap("decode")
    fill_pixels(row, len(patches))
    watch.lap("the rest of the row")
    return watch.parts


def rendered_parts(store: StringStore, config: Any, index: int, row: Row, room: Any) -> dict[str, float]:
    """Seconds of the parts of a row that is rendered."""
    renderer = renderer_for(config)
    watch = Stopwatch()
    text = store.piece(index)
    watch.lap("read")
    page = next(renderer.iter_pages(text))
    watch.lap("lay out")
    page.columns  # noqa: B018
    watch.lap("draw")
    patches = page.patches(MODEL.num_channels, room)
    watch.lap("expand")
    fill_pixels(row, len(patches))
    watch.lap("the rest of the row")
    return watch.parts


def bytes_a_row(prefix: str) -> float:
    """Bytes on disk."""
    [data] = Path(prefix).parent.glob(f"{Path(prefix).name}.train.*.bin")
    return data.stat().st_size / max(1, len(PageStore(prefix) if "pages" in data.name else StringStore(prefix)))


def table(figures: dict[str, Any]) -> str:
    """The figures as text."""
    eaten = figures["step"]["rows_per_second"]
    lines = [
        f"{figures['mix']} rows of 1,024 positions; one H200-class GPU eats {GPU_ROWS:,.0f} rows/s, a step of "
        f"{figures['step']['layers']} layers on this machine {eaten:.2f}",
        "",
        f"{'':12}{'workers':>8}{'rows/s':>10}{'patches/s':>14}{'GPUs fed':>10}{'x the step':>12}",
    ]
    for form in FORMS:
        for workers, run in figures[form]["by_workers"].items():
            fed = run["rows_per_second"] / GPU_ROWS
            name = form.replace("_", " ")
            lines.append(
                f"{name:12}{workers:>8}{run['rows_per_second']:>10,.0f}{run['patches_per_second']:>14,.0f}{fed:>10.1f}"
                f"{run['rows_per_second'] / eaten:>12,.0f}"
            )
    lines.append("")
    for form in FORMS:
        found = figures[form]
        parts = ", ".join(f"{name} {value:,.0f}" for name, value in found["microseconds_a_row"].items())
        lines.append(
            f"{form.replace('_', ' ')}: {found['bytes_a_row']:,.0f} bytes a row on disk; a core builds "
            f"{found['rows_per_core_second']:,.0f} rows/s, enough for {found['gpus_per_core']:.1f} GPUs; "
            f"microseconds a row: {parts}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
