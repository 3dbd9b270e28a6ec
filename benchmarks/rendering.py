#!/usr/bin/env python
"""How fast is text rendered, against Pango-Cairo and Pillow on the same core, fonts and documents?

    python benchmarks/rendering.py
    python benchmarks/rendering.py --json benchmarks/results/rendering.json

Two mixes of documents of 2,500 characters: English (presidential messages) and twelve languages, one a document
(interface translations). Everybody draws into a strip of 1,024 patches. Ours ends at the page and comes out in the
compact form that is stored, or expanded to RGB patches; Pango-Cairo leaves its image surface; Pillow draws the line
with the first font alone, for it has no fallback, so most of the multilingual mix is empty boxes there.

Three states of the caches. `warm`: both sides have drawn these very documents before. Our renderer keeps words as well
as glyphs, which flatters it here, so `new words`: all glyphs are there, but the words were learned from other documents
(the documents are dealt into `--folds` parts, and each part is timed by a renderer that knows the words of the others);
Pango stays warm. This is what a large corpus is like, though 200 documents teach few of its words. `cold`: a renderer
that has seen nothing, the making of its tables included. Both sides take turns, and a ratio is the median over
`--repeats` turns. Times are of the processor. Where our time goes (`microseconds`) and what HarfBuzz takes for whole
runs (the floor of a renderer that keeps no words) are measured with everything warm.

Pango needs its Python bindings in some interpreter (`--pango-python`; Debian: python3-gi python3-gi-cairo
gir1.2-pango-1.0); without them its figures are left out.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from benchmarks import result_file
from examples import demo_corpus
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering import layout
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.rendering.seams import WHOLE
from megatron_pixel.rendering.shaping import IS_WORD

PATCHES, SIZE = 1024, 16
CHARACTERS = 2500
LANGUAGES = "ar de el es fr he hi ja ko ru th zh_Hans".split()
ITEMIZING = (
    *("itemize_simple", "replace_controls", "mark_grapheme_starts", "assign_scripts", "choose_fonts", "make_styles"),
    *("make_runs", "mark_boundaries", "find_cut"),
)


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


def seconds(render: Callable[[str], Any], documents: list[str]) -> float:
    """Processor seconds of one pass."""
    started = time.process_time()
    for text in documents:
        render(text)
    return time.process_time() - started


class Pango:
    """The peer in a process of its own, with our fonts and no others; answers with the seconds of a pass."""

    def __init__(self, python: str, scratch: str) -> None:
        folders = {font.path.parent for font in find_fonts([], "default")}
        config = Path(scratch) / "fonts.conf"
        entries = "".join(f"<dir>{folder}</dir>" for folder in sorted(folders))
        config.write_text(f"<fontconfig>{entries}<cachedir>{scratch}/cache</cachedir></fontconfig>", encoding="utf-8")
        self._process = subprocess.Popen(
            [python, str(ROOT / "benchmarks" / "pango_peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "FONTCONFIG_FILE": str(config)},
        )
        self.version: str | None = self._answer({"patches": PATCHES}).get("version")

    def seconds(self, documents: list[str]) -> float | None:
        """Processor seconds of a pass over documents; None where the bindings are missing."""
        return self._answer({"documents": documents}).get("seconds") if self.version else None

    def close(self) -> None:
        """End the process."""
        if self._process.stdin and self.version:
            self._process.stdin.close()
        self._process.wait()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            print(f"no Pango: {self._process.stderr.read().strip().splitlines()[-1]}", file=sys.stderr)
            return {}
        answer: dict[str, Any] = json.loads(line)
        return answer


def pillow() -> Callable[[str], Any]:
    """Draws a document with Pillow and libraqm, the line in the first font of the chain."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.truetype(
        str(find_fonts([], "default")[0].path), round(8 * 120 / 72), layout_engine=ImageFont.Layout.RAQM
    )

    def render(text: str) -> Any:
        image = Image.new("L", (PATCHES * SIZE, SIZE), 255)
        ImageDraw.Draw(image).text((2, 12), text, fill=0, font=font, anchor="ls")
        return np.asarray(image)

    return render


