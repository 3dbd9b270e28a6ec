#!/usr/bin/env python
"""What do the paper's four runs take? Positions, hours, disk and source text of the full recipes.

The tables of docs/reproduce.md are this program's output. Everything is arithmetic on the recipes, on the paper's
Table 7 and on the assumptions of the last table, each of which is an option. Those about pages and their rendering are
measurements of this project, read from benchmarks/results; nothing is measured here.

    python benchmarks/plan.py
    python benchmarks/plan.py --devices 64 --peak-tflops 989 --mfu 0.35
"""

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.result_file import RESULTS
from megatron_pixel.config import RunConfig, load_config
from megatron_pixel.config.mixture import parse_mixture, parse_source, rows_per_kind
from megatron_pixel.training.throughput import flops_per_step

RECIPES = Path(__file__).resolve().parents[1] / "megatron_pixel" / "config" / "recipes"
SYSTEMS = {"textgpt": "TextGPT", "pixelgpt": "PixelGPT", "monogpt": "MonoGPT", "dualgpt": "DualGPT"}
BYTES_PER_TOKEN = 2
"""Token files hold 16-bit numbers for a vocabulary of 32,000."""
PAGE = 1024
"""Patches of a page, where bytes and documents are told by the page."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A row of the paper's Table 7."""

    title: str
    gzip_gb: float
    documents: float
    """Millions."""
    tokens: float
    """Billions."""

    def patches(self, given: "Assumptions") -> float:
        """Patches of all its documents."""
        return self.tokens * 1e9 * given.characters_per_token / given.characters_per_patch

    def pages(self, given: "Assumptions", patches_per_page: int) -> float:
        """Pages of all its documents; the last page of each is half full on average."""
        return self.patches(given) / patches_per_page + self.documents * 1e6 / 2


SOURCES = {
    "common-crawl": Source("Common Crawl", 4197, 4600, 2415),
    "c4": Source("C4", 302, 364, 175),
    "pes2o": Source("peS2o", 150, 38.8, 57),
    "stack": Source("The Stack", 319, 236, 430),
    "gutenberg": Source("Project Gutenberg", 6.6, 0.052, 4.8),
    "wikipedia": Source("Wikipedia", 5.8, 6.1, 3.6),
}


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What the estimates rest on besides the recipes; :func:`stated` tells defaults, meaning and origin of each."""

    devices: int
    peak_tflops: float
    mfu: float
    bytes_per_page: float
    pages_per_core_second: float
    characters_per_patch: float
    characters_per_token: float


class Stated(NamedTuple):
    """An assumption: its default, what it means, and where it is from."""

    value: float
    meaning: str
    origin: str


def stated() -> dict[str, Stated]:
    """Every assumption by its name; what this project has measured comes from its committed results."""
    english = read("storage")["english"]
    preprocessing = read("preprocessing")
    documents = preprocessing["extrapolation"]["documents_per_second_and_process"]
    run = next(iter(preprocessing["runs"].values()))
    patches = english["patches_per_page"]
    return {
        "devices": Stated(32, "GPUs", "the paper, appendix D"),
        "peak_tflops": Stated(312.0, "TFLOP/s of one of them, dense bf16", "an A100's data sheet"),
        "mfu": Stated(0.4, "share of it that the model's own operations reach", "assumed"),
        "bytes_per_page": Stated(
            three_digits(english["bytes_per_page"] * PAGE / patches),
            f"bytes of {PAGE:,} patches on disk",
            "English in `results/storage.json`",
        ),
        "pages_per_core_second": Stated(
            three_digits(documents * run["pages"] / run["documents"]),
            "pages that a core renders, encodes and writes in a second",
            "`results/preprocessing.json`",
        ),
        "characters_per_patch": Stated(
            three_digits(english["characters_per_page"] / patches),
            "characters of a patch",
            "English in `results/storage.json`",
        ),
        "characters_per_token": Stated(4.0, "characters of a token, of 32,000", "assumed"),
    }


def read(name: str) -> dict[str, Any]:
    """A committed result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def three_digits(value: float) -> float:
    return float(f"{value:.3g}")


def plan(config: RunConfig, given: Assumptions) -> dict[str, Any]:
    """Totals of one run over all its steps.

    Every position counts, padding included: it costs the same work. Rows are read once; documents that are too few are
    read again by the sampler, which then costs less disk than told here.
    """
    per_step = rows_per_kind(parse_mixture(config.data.mixture), config.training.global_batch_rows)
    steps, length = config.training.steps, config.model.seq_length
    tokens = steps * (per_step.text * length + per_step.pair * config.pair.tokens)
    patches = steps * (per_step.pixel * length + per_step.pair * config.pair.patches)
    flops = flops_per_step(config.model, tokens + patches, tokens, patches, patches)
    shares = {
        "text": _shares(config.data.text, lambda source: steps * per_step.text * length / (source.tokens * 1e9)),
        "pixels": _shares(config.data.pixels, lambda source: steps * per_step.pixel / source.pages(given, length)),
        "pairs": _shares(
            config.data.pairs, lambda source: steps * per_step.pair / source.pages(given, config.pair.patches)
        ),
    }
    return {
        "steps": steps,
        "rows": per_step._asdict(),
        "tokens": tokens,
        "patches": patches,
        "flops": flops,
        "hours": flops / (given.devices * given.mfu * given.peak_tflops * 1e12) / 3600,
        "shares": shares,
        "disk": {section: _disk(section, share, given) for section, share in shares.items()},
        "core_hours": steps * (per_step.pixel + per_step.pair) / given.pages_per_core_second / 3600,
    }


