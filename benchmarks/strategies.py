#!/usr/bin/env python
"""How many distinct patches does each rendering strategy make of the same text?

    python benchmarks/strategies.py
    python benchmarks/strategies.py --json benchmarks/results/strategies.json

The text is English: documents of 2,500 characters (presidential messages), the same for all strategies, on pages of
1,024 patches. Patches are compared pixel by pixel; the black end patches are left out. ``new`` is how many of 1,000
patches of the last tenth of the text are in none of the nine tenths before. Documents a second are processor time of
one core, from text to the compact page, caches warm; bytes are those of the page codec ``glyphs``, which learned from
the first half of the pages and stores the second.
"""

import argparse
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from benchmarks.rendering import mixes
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data.codec import train_codec
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.rendering.strategies import STRATEGIES


def patches_of(pages: list[Page]) -> list[bytes]:
    """Every patch but the black ones at the end, as its bytes."""
    return [patch.tobytes() for page in pages for patch in page.patches(1)[:-1]]


def distinct(documents: list[list[Page]]) -> dict[str, Any]:
    """Counts of the patches of documents."""
    last_tenth = len(documents) * 9 // 10
    before = Counter(patches_of([page for pages in documents[:last_tenth] for page in pages]))
    after = Counter(patches_of([page for pages in documents[last_tenth:] for page in pages]))
    counts = before + after
    total = counts.total()
    covered, needed = 0, 0
    for count in sorted(counts.values(), reverse=True):
        covered += count
        needed += 1
        if covered >= 0.9 * total:
            break
    return {
        "patches": total,
        "distinct_patches": len(counts),
        "seen_once": sum(count == 1 for count in counts.values()),
        "patches_for_90_percent": needed,
        "new_of_1000_patches": 1000 * sum(n for patch, n in after.items() if patch not in before) / after.total(),
    }


def bytes_per_page(renderer: Renderer, pages: list[Page], folder: Path) -> float:
    """What the second half of the pages takes when a codec has learned from the first half."""
    half = len(pages) // 2
    codec = train_codec(pages[:half], renderer)
    sizes = [len(codec.encode(page)) for page in pages[half:]]
    codec.save(str(folder / "set"), codec.take_used(), renderer)
    return sum(sizes) / len(sizes)


def measure(strategy: str, documents: list[str], repeats: int) -> dict[str, Any]:
    """Figures of a strategy."""
    renderer = Renderer(RenderingConfig(strategy=strategy))  # type: ignore[arg-type]
    pages = [renderer.pages(text) for text in documents]
    figures = distinct(pages)
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        for text in documents:
            renderer.pages(text)
        seconds.append(time.process_time() - started)
    characters = sum(map(len, documents))
    with TemporaryDirectory() as folder:
        size = bytes_per_page(renderer, [page for document in pages for page in document], Path(folder))
    return {
        **figures,
        "characters_per_patch": characters / figures["patches"],
        "documents_per_second": len(documents) / statistics.median(seconds),
        "bytes_per_page": size,
        "bytes_per_1000_characters": size * sum(map(len, pages)) / characters * 1000,
    }


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=400, help="of 2,500 characters (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes (default: %(default)s)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    documents = mixes(arguments.documents)["english"]
    results: dict[str, Any] = {"documents": len(documents), "characters": sum(map(len, documents)), "strategies": {}}
    print(f"{len(documents)} documents, {results['characters']:,} characters")
    heads = {"patches": 10, "distinct": 10, "once": 10, "for 90%": 10, "new": 8, "documents/s": 14, "bytes/page": 12}
    print(" " * 12 + "".join(f"{head:>{width}}" for head, width in heads.items()))
    for strategy in STRATEGIES:
        results["strategies"][strategy] = found = measure(strategy, documents, arguments.repeats)
        print(
            f"{strategy:12}{found['patches']:>10,}{found['distinct_patches']:>10,}{found['seen_once']:>10,}"
            f"{found['patches_for_90_percent']:>10,}{found['new_of_1000_patches']:>8.1f}"
            f"{found['documents_per_second']:>14,.0f}{found['bytes_per_page']:>12,.0f}"
        )
    result_file.write(arguments.json, results)


if __name__ == "__main__":
    main()
