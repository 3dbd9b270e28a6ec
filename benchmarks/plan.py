#!/usr/bin/env python
"""What do the paper's four runs take? Positions, hours, disk and source text of the full recipes.

The tables of docs/reproduce.md are this program's output. Everything is arithmetic on the recipes, on the paper's
Table 7 and on the assumptions below, each of which is an option; nothing is measured here.

    python benchmarks/plan.py
    python benchmarks/plan.py --devices 64 --peak-tflops 989 --mfu 0.35
"""

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config import RunConfig, load_config
from megatron_pixel.config.mixture import parse_mixture, parse_source, rows_per_kind
from megatron_pixel.training.throughput import flops_per_step

RECIPES = Path(__file__).resolve().parents[1] / "megatron_pixel" / "config" / "recipes"
SYSTEMS = {"textgpt": "TextGPT", "pixelgpt": "PixelGPT", "monogpt": "MonoGPT", "dualgpt": "DualGPT"}
BYTES_PER_TOKEN = 2
"""Token files hold 16-bit numbers for a vocabulary of 32,000."""


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
    """What the estimates rest on besides the recipes."""

    devices: int = 32
    peak_tflops: float = 312.0
    """Of one device, dense bf16; 312 for an A100."""
    mfu: float = 0.4
    """Share of the peak that the model's own operations reach."""
    bytes_per_page: float = 910.0
    """Of a page of 1,024 patches on disk; 249 English speeches of 12 MB made 4,659 pages of 906 bytes."""
    pages_per_core_second: float = 1000.0
    """Rendered, encoded and written by one core, rounded down."""
    characters_per_patch: float = 2.62
    """The same 12 MB of English filled 4,638,043 patches."""
    characters_per_token: float = 4.0
    """Of English text in a vocabulary of 32,000, roughly."""


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
            size += share * source.patches(given) * given.bytes_per_page / 1024
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
        pages, patches = source.pages(given, 1024), source.patches(given)
        token_tb = source.tokens * 1e9 * BYTES_PER_TOKEN / 1e12
        page_tb = patches / 1024 * given.bytes_per_page / 1e12
        lines.append(
            f"| {source.title} | {source.documents:,} | {token_tb:.2f} | {pages / 1e6:,.0f} "
            f"| {patches / pages / 1024:.0%} | {page_tb:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the tables, and write the figures where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Assumptions):
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=type(field.default), default=field.default, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    options = vars(parser.parse_args())
    target = options.pop("json")
    given = Assumptions(**options)
    plans = {name: plan(load_config(RECIPES / f"{name}.yaml"), given) for name in SYSTEMS}
    tables = runs_table(plans), disk_table(plans), sources_table(plans), corpora_table(given)
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
