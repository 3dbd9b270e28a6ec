#!/usr/bin/env python
"""How fast does preprocessing go on one process and on several, and how much memory does it take?

    python benchmarks/preprocessing.py --megabytes 1000 250
    python benchmarks/preprocessing.py --megabytes 40 10 --json preprocessing.json

Makes a corpus of documents of about 2,500 characters, one .jsonl file: stretches of presidential messages (English) and
of interface translations in some forty languages (--languages of the documents), each with other beginnings, so that no
two are alike. ``preprocess.py pixels`` then runs over it with 1 worker, with 2 workers, and under ``mpirun -n 2``; the
three datasets must be the same, byte for byte. Over the smaller corpora it runs with 2 workers, to show what memory
does with the size of the input.

Seconds are those of whole programs, start and joining of the parts included. Resident memory (RSS) is looked at ten
times a second in every process; pages that processes share, such as libraries, count in each of them.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from examples import demo_corpus

PROGRAM = str(ROOT / "data_tools" / "preprocess.py")
MPIRUN = str(Path(sys.executable).parent / "mpirun")
CORPUS_DOCUMENTS = 400_000_000
CLUSTER_CORES = 1024
FORMS = {"1 worker": 1, "2 workers": 2, "mpirun -n 2": 2}
"""Name and processes."""
_MEAN_CHARACTERS = 2500
_SECONDS_BETWEEN_LOOKS = 0.1


def documents(languages: float, seed: int = 0) -> Iterator[str]:
    """Texts without end: stretches of real text, at places and of lengths that the seed decides."""
    english = [message["text"] for message in demo_corpus.messages()]
    others = [document["text"] for document in demo_corpus.translations()]
    generator = random.Random(seed)
    while True:
        pool = others if generator.random() < languages else english
        text = generator.choice(pool)
        length = max(200, round(generator.gauss(_MEAN_CHARACTERS, _MEAN_CHARACTERS / 4)))
        start = generator.randrange(max(1, len(text) - length))
        yield text[start : start + length]


def make_corpus(path: Path, size: int, languages: float) -> int:
    """Write documents as JSON lines until the file has ``size`` bytes; returns how many."""
    written = count = 0
    with path.open("wb") as file:
        for text in documents(languages):
            written += file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
            count += 1
            if written >= size:
                return count
    return count


def command(form: str, words: Sequence[str]) -> list[str]:
    """The command line of a form of FORMS."""
    call = [sys.executable, PROGRAM, *words]
    if form.startswith("mpirun"):
        return [MPIRUN, *form.split()[1:], *call]
    return [*call, "--workers", form.split()[0]]


def environment() -> dict[str, str]:
    """One thread a process: the processes are what is measured."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def measured(call: list[str]) -> dict[str, Any]:
    """Run a command; returns its seconds, and peaks of RSS in MB."""
    before = cpu_of_children()
    started = time.monotonic()
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, env=environment())
    tree = psutil.Process(process.pid)
    peaks: dict[int, float] = {}
    most = 0.0
    while process.poll() is None:
        now = {}
        try:
            for each in (tree, *tree.children(recursive=True)):
                now[each.pid] = each.memory_info().rss / 1e6
        except psutil.NoSuchProcess:
            pass
        most = max(most, sum(now.values()))
        for pid, size in now.items():
            peaks[pid] = max(peaks.get(pid, 0.0), size)
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise SystemExit(f"error: {' '.join(call)} ended with status {process.returncode}")
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": cpu_of_children() - before,
        "rss_sum_megabytes": most,
        "rss_largest_megabytes": max(peaks.values()),
        "rss_each_megabytes": sorted(peaks.values(), reverse=True),
    }