def split(renderer: Renderer, documents: list[str]) -> dict[str, float]:
    """Microseconds a document by step, the compiled functions timed one by one; ``rest`` is Python around them."""
    spent = {"itemize": 0.0, "shape": 0.0}
    originals = {name: getattr(layout, name) for name in (*ITEMIZING, "shape_runs", "place_runs")}

    def timed(function: Callable[..., Any], step: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            spent[step] += time.perf_counter() - started
            return result

        return call

    for name, function in originals.items():
        setattr(layout, name, timed(function, "itemize" if name in ITEMIZING else "shape"))
    whole = blit = expansion = 0.0
    for text in documents:
        started = time.perf_counter()
        page = renderer.render(text)
        laid_out = time.perf_counter()
        page.columns  # noqa: B018 (drawn when asked for)
        drawn = time.perf_counter()
        page.patches(3)
        whole, blit, expansion = (
            whole + laid_out - started,
            blit + drawn - laid_out,
            expansion + time.perf_counter() - drawn,
        )
    for name, function in originals.items():
        setattr(layout, name, function)
    steps = {**spent, "rest": whole - sum(spent.values()), "blit": blit, "expand": expansion}
    return {name: value / len(documents) * 1e6 for name, value in steps.items()}


def shaping_floor(documents: list[str]) -> float:
    """Microseconds a document that HarfBuzz takes for whole runs, in a compiled loop and with nothing kept."""
    text_layout = Renderer(RenderingConfig(seq_length=PATCHES))._layout
    plans = text_layout._seams
    spent = []
    for text in documents:
        codepoints = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        text_layout._itemize(codepoints)  # makes the plans that it needs
        plans.kinds[:] = WHOLE
        itemized = text_layout._itemize(codepoints)
        itemized.runs[:, IS_WORD] = 0
        text_layout._shape(itemized.drawn, itemized.runs, 0, (PATCHES - 1) * SIZE)  # warms HarfBuzz
        started = time.perf_counter()
        text_layout._shape(itemized.drawn, itemized.runs, 0, (PATCHES - 1) * SIZE)
        spent.append(time.perf_counter() - started)
    return statistics.fmean(spent) * 1e6


def draw(renderer: Renderer, text: str) -> np.ndarray:
    """The compact page."""
    return renderer.render(text).columns


def expand(renderer: Renderer, text: str) -> np.ndarray:
    """The page as RGB patches."""
    return renderer.render(text).patches(3)


def measure(documents: list[str], arguments: argparse.Namespace, peer: Pango) -> dict[str, Any]:
    """Figures of one mix."""
    count = len(documents)
    peer.seconds(documents)
    turns: list[dict[str, float]] = []
    compact = Renderer(RenderingConfig(seq_length=PATCHES))
    seconds(partial(draw, compact), documents)
    for _ in range(arguments.repeats):
        turn = dict.fromkeys(("cold", "new_words", "warm", "rgb", "pango"), 0.0)
        for fold in range(arguments.folds):
            timed = documents[fold :: arguments.folds]
            others = [text for place, text in enumerate(documents) if place % arguments.folds != fold]
            turn["cold"] += seconds(partial(draw, Renderer(RenderingConfig(seq_length=PATCHES))), timed)
            compact._layout._cache.clear()
            seconds(partial(draw, compact), others)
            turn["new_words"] += seconds(partial(draw, compact), timed)
            turn["warm"] += seconds(partial(draw, compact), timed)
            turn["rgb"] += seconds(partial(expand, compact), timed)
            turn["pango"] += peer.seconds(timed) or 0.0
        turns.append(turn)
    patches = sum(compact.render(text).num_patches for text in documents)
    rate = {name: count / statistics.median(turn[name] for turn in turns) for name in turns[0] if turns[0][name]}

    def ratio(name: str) -> float | None:
        return statistics.median(turn["pango"] / turn[name] for turn in turns) if peer.version else None

    some = documents[: max(1, count // 20)]
    return {
        "documents": count,
        "patches_per_document": patches / count,
        "documents_per_second": rate["warm"],
        "new_words_documents_per_second": rate["new_words"],
        "cold_documents_per_second": rate["cold"],
        "rgb_documents_per_second": rate["rgb"],
        "patches_per_second": rate["warm"] * patches / count,
        "rgb_patches_per_second": rate["rgb"] * patches / count,
        "pango_documents_per_second": rate.get("pango"),
        "pango_version": peer.version,
        "pillow_documents_per_second": len(some) / seconds(pillow(), some),
        "ratio_to_pango": ratio("warm"),
        "rgb_ratio_to_pango": ratio("rgb"),
        "new_words_ratio_to_pango": ratio("new_words"),
        "cold_ratio_to_pango": ratio("cold"),
        "microseconds": split(compact, documents),
        "shaping_floor_microseconds": shaping_floor(documents),
    }


def show(name: str, figures: dict[str, Any]) -> None:
    """Print the figures of one mix."""
    print(f"{name}: {figures['documents']} documents, {figures['patches_per_document']:.0f} patches each")
    rows = (("ours", "documents"), ("ours, RGB", "rgb_documents"), ("ours, new words", "new_words_documents"))
    peers = (("ours, cold", "cold_documents"), ("Pango-Cairo", "pango_documents"), ("Pillow", "pillow_documents"))
    for label, key in (*rows, *peers):
        if rate := figures[f"{key}_per_second"]:
            patches = rate * figures["patches_per_document"] / 1e6
            print(f"  {label:20} {rate:8,.0f} documents/s  {patches:6.2f} million patches/s")
    if figures["ratio_to_pango"]:
        print(
            f"  ratio to Pango       {figures['ratio_to_pango']:8.1f}, RGB {figures['rgb_ratio_to_pango']:.1f}, "
            f"new words {figures['new_words_ratio_to_pango']:.1f}, cold {figures['cold_ratio_to_pango']:.2f}"
        )
    steps = ", ".join(f"{step} {value:.0f}" for step, value in figures["microseconds"].items())
    print(f"  microseconds, warm   {steps}; shaping of whole runs alone {figures['shaping_floor_microseconds']:.0f}")


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=200, help="documents of each mix (default: %(default)s)")
    parser.add_argument("--folds", type=int, default=6, help="parts that are timed one by one (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of either side (default: %(default)s)")
    parser.add_argument("--pango-python", default="/usr/bin/python3", help="interpreter with Pango's bindings")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        peer = Pango(arguments.pango_python, scratch)
        for name, documents in mixes(arguments.documents).items():
            results[name] = measure(documents, arguments, peer)
            show(name, results[name])
        peer.close()
    result_file.write(arguments.json, results, libraries=("numba", "uharfbuzz", "freetype-py", "pillow"))


if __name__ == "__main__":
    main()
