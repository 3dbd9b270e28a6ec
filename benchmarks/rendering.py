#!/usr/bin/env python
"""How fast is text rendered, against Pango-Cairo on the same core, fonts and documents?

    python benchmarks/rendering.py
    python benchmarks/rendering.py --json rendering.json

Two mixes of documents of 2,500 characters: English (presidential messages) and twelve languages, one a document
(interface translations). Both sides draw into a strip of 1,024 patches; ours ends at the page and comes out in the
compact form that is stored (``documents/s``) and expanded to RGB patches. The figures are medians over repeats in one
process each, caches warm; ``cold`` is the first pass. Pango needs its Python bindings in some interpreter
(``--pango-python``; Debian: python3-gi python3-gi-cairo gir1.2-pango-1.0); without them its figures are left out.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from examples import demo_corpus
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.renderer import Renderer

PATCHES = 1024
CHARACTERS = 2500
LANGUAGES = "ar de el es fr he hi ja ko ru th zh_Hans".split()


def cut(texts: Iterator[str], count: int) -> list[str]:
    """The first ``count`` stretches of 2,500 characters, a line each."""
    stretches = (" ".join(text.split())[:CHARACTERS] for text in texts)
    return list(itertools.islice((text for text in stretches if len(text) == CHARACTERS), count))


def mixes(count: int) -> dict[str, list[str]]:
    """Documents by mix."""
    english = (
        message["text"][first : first + 2 * CHARACTERS]
        for message in demo_corpus.messages()
        for first in range(0, 10 * CHARACTERS, 2 * CHARACTERS)
    )
    by_language: dict[str, list[str]] = {}
    for document in demo_corpus.translations():
        language = document["source"].removeprefix("django-")
        if language in LANGUAGES:
            by_language.setdefault(language, []).append(document["text"])
    joined = [" ".join(" ".join(texts).split()) for texts in by_language.values()]
    pieces = [[text[i : i + CHARACTERS] for i in range(0, len(text), CHARACTERS)] for text in joined]
    turns = (piece for turn in itertools.zip_longest(*pieces) for piece in turn if piece is not None)
    return {"english": cut(english, count), "multilingual": cut(turns, count)}


def timed(render: Callable[[str], Any], documents: list[str], repeats: int) -> dict[str, Any]:
    """Seconds of a cold pass over the documents, and of warm ones."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        for text in documents:
            render(text)
        seconds.append(time.perf_counter() - started)
    return {"cold": seconds[0], "warm": seconds[1:]}


def pango(python: str, documents: list[str], repeats: int) -> dict[str, Any] | None:
    """The peer's seconds in a process of its own, with our fonts and no others; None where its bindings are missing."""
    folders = {font.path.parent for font in find_fonts([], "default")}
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch) / "fonts.conf"
        entries = "".join(f"<dir>{folder}</dir>" for folder in sorted(folders))
        config.write_text(f"<fontconfig>{entries}<cachedir>{scratch}/cache</cachedir></fontconfig>", encoding="utf-8")
        job = json.dumps({"documents": documents, "patches": PATCHES, "repeats": repeats})
        done = subprocess.run(
            [python, str(ROOT / "benchmarks" / "pango_peer.py")],
            input=job,
            capture_output=True,
            text=True,
            env={**os.environ, "FONTCONFIG_FILE": str(config)},
        )
    if done.returncode:
        print(f"no Pango: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(documents: list[str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Figures of one mix."""
    renderer = Renderer(RenderingConfig(seq_length=PATCHES))
    started = time.perf_counter()
    renderer.render(documents[0])
    first = time.perf_counter() - started
    patches = sum(renderer.render(text).num_patches for text in documents)
    count = len(documents)
    compact = timed(renderer.render, documents, arguments.repeats)
    rgb = timed(lambda text: renderer.render(text).patches(3), documents, arguments.repeats)
    peer = pango(arguments.pango_python, documents, arguments.repeats)
    ours = count / statistics.median(compact["warm"])
    ours_rgb = count / statistics.median(rgb["warm"])
    theirs = count / statistics.median(peer["warm"]) if peer else None
    return {
        "documents": count,
        "patches_per_document": patches / count,
        "first_document_seconds": first,
        "documents_per_second": ours,
        "cold_documents_per_second": count / compact["cold"],
        "patches_per_second": ours * patches / count,
        "rgb_documents_per_second": ours_rgb,
        "pango_documents_per_second": theirs,
        "pango_version": peer["version"] if peer else None,
        "ratio_to_pango": ours / theirs if theirs else None,
        "rgb_ratio_to_pango": ours_rgb / theirs if theirs else None,
    }


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200, help="documents of each mix (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="warm passes (default: %(default)s)")
    parser.add_argument("--pango-python", default="/usr/bin/python3", help="interpreter with Pango's bindings")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"machine": platform.platform(), "python": platform.python_version()}
    for name, documents in mixes(arguments.documents).items():
        results[name] = figures = measure(documents, arguments)
        print(f"{name}: {figures['documents']} documents, {figures['patches_per_document']:.0f} patches each")
        print(f"  ours     {figures['documents_per_second']:8,.0f} documents/s, ", end="")
        print(f"{figures['patches_per_second'] / 1e6:.2f} million patches/s; ", end="")
        print(f"expanded to RGB {figures['rgb_documents_per_second']:,.0f}")
        if figures["ratio_to_pango"]:
            print(f"  Pango    {figures['pango_documents_per_second']:8,.0f} documents/s ({figures['pango_version']})")
            print(f"  ratio    {figures['ratio_to_pango']:8.1f}, expanded {figures['rgb_ratio_to_pango']:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
