#!/usr/bin/env python
"""How fast is a training step, how close to the device's limit, and how far ahead of other implementations?

    python benchmarks/training.py                                     # CPU: 4 layers of the paper's width; GPU: all 24
    python benchmarks/training.py --size tiny --minutes 1             # a look, in a minute
    python benchmarks/training.py --precision bf16 --kinds text       # one figure
    python benchmarks/training.py --variants all                      # our settings against each other, too
    python benchmarks/training.py --variants parallel.activation_checkpointing=all
    python benchmarks/training.py --json benchmarks/results/training.json

Ours is the run that `pretrain.py` builds: made-up rows of 1,024 positions read ahead by its loader, its loop, engine
and metrics. Peers train the same model on the same rows, with the same DeepSpeed settings, optimizer, micro-batch and
precision: Hugging Face's LlamaForCausalLM with SDPA attention, with the paper's patch embedder and pixel head where
rows hold patches; and, on a GPU, megatron-core's GPTModel with its own local layers, on text rows. Each is a process of
its own, as its users run it. On a CPU our process keeps what it frees and Hugging Face's gives it back to the system,
as glibc does by itself; so there is `hf_kept`, too: Hugging Face's in a process that keeps it. All take their steps in
turns, in an order that turns around from round to round. A ratio is the median over rounds of our positions a second by
theirs, above 1 where ours is faster. The ceiling is the rate of the plain matrix products of a micro-batch, forward and
backward. On a machine with other work, `--clock processor` with OMP_NUM_THREADS=1 compares processor time.

All sides stand in memory at a time: on a CPU, some 4 GB each.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from benchmarks.remote import Remote, RemoteError
from benchmarks.training_side import Limits, SidePlan, TrainingSide
from benchmarks.training_variants import RETURNED, VARIANTS, settings_of
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.parallel.quiet import silence_libraries

if TYPE_CHECKING:
    from benchmarks.training_rounds import Rounds, Side

KINDS = ("text", "pixel", "pair", "mix")
PEERS = {"hf": "hf", "hf_kept": "hf", "megatron_core": "megatron_core"}
"""Peers that are measured, and whose model each is."""
RECIPES = ROOT / "megatron_pixel" / "config" / "recipes"
FORMULA = """\
FLOPs of a step = 6 (L (2 h^2 + 2 a h^2 + 3 h f) positions + 2 L h pairs + d h (patches + patch targets)
                  + V h token targets)
  h hidden, a = kv_heads / heads, f ffn, L layers, d values of a patch, V vocabulary; positions without padding; pairs
  of a position and one that it attends to, n (n + 1) / 2 in a row of n: the causal triangle, which is what is computed.
MFU = FLOPs / seconds / the device's dense bf16 peak. Ceiling: the same by the rate of plain matrix products."""