def _shares(entries: list[str], of_whole: Callable[[Source], float]) -> dict[str, float]:
    """Share of each source that a run reads; ``of_whole`` is that share if all rows came from it."""
    weighted = [parse_source(entry) for entry in entries]
    total = sum(source.weight for source in weighted)
    named = {Path(prefix).name: weight / total for weight, prefix in weighted}
    return {name: weight * of_whole(SOURCES[name]) for name, weight in named.items()}


def _disk(section: str, shares: dict[str, float], given: Assumptions) -> float:
    """Bytes of the datasets that hold these shares of the sources."""
    size = 0.0
    for name, share in shares.items():
        source = SOURCES[name]
        if section != "pixels":
            size += share * source.tokens * 1e9 * BYTES_PER_TOKEN
        if section != "text":
            size += share * source.patches(given) * given.bytes_per_page / PAGE
    return size


def runs_table(plans: dict[str, dict[str, Any]]) -> str:
    """Positions and hours, a line a system."""
    lines = [
        "| system | steps | text, pixel, pair rows a step | tokens (B) | patches (B) | 10^20 FLOPs | hours |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figures in plans.items():
        rows = ", ".join(f"{count:,}" for count in figures["rows"].values())
        tokens, patches = figures["tokens"] / 1e9, figures["patches"] / 1e9
        lines.append(
            f"| {SYSTEMS[name]} | {figures['steps']:,} | {rows} | {tokens:.1f} | {patches:.1f} "
            f"| {figures['flops'] / 1e20:.2f} | {figures['hours']:.0f} |"
        )
    token, patch = (
        plans[name]["flops"] / plans[name][of] for name, of in (("textgpt", "tokens"), ("pixelgpt", "patches"))
    )
    lines += ["", f"A token costs {token / 1e9:.1f} x 10^9 operations, a patch {patch / 1e9:.1f} x 10^9."]
    return "\n".join(lines)


def disk_table(plans: dict[str, dict[str, Any]]) -> str:
    """Terabytes of the datasets that a run reads once, and the cores to render them, a line a system."""
    lines = ["| system | text (TB) | pixels (TB) | pairs (TB) | all (TB) | core-hours |", "|---|---|---|---|---|---|"]
    for name, figures in plans.items():
        sizes = [size / 1e12 for size in figures["disk"].values()]
        cells = [*(f"{size:.2f}" for size in [*sizes, sum(sizes)]), f"{figures['core_hours']:,.0f}"]
        lines.append(f"| {SYSTEMS[name]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sources_table(plans: dict[str, dict[str, Any]]) -> str:
    """Share of each source that a system reads in all, and the gzip files that hold it."""
    lines = [
        "| source | gzip files (GB) | tokens (B) | " + " | ".join(SYSTEMS[name] for name in plans) + " |",
        "|---|---|---|" + "---|" * len(plans),
    ]
    for name, source in SOURCES.items():
        cells = []
        for figures in plans.values():
            share = sum(section.get(name, 0.0) for section in figures["shares"].values())
            cells.append(f"{share:.1%}, {share * source.gzip_gb:,.1f} GB" if share else "-")
        lines.append(f"| {source.title} | {source.gzip_gb:,} | {source.tokens:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def corpora_table(given: Assumptions) -> str:
    """Every source as a whole: what its token files and its pages would take."""
    lines = [
        "| source | documents (M) | token files (TB) | pages (M) | filled | page files (TB) |",
        "|---|---|---|---|---|---|",
    ]
    for source in SOURCES.values():
        pages, patches = source.pages(given, PAGE), source.patches(given)
        token_tb = source.tokens * 1e9 * BYTES_PER_TOKEN / 1e12
        page_tb = patches / PAGE * given.bytes_per_page / 1e12
        lines.append(
            f"| {source.title} | {source.documents:,} | {token_tb:.2f} | {pages / 1e6:,.0f} "
            f"| {patches / pages / PAGE:.0%} | {page_tb:.2f} |"
        )
    return "\n".join(lines)


def assumptions_table(given: Assumptions, known: Mapping[str, Stated]) -> str:
    """What all of it rests on, a line an option."""
    lines = ["| option | value | what it is | from |", "|---|---|---|---|"]
    for name, value in dataclasses.asdict(given).items():
        origin = known[name].origin if value == known[name].value else "given"
        lines.append(f"| `{option(name)}` | {value:g} | {known[name].meaning} | {origin} |")
    return "\n".join(lines)


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def main() -> None:
    """Print the tables, and write the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = stated()
    for name, (value, meaning, origin) in known.items():
        text = f"{meaning} (default: %(default)s; {origin})"
        parser.add_argument(option(name), type=type(value), default=value, help=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = vars(parser.parse_args())
    target = options.pop("json")
    given = Assumptions(**options)
    plans = {name: plan(load_config(RECIPES / f"{name}.yaml"), given) for name in SYSTEMS}
    tables = [runs_table(plans), disk_table(plans), sources_table(plans), corpora_table(given)]
    tables.append(assumptions_table(given, known))
    print("\n\n".join(tables))
    if target:
        report = {
            "assumptions": dataclasses.asdict(given),
            "runs": plans,
            "versions": {"python": platform.python_version()},
            "machine": platform.platform(),
        }
        target.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
