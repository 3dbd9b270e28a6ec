#!/usr/bin/env python
"""What does document packing give, in targets a second?

    python benchmarks/packing.py
    python benchmarks/packing.py --rounds 3 --json packing.json
    python benchmarks/packing.py --kinds pixel --rounds 0 --plan-pages 400000000

A corpus of short documents is made of presidential messages: the r-th longest of 2,000 has 3,000 / r^0.3 characters,
so most have a few hundred. Of it come datasets of pages, pairs and text, with plans of the first two (``pack.py``).
Forward and backward passes of the model of the CPU's benchmarks (4 layers of the paper's width, fp32) take turns over
rows of 1,024 positions: a document a row, and packed. Targets a second are those of a row, mean over the whole
dataset, by the time of a row, median over rounds. Text rows are full either way; there the ratio is the time that
documents save which do not see each other. What is no target's doing is padding: its share of all positions is
printed too.

Then ``pack.py`` makes plans of 4 and 40 million pages (``--plan-pages``), which are those of the corpus over and over:
seconds from its start to its end in one process, and the memory of its own.

Takes about 6 minutes on 2 cores, and 500 MB of disk meanwhile.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from benchmarks.dataloader_step import CPU_MODEL
from benchmarks.packing_plans import measure_plan
from benchmarks.rendering import mixes
from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.config.schema import DataConfig, LossConfig, PairConfig, ParallelConfig, TrainingConfig
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.mixture import MixtureReader, open_training
from megatron_pixel.data.packing import plan_prefix, read_facts
from megatron_pixel.data.packing_datasets import pack_dataset
from megatron_pixel.data.rows import Kind, MicroBatch
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import mesh

DOCUMENTS, LONGEST, EXPONENT = 2000, 3000, 0.3
KINDS = {"pixel": ("pixels", "0:1:0"), "pair": ("pairs", "0:0:1"), "text": ("text", "1:0:0")}
"""Kind of rows -> kind of dataset, mixture."""
PLAN_PAGES = (4_000_000, 40_000_000)
VOCABULARY = 1000
CPU_MODEL_WITH_VOCABULARY = replace(CPU_MODEL, vocab_size=VOCABULARY)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="rows (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="times that both ways take turns (default: 5)")
    parser.add_argument("--rows", type=int, default=2, help="rows of a turn (default: 2)")
    parser.add_argument("--plan-pages", type=int, nargs="*", default=PLAN_PAGES, help="sizes of the datasets to plan")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, mesh(ParallelConfig()):
        progress("making the datasets")
        prefixes = make_datasets(Path(folder), arguments.kinds)
        kinds = arguments.kinds if arguments.rounds else []
        figures: dict[str, Any] = {
            kind: measure(kind, prefixes[kind], arguments.rounds, arguments.rows) for kind in kinds
        }
        figures["plans"] = plan(Path(folder), prefixes, arguments.plan_pages)
    figures["model"] = {"layers": CPU_MODEL.layers, "hidden": CPU_MODEL.hidden}
    print(table(figures))
    result_file.write(arguments.json, figures, ("torch",))


def make_datasets(folder: Path, kinds: list[str]) -> dict[str, str]:
    """Prefix of a dataset of each kind."""
    stretches = mixes(DOCUMENTS // 4)["english"]
    lengths = [int(LONGEST / rank**EXPONENT) for rank in range(1, DOCUMENTS + 1)]
    random.Random(0).shuffle(lengths)
    texts = [(stretches[i % len(stretches)] * 2)[i // 4 : i // 4 + length] for i, length in enumerate(lengths)]
    source, tokenizer = folder / "documents.jsonl", str(folder / "tokenizer.model")
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    words = ["--input", str(source), "--output", tokenizer, "--vocab-size", str(VOCABULARY)]
    run("tokenizer.py", ["train", *words])
    prefixes = {}
    for kind in kinds:
        dataset = KINDS[kind][0]
        prefixes[kind] = str(folder / dataset)
        words = [dataset, "--input", str(source), "--output-prefix", prefixes[kind], "--heldout-fraction", "0"]
        run("preprocess.py", words + ([] if dataset == "pixels" else ["--tokenizer", tokenizer]))
    return prefixes


def run(program: str, words: list[str]) -> None:
    """One of our own programs, in silence."""
    subprocess.run([sys.executable, str(ROOT / "data_tools" / program), *words], check=True, stdout=subprocess.DEVNULL)


def measure(kind: str, prefix: str, rounds: int, rows: int) -> dict[str, float]:
    """The figures of one kind of row."""
    if kind != "text":
        pack_dataset(prefix, CPU_MODEL.seq_length)
    readers = {
        way: open_reader(kind, prefix, rows, packing) for way, packing in (("alone", "none"), ("packed", "documents"))
    }
    model = CPU_MODEL if kind == "pixel" else CPU_MODEL_WITH_VOCABULARY
    objectives = pretraining_objectives(model, LossConfig())
    network = nn.Sequential(*build_stages(model, objectives, seed=0))
    seconds: dict[str, list[float]] = {way: [] for way in readers}
    for number in range(rounds + 1):
        for way, reader in readers.items():
            seconds[way].append(timed(network, objectives, reader.micro_batch(number, 0, 0, 1)) / rows)
        progress(f"{kind}: round {number} of {rounds}")
    counts = Manifest.read(prefix).splits["train"]
    # Of text, where targets depend on where rows are cut, all tokens but the first of each document.
    targets = counts.token_targets + counts.patch_targets if kind != "text" else counts.tokens - counts.documents
    figures = {}
    for way, reader in readers.items():
        figures[f"{way}_targets_a_row"] = targets / reader.num_rows(Kind[kind.upper()])
        figures[f"{way}_row_seconds"] = statistics.median(seconds[way][1:])
        figures[f"{way}_targets_per_second"] = figures[f"{way}_targets_a_row"] / figures[f"{way}_row_seconds"]
    times = statistics.median(b / a for a, b in zip(seconds["alone"][1:], seconds["packed"][1:], strict=True))
    figures["row_seconds_ratio"] = times
    figures["ratio"] = figures["packed_targets_a_row"] / figures["alone_targets_a_row"] / times
    return figures | ({} if kind == "text" else fill(prefix))


def fill(prefix: str) -> dict[str, float]:
    """How full rows are, packed and not."""
    facts = read_facts(plan_prefix(prefix, "train", CPU_MODEL.seq_length))
    return {"alone_fill": facts.fill_alone, "packed_fill": facts.fill, "documents_a_row": facts.pages / facts.rows}


def plan(folder: Path, prefixes: dict[str, str], sizes: Sequence[int]) -> dict[str, dict[str, float]]:
    """The figures of plans of so many pages."""
    figures = {}
    for pages in sorted(sizes) if "pixel" in prefixes else []:
        place = folder / str(pages)
        place.mkdir()
        found = figures[str(pages)] = measure_plan(place, prefixes["pixel"], pages, CPU_MODEL.seq_length)
        progress(f"a plan of {found['pages']:,} pages: {found['seconds']:.1f} s")
    return figures


def open_reader(kind: str, prefix: str, rows: int, packing: Any) -> MixtureReader:
    """A reader of this kind of row alone."""
    dataset, mixture = KINDS[kind]
    data = DataConfig(mixture=mixture, packing=packing)
    setattr(data, dataset, [prefix])
    model = CPU_MODEL if kind == "pixel" else CPU_MODEL_WITH_VOCABULARY
    training = TrainingConfig(global_batch_rows=rows, micro_batch_rows=rows)
    return open_training(data, model, PairConfig(), training, dp_size=1)


def timed(network: nn.Module, objectives: Any, rows: MicroBatch) -> float:
    """Seconds of the forward and backward pass over a micro-batch."""
    begin = time.perf_counter()
    batch = to_tensors(rows, objectives)
    terms = losses(network(batch.inputs), batch.labels, objectives)
    torch.stack([term.sum for term in terms.values()]).sum().backward()
    network.zero_grad()
    return time.perf_counter() - begin


def progress(line: str) -> None:
    """Says what is going on."""
    print(line, file=sys.stderr, flush=True)


def table(figures: dict[str, Any]) -> str:
    """The figures as text."""
    head = (
        ("targets/s alone", 17),
        ("packed", 10),
        ("ratio", 8),
        ("padding alone", 15),
        ("packed", 9),
        ("a row takes", 13),
    )
    lines = [" " * 8 + "".join(f"{title:>{width}}" for title, width in head)]
    for kind in KINDS:
        if kind not in figures:
            continue
        found = figures[kind]
        padding = "".join(f"{1 - found.get(f'{way}_fill', 1.0):>{n}.1%}" for way, n in (("alone", 15), ("packed", 9)))
        lines.append(
            f"{kind:8}{found['alone_targets_per_second']:>17,.0f}{found['packed_targets_per_second']:>10,.0f}"
            f"{found['ratio']:>8.2f}{padding}{found['row_seconds_ratio']:>12.2f}x"
        )
    for found in figures["plans"].values():
        lines.append(
            f"pack.py: {found['pages']:,} pages in {found['seconds']:.1f} s, {found['pages_per_second']:,.0f} pages/s, "
            f"{found['own_bytes'] / 1e6:,.0f} MB of its own"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
