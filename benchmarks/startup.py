#!/usr/bin/env python
"""How long until the first micro-batch, and in how much memory, with a dataset of 400 million pages?

    python benchmarks/startup.py
    python benchmarks/startup.py --pages 4000000 40000000 --json startup.json

A dataset is simulated by its index, which is real; its data file is nearly all holes (``startup_data.py``). Its files
are dropped from the system's cache, then a new process opens them and builds one micro-batch of 8 rows: ours from pages
and from text, and megatron-core's ``BlendedMegatronDatasetBuilder`` with ``GPTDataset`` from the same files of text,
first without its cache of document, sample and shuffle indexes, then with it. ``pretrain.py`` is timed to the end of
its first step too, with a tiny model. Programs and libraries are in the system's cache; seconds count from the start of
the process.

Memory is the peak of the resident set, and of that what is the process's own: pages of mapped files belong to the
system, which takes them back when it needs them. Takes 20 bytes of disk a page, 30 with megatron-core's cache, all
removed again, and about 9 minutes at the default sizes on a disk that writes 200 MB/s.
"""

import argparse
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from benchmarks.startup_child import ROWS, SEED
from benchmarks.startup_data import Simulated, make_small
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.schema import ModelConfig

PAGES = (4_000_000, 40_000_000, 400_000_000)
PEER_CACHE = "megatron_cached"
NAMES = ("pixels", "text", "step", "megatron", PEER_CACHE)
"""Keys of the figures in the order of measurement: the peer's cache is made by the run before it."""
TITLES = {
    "pixels": "ours, pages",
    "text": "ours, text",
    "step": "ours, pretrain.py to the end of its first step",
    "megatron": "megatron-core, text",
    PEER_CACHE: "megatron-core, text, its indexes cached",
}
TINY = "--model.layers 1 --model.hidden 32 --model.heads 2 --model.kv_heads 2 --model.ffn 32 --model.vocab_size 256"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, nargs="+", default=PAGES, help="sizes of the dataset")
    parser.add_argument("--repeats", type=int, default=3, help="processes of ours for each figure, the median counts")
    parser.add_argument("--peer-pages", type=int, default=max(PAGES), help="largest size for megatron-core")
    parser.add_argument("--folder", type=Path, help="where the files lie meanwhile (default: the system's)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no gigabytes behind
    figures: dict[str, Any] = {"sizes": {}}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        small = make_small(Path(folder))
        for pages in sorted(arguments.pages):
            place = Path(folder) / str(pages)
            check_room(place.parent, pages)
            place.mkdir()
            names = NAMES if pages <= arguments.peer_pages else NAMES[:3]
            figures["sizes"][str(pages)] = measure(place, small, pages, names, arguments.repeats)
            shutil.rmtree(place)
    print(table(figures))
    result_file.write(arguments.json, figures, ("torch", "megatron-core"))


def check_room(folder: Path, pages: int) -> None:
    """Raise UserError where the disk has no room for the index and the peer's cache of it."""
    needed, free = pages * 30, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"{needed / 1e9:.0f} GB are needed for {pages:,} pages, {free / 1e9:.0f} GB are free: --folder")


def measure(folder: Path, small: str, pages: int, names: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """The figures of one size: name -> seconds and bytes."""
    progress(f"{pages:,} pages: writing the index")
    data = Simulated(folder, small, pages)
    data.write_pages(ModelConfig(), SEED, 4 * ROWS)
    figures: dict[str, Any] = {"index_bytes": Path(f"{data.pixels}.train.pages.idx").stat().st_size}
    for name in names:
        runs = []
        try:
            for _ in range(repeats if name in ("pixels", "text") else 1):
                data.forget()
                runs.append(first_step(data) if name == "step" else first_batch(name, data))
        except UserError as error:
            if name not in ("megatron", PEER_CACHE):
                raise
            progress(f"{pages:,} pages: {TITLES[name]} failed and is left out: {error}")
            break
        figures[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        progress(f"{pages:,} pages: {TITLES[name]}: {figures[name]['seconds']:.1f} s")
    return figures


def first_batch(name: str, data: Simulated) -> dict[str, float]:
    """Seconds from the start of a process to its first micro-batch, in parts, and its memory."""
    kind = "megatron" if name == PEER_CACHE else name
    prefix = data.pixels if kind == "pixels" else data.text
    start = time.time()
    program = str(ROOT / "benchmarks" / "startup_child.py")
    done = subprocess.run([sys.executable, program, kind, prefix], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"exit status {done.returncode}: {done.stderr[-500:]}")
    told = json.loads(done.stdout.splitlines()[-1])
    times = told["times"]
    assert told["rows"] == ROWS
    return {
        "seconds": times["first_batch"] - start,
        "import_seconds": times["imported"] - start,
        "open_seconds": times["opened"] - times["imported"],
        "batch_seconds": times["first_batch"] - times["opened"],
        "rss_bytes": told["bytes"]["rss"],
        "anonymous_bytes": told["bytes"]["anonymous"],
    }


def first_step(data: Simulated) -> dict[str, float]:
    """Seconds from the start of ``pretrain.py`` to the end of its first step."""
    run = data.folder / "run"
    config = ROOT / "megatron_pixel" / "config" / "recipes" / "pixelgpt-debug.yaml"
    words = ["--config", str(config), "--run.dir", str(run), "--data.synthetic", "false", "--data.pixels", data.pixels]
    words += [
        "--training.global_batch_rows",
        "2",
        "--training.micro_batch_rows",
        "2",
        "--training.steps",
        "1",
        "--optimizer.warmup_steps",
        "0",
    ]
    words += ["--training.seed", str(SEED), "--model.seq_length", "1024", "--evaluation.rows", "0"]
    words += ["--model.patch_size", "16", "--model.num_channels", "3", "--data.mixture", "0:1:0", *TINY.split()]
    start = time.time()
    program = str(ROOT / "megatron_pixel" / "pretrain.py")
    done = subprocess.run([sys.executable, program, *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"pretrain.py failed: {done.stderr[-2000:]}")
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    shutil.rmtree(run)
    return {"seconds": first["time"] - start, "rss_bytes": first["memory_gb"] * 1e9}


def progress(line: str) -> None:
    """Says what is going on."""
    print(line, file=sys.stderr, flush=True)


def table(figures: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'pages':>12}  {'':48}{'s':>8}{'import':>8}{'open':>8}{'batch':>8}{'RSS, MB':>10}{'own, MB':>10}"]
    for pages, found in figures["sizes"].items():
        for name in NAMES:
            if name not in found:
                continue
            run = found[name]
            parts = "".join(f"{run.get(f'{part}_seconds', float('nan')):8.2f}" for part in ("import", "open", "batch"))
            own = run.get("anonymous_bytes", float("nan"))
            memory = f"{run['rss_bytes'] / 1e6:10,.0f}{own / 1e6:10,.0f}"
            lines.append(f"{int(pages):>12,}  {TITLES[name]:48}{run['seconds']:8.1f}{parts}{memory}")
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