def main(words: Sequence[str]) -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], help="default: a GPU where there is one")
    add("--size", choices=["paper", "tiny"], default="paper", help="of the model (default: paper)")
    add("--layers", type=int, help="decoder layers (default: 24 on a GPU, 4 on a CPU)")
    order = "the first stands at the top of the result (default: bf16 fp32 on a GPU, else fp32 bf16)"
    add("--precision", nargs="+", choices=["fp32", "bf16"], help=order)
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="rows (default: all)")
    add("--rows", type=int, help="of a micro-batch (default: 16 on a GPU, 1 on a CPU)")
    add("--accumulation", type=int, help="micro-batches of a step (default: 4 on a GPU, 2 on a CPU)")
    peers_help = "default: hf, with hf_kept on a CPU and megatron_core on a GPU"
    add("--peers", nargs="*", choices=list(PEERS), help=peers_help)
    names = f"our settings to compare: all, some of {', '.join([*VARIANTS, RETURNED])}, or KEY=VALUE,KEY=VALUE"
    add("--variants", nargs="*", default=[], metavar="NAME", help=names)
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of our run, and of its variants")
    add("--clock", choices=["wall", "processor"], default="wall", help="default: %(default)s")
    add("--minutes", type=float, default=9.0, help="for all of it (default: %(default)s)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args(words)
    begin = time.monotonic()
    if arguments.device == "cpu":
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    silence_libraries()
    import torch

    cuda = torch.cuda.is_available()
    if arguments.device == "cuda" and not cuda:
        raise UserError("--device cuda: torch finds no CUDA device here; leave it out to measure on the CPU")
    precisions = arguments.precision or (["bf16", "fp32"] if cuda else ["fp32", "bf16"])
    arguments.rows = arguments.rows or (16 if cuda else 1)
    arguments.accumulation = arguments.accumulation or (4 if cuda else 2)
    if arguments.peers is None:
        arguments.peers = ["hf", "megatron_core" if cuda else "hf_kept"]
    print(FORMULA, flush=True)
    figures: dict[str, Any] = {}
    for number, precision in enumerate(precisions):
        left = begin + 60 * arguments.minutes - time.monotonic()
        try:
            for found in measure(arguments, precision, cuda, left / (len(precisions) - number)):
                figures |= found if not number else {precision: found}
                # Written each time: a run that is ended keeps what it has.
                result_file.write(arguments.json, figures, ("torch", "deepspeed", "megatron-core", "transformers"))
        except RemoteError as error:
            raise SystemExit(f"{error.details}error: a step of ours, or the ceiling: {error}") from None


def config_of(
    arguments: argparse.Namespace, precision: str, cuda: bool, extra: Sequence[str], folder: str
) -> RunConfig:
    """The settings of our run, and of a variant of it."""
    tiny = arguments.size == "tiny"
    layers = arguments.layers or (24 if cuda and not tiny else 4)
    words = [
        f"--run.dir={folder}",
        f"--model.layers={layers}",
        "--data.synthetic=true",
        "--data.mixture=4:4:2",
        f"--training.precision={precision}",
        "--training.steps=1000000000",
        f"--training.micro_batch_rows={arguments.rows}",
        "--optimizer.lr=1e-5",
        "--evaluation.rows=0",
        "--evaluation.every=0",
        "--checkpoint.every=0",
        "--checkpoint.milestones=999999999",
        "--guards.hang_seconds=0",
        "--guards.slow_ranks_every=0",
        *(f"--{word}" for word in arguments.set),
        *extra,
    ]
    recipe = RECIPES / ("dualgpt-tiny.yaml" if tiny else "dualgpt.yaml")
    key = "--training.micro_batch_rows="
    micro = next(int(word.removeprefix(key)) for word in reversed(words) if word.startswith(key))
    return load_config(recipe, [*words, f"--training.global_batch_rows={5 * micro}"])


def measure(arguments: argparse.Namespace, precision: str, cuda: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """The figures of one precision, after every round of steps.

    Args:
        seconds: that it may take; at least one round is taken.
    """
    from benchmarks.training_rounds import Rounds

    end = time.monotonic() + seconds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        plans, skipped = plans_of(arguments, precision, cuda, folder)
        config = plans["ours"].config
        patience = max(120.0, 0.6 * seconds)
        remotes = {name: Remote(TrainingSide, plan, limit=patience) for name, plan in plans.items()}
        limits = Remote(Limits, plans["ours"], limit=patience)
        stack.callback(Remote.close_all, [*remotes.values(), limits])
        sides = started(plans, remotes, skipped)
        limits.wait()
        device = limits.call("device")
        shape = f"{config.training.micro_batch_rows} x {arguments.accumulation} rows of {config.model.seq_length:,}"
        size = f"{sides[0].parameters / 1e6:,.0f} million parameters"
        say(f"\n{precision}, {size}, {shape} positions, on {device['name']}, up to {seconds / 60:.1f} minutes")
        ceilings = {kind: limits.call("ceiling", kind) for kind in arguments.kinds if kind != "mix"}
        rounds = Rounds(sides, limits, config, cuda, say)
        rounds.warm_up(arguments.kinds)
        while True:
            rounds.take(arguments.kinds)
            figures = figures_of(arguments, config, rounds, ceilings, device)
            figures["variants_left_out"] = skipped | {s.name: s.failed for s in sides if s.failed is not None}
            yield figures
            if time.monotonic() + rounds.next_seconds(arguments.kinds) > end:
                break
    show(figures, arguments.kinds)


def plans_of(
    arguments: argparse.Namespace, precision: str, cuda: bool, folder: Path
) -> tuple[dict[str, SidePlan], dict[str, str]]:
    """What each side is, ours first; and why variants cannot be."""
    plans, skipped = {}, {}
    accumulation, processor = arguments.accumulation, arguments.clock == "processor"
    asked = [name for word in arguments.variants for name in (VARIANTS if word == "all" else [word])]
    for name in ["ours", *asked]:
        extra = [] if name in ("ours", RETURNED) else settings_of(name, arguments.rows)
        try:
            config = config_of(arguments, precision, cuda, extra, str(folder / name))
        except UserError as error:
            if name == "ours":
                raise
            skipped[name] = str(error).splitlines()[0]
            continue
        # Steps of as many positions, as far as may be, also where micro-batches hold more.
        times = max(1, config.training.micro_rows // arguments.rows)
        plans[name] = SidePlan("", config, max(1, accumulation // times), name != RETURNED, processor)
    for name in arguments.peers:
        plans[name] = SidePlan(PEERS[name], plans["ours"].config, accumulation, name == "hf_kept", processor)
    return plans, skipped


def started(plans: Mapping[str, SidePlan], remotes: Mapping[str, Remote], skipped: dict[str, str]) -> list["Side"]:
    """All sides, once their processes are there; those that cannot be built go to ``skipped``, with why."""
    from benchmarks.training_rounds import Side
    from benchmarks.training_run import readers

    sides = []
    for name, plan in plans.items():
        try:
            remotes[name].wait()
            facts = remotes[name].call("facts")
        except RemoteError as error:
            if name == "ours":
                raise
            skipped[name] = str(error)
            say(f"{error.details}left out: {name}: {error}")
            continue
        sides.append(
            Side(name, remotes[name], facts["kinds"], facts["parameters"], readers(plan.config, plan.accumulation))
        )
    return sides


def figures_of(
    arguments: argparse.Namespace,
    config: RunConfig,
    rounds: "Rounds",
    ceilings: Mapping[str, float],
    device: Mapping[str, Any],
) -> dict[str, Any]:
    """All figures of a precision."""
    from benchmarks.training_rounds import ratio, reached

    peak = device["peak_tflops"]
    ours, *others = rounds.sides
    figures: dict[str, Any] = {
        "device": device["name"],
        "precision": config.training.precision,
        "rounds": rounds.rounds,
        "parameters": ours.parameters,
        "model": {key: getattr(config.model, key) for key in
                  ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab_size", "seq_length")},
        "peak_tflops": peak,
        "flops": FORMULA,
    }  # fmt: skip
    for kind in arguments.kinds:
        mine = reached(ours, kind, peak)
        if kind in ceilings:
            mine["ceiling_tflops"] = ceilings[kind]
            mine["share_of_ceiling"] = mine["tflops"] / ceilings[kind]
        for side in others:
            if kind not in side.steps:
                continue
            found = ratio(ours.rates(kind), side.rates(kind))
            peer = side.name in PEERS
            if peer:
                mine[f"ratio_to_{side.name}"] = found["median"]
                mine[f"ratio_to_{side.name}_range"] = [found["least"], found["most"]]
            theirs = reached(side, kind, peak) | {"ratio_to_ours": 1 / found["median"]}
            mine.setdefault("peers" if peer else "variants", {})[side.name] = theirs
        figures[kind] = mine
    figures["mfu"] = figures.get("text", {}).get("mfu")
    if {"text", "pixel"} <= set(arguments.kinds):
        figures["text_without_head_over_pixel"] = head_comparison(rounds)
    return figures


def head_comparison(rounds: "Rounds") -> dict[str, float]:
    """Text steps less the vocabulary head by pixel steps of as many positions: at least 1 where pixels keep up."""
    import statistics

    steps = rounds.sides[0].steps
    text, pixel = ({number: step.seconds for number, step in steps[kind].items()} for kind in ("text", "pixel"))
    rests = {number: taken - rounds.head_seconds[number] for number, taken in text.items()}
    return {
        "ratio": statistics.median(rests[n] / pixel[n] for n in rests if n in pixel),
        "text_step_seconds": statistics.median(text.values()),
        "head_seconds": statistics.median(rounds.head_seconds.values()),
        "pixel_step_seconds": statistics.median(pixel.values()),
    }


def say(line: str) -> None:
    """A line of progress."""
    print(line, flush=True)


def show(figures: dict[str, Any], kinds: Sequence[str]) -> None:
    """The tables of one precision."""
    print(f"\n{figures['precision']}, {figures['rounds']} rounds, medians")
    print(f"{'':24}{'positions/s':>12}{'targets/s':>12}{'TFLOP/s':>9}{'MFU':>7}{'ceiling':>9}{'memory GB':>11}"
          f"{'ours by it':>12}   data/forward/backward/optimizer s")  # fmt: skip
    for name in kinds:
        mine = figures[name]
        for who, its in [("ours", mine), *mine.get("variants", {}).items(), *mine.get("peers", {}).items()]:
            mfu = f"{its['mfu']:.1%}" if its["mfu"] else "-"
            share = f"{its['tflops'] / mine['ceiling_tflops']:.1%}" if "ceiling_tflops" in mine else "-"
            by = "" if who == "ours" else f"{1 / its['ratio_to_ours']:.3f}"
            split = " ".join(f"{value:.3f}" for value in its["split"].values())
            print(f"{name:7}{who:17}{its['positions_per_second']:12,.0f}{its['targets_per_second']:12,.0f}"
                  f"{its['tflops']:9.3f}{mfu:>7}{share:>9}{its['peak_memory_gb']:11.2f}{by:>12}   {split}")  # fmt: skip
    found = figures.get("text_without_head_over_pixel")
    if found:
        print(f"a text step takes {found['text_step_seconds']:.3f} s, {found['head_seconds']:.3f} s of it the "
              f"vocabulary head; a pixel step takes {found['pixel_step_seconds']:.3f} s: the rest of the text step is "
              f"{found['ratio']:.3f} times as long")  # fmt: skip
    for name, why in figures["variants_left_out"].items():
        print(f"left out: {name}: {why}")


if __name__ == "__main__":
    with exit_on_user_error():
        main(sys.argv[1:])