def cpu_of_children() -> float:
    """Processor seconds of all processes that this one has started and waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def hashes(prefix: Path) -> dict[str, str]:
    """Hash of every file of a dataset, by name."""
    found = {}
    for path in sorted(prefix.parent.glob(f"{prefix.name}.*")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def run(form: str, corpus: Path, folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Make a dataset of the corpus; returns the figures, and what was written."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    words = ["pixels", "--input", str(corpus), "--output-prefix", str(folder / "set")]
    figures = measured(command(form, words))
    manifest = json.loads((folder / "set.manifest.json").read_text(encoding="utf-8"))
    splits = manifest["splits"].values()
    pages = sum(split["sequences"] for split in splits)
    size = sum(path.stat().st_size for path in folder.iterdir())
    figures |= {
        "input_megabytes": corpus.stat().st_size / 1e6,
        "documents": manifest["source"]["documents"],
        "pages": pages,
        "bytes_per_page": size / pages,
        "pages_per_second": pages / figures["seconds"],
        "documents_per_second": manifest["source"]["documents"] / figures["seconds"],
        "megabytes_per_second": corpus.stat().st_size / 1e6 / figures["seconds"],
    }
    return figures, hashes(folder / "set")


def show(name: str, figures: dict[str, Any]) -> None:
    """Print one run as a line."""
    print(
        f"{figures['input_megabytes']:8,.0f} MB  {name:<12}{figures['seconds']:8.1f} s"
        f"{figures['documents_per_second']:9,.0f} documents/s{figures['pages_per_second']:9,.0f} pages/s"
        f"{figures['megabytes_per_second']:7.1f} MB/s   RSS {figures['rss_largest_megabytes']:5,.0f} MB the largest, "
        f"{figures['rss_sum_megabytes']:5,.0f} MB all",
        flush=True,
    )


def extrapolation(runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What 400 million such documents take."""
    best = max(runs, key=lambda name: runs[name]["documents_per_second"])
    rate = runs[best]["documents_per_second"] / FORMS[best]
    seconds = CORPUS_DOCUMENTS / rate
    pages = CORPUS_DOCUMENTS * runs[best]["pages"] / runs[best]["documents"]
    return {
        "documents": CORPUS_DOCUMENTS,
        "documents_per_second_and_process": rate,
        "core_hours": seconds / 3600,
        "cores_of_a_cluster": CLUSTER_CORES,
        "hours_on_the_cluster": seconds / CLUSTER_CORES / 3600,
        "hours_on_64_cores": seconds / 64 / 3600,
        "terabytes": pages * runs[best]["bytes_per_page"] / 1e12,
    }


def main() -> None:
    """Measure, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[1000, 250], metavar="N", help="sizes of the corpora (1000 250)"
    )
    parser.add_argument("--languages", type=float, default=0.1, help="share of documents in other languages (0.1)")
    parser.add_argument("--folder", type=Path, help="where to work; needs twice the largest size (a temporary folder)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    sizes = sorted(arguments.megabytes, reverse=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        corpus = folder / "corpus.jsonl"
        make_corpus(corpus, sizes[0] * 1_000_000, arguments.languages)
        runs, written = {}, {}
        for form in FORMS:
            runs[form], written[form] = run(form, corpus, folder / "out")
            show(form, runs[form])
        equal = all(a == b for a, b in itertools.pairwise(written.values()))
        memory = [runs["2 workers"]]
        for size in sizes[1:]:
            make_corpus(corpus, size * 1_000_000, arguments.languages)
            memory.append(run("2 workers", corpus, folder / "out")[0])
            show("2 workers", memory[-1])
    scaling = {form: runs[form]["pages_per_second"] / runs["1 worker"]["pages_per_second"] for form in list(FORMS)[1:]}
    future = extrapolation(runs)
    print(f"datasets equal byte for byte: {'yes' if equal else 'NO'}")
    print("scaling: " + ", ".join(f"{form} {factor:.2f}x" for form, factor in scaling.items()))
    print(
        f"400 million such documents: {future['core_hours']:,.0f} hours of one core like this one, "
        f"{future['hours_on_64_cores']:,.1f} hours on 64 of them, {future['hours_on_the_cluster']:,.1f} hours on "
        f"{CLUSTER_CORES:,}; {future['terabytes']:.2f} TB"
    )
    keys = ("input_megabytes", "rss_largest_megabytes", "rss_sum_megabytes", "rss_each_megabytes")
    figures = {
        "runs": runs,
        "scaling": scaling,
        "equal_bytes": equal,
        "memory": [{key: each[key] for key in keys} for each in memory],
        "extrapolation": future,
    }
    result_file.write(arguments.json, figures, libraries=("mpi4py",))
    if not equal:
        raise SystemExit("error: the datasets differ")


if __name__ == "__main__":
    main()
