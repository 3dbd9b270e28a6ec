#!/usr/bin/env python
"""Why does the small study's pretraining not help? Looks for a fault, and for what the models lack.

Takes the folder that ``examples/finetuning_study.py`` left, with its four trained systems and labelled sentences, and
writes a page of tables:

- what the words of a sentence alone tell, without their order: about what any model of this size can reach;
- what a linear classifier reads from the frozen states of every layer, pretrained and random;
- how alike the rows look where the classifier reads them, and how large the states and the first gradient are;
- fine-tuning at several learning rates and lengths, pretrained and random;
- whether 32 images can be learnt by heart, which a fault in loading, masking or reading would forbid.

What is already there is kept, so a run that was stopped goes on.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from examples import demo
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.data.files import write_file
from megatron_pixel.data.stores import TokenStore
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.finetuning.classifier import Score, build_classifier, freeze_unused
from megatron_pixel.finetuning.inputs import open_inputs
from megatron_pixel.finetuning.origin import PROJECTION, find_start
from megatron_pixel.finetuning.probing import probe
from megatron_pixel.finetuning.search import results_below
from megatron_pixel.finetuning.tasks import open_task
from megatron_pixel.finetuning.weights import load_start
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.parallel.mesh import mesh

SYSTEMS = {"text": "textgpt", "pixel": "pixelgpt", "pair": "dualgpt"}
"""Whose model reads each modality here: the one that saw most of it."""
RATES, STEPS = (3e-4, 1e-3), (200, 480)
FEW = 32
"""Examples to be learnt by heart."""
PENALTIES = (3e-2, 1e-2, 3e-3, 1e-3)
SAMPLE = 64
"""Examples whose states are compared."""


def settings_of(run: Path, folder: Path, modality: str, weights: str) -> FinetuningConfig:
    """Settings to read the study's examples with one of its models."""
    config = FinetuningConfig(checkpoint=str(folder / SYSTEMS[modality]), weights=weights, modality=modality)  # type: ignore[arg-type]
    config.task, config.examples.path, config.training.seed = "custom", str(run / "ratings"), 1
    config.input.tokenizer, config.input.cache = str(run / "data" / "tokenizer.model"), str(folder / "cache")
    return config


def write_grids(run: Path, folder: Path, output: Path, seeds: int) -> dict[str, Path]:
    """The fine-tunings as files for ``finetune.py search``: text at several settings, a few images by heart."""
    few = run / "ratings" / f"first-{FEW}.jsonl"
    lines = (run / "ratings" / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    few.write_text("".join(lines[:FEW]), encoding="utf-8")
    shared = {
        "task": "custom",
        "input.tokenizer": str(run / "data" / "tokenizer.model"),
        "input.cache": str(folder / "cache"),
        "keep_model": False,
        "predictions": False,
        "training.precision": "fp32",
        "stopping.every": 0,
    }
    both = ("pretrained", "random")
    grids = {
        "text": {
            "fixed": {
                **shared,
                "examples.path": str(run / "ratings"),
                "checkpoint": str(folder / SYSTEMS["text"]),
                "modality": "text",
                "training.global_batch_rows": 16,
                "training.micro_batch_rows": 16,
                "optimizer.warmup_steps": 20,
            },
            "cases": [{"training.seed": seed} for seed in range(1, seeds + 1)],
            "grid": {"training.steps": list(STEPS), "optimizer.lr": list(RATES), "weights": list(both)},
        },
        "by heart": {
            "fixed": {
                **shared,
                "examples.train": [str(few)],
                "examples.evaluation": [str(few)],
                "checkpoint": str(folder / SYSTEMS["pixel"]),
                "modality": "pixel",
                "training.global_batch_rows": FEW,
                "training.micro_batch_rows": FEW,
                "training.steps": 60,
                "optimizer.warmup_steps": 20,
            },
            "cases": [{"training.seed": 1}],
            "grid": {"optimizer.lr": [1e-4, 5e-4], "weights": list(both)},
        },
    }
    files = {name: output / f"{name.replace(' ', '-')}.yaml" for name in grids}
    for name, content in grids.items():
        files[name].write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return files


def words_alone(run: Path) -> tuple[float, float]:
    """The best accuracy in percent over penalties of a logistic regression on which tokens a sentence has, and that of
    the majority class. Chosen on the sentences that it is scored on, so rather too high."""
    tokenizer = Tokenizer(run / "data" / "tokenizer.model")
    sets = []
    for name in ("train", "validation"):
        rows = [json.loads(line) for line in (run / "ratings" / f"{name}.jsonl").open(encoding="utf-8")]
        has = torch.zeros(len(rows), tokenizer.vocab_size)
        for row, example in zip(has, rows, strict=True):
            row[torch.from_numpy(np.unique(tokenizer.encode(example["text"]))).long()] = 1
        sets.append((has, torch.tensor([float(example["label"] == "positive") for example in rows])))
    (has, positive), (held, truth) = sets
    scores = []
    for penalty in PENALTIES:
        weights, constant = logistic_regression(has, positive, penalty)
        scores.append(100 * float(((held @ weights + constant > 0) == (truth == 1)).float().mean()))
    frequent = float(positive.mean() > 0.5)
    return max(scores), 100 * float((truth == frequent).float().mean())


def logistic_regression(has: Tensor, labels: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weights [k] and constant for features [n, k] and labels 0 or 1 [n]."""
    weights = torch.zeros(has.shape[1], requires_grad=True)
    constant = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, constant], max_iter=100)

    def loss() -> Tensor:
        optimizer.zero_grad()
        total = F.binary_cross_entropy_with_logits(has @ weights + constant, labels) + penalty * weights.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weights.detach(), constant.detach()


def states(run: Path, folder: Path, modality: str, weights: str) -> dict[str, Any]:
    """Of the first sentences, where the classifier reads: the mean cosine between rows and the mean norm behind each
    stage; how the logits of the mean state correlate with the frequencies of tokens; the gradient of the first step."""
    with mesh(ParallelConfig()):
        config = settings_of(run, folder, modality, weights)
        start = find_start(config.checkpoint)
        inputs = open_inputs(config, start)
        _, data = open_task(config.task, config.examples)
        score = Score(modality, len(data.classes or ()))
        network = build_classifier(inputs.model, score, config.training.seed)
        freeze_unused(network, modality)
        if weights == "pretrained":
            load_start(network, start, inputs.model, data.classes, "new")
        rows, _ = inputs.rows(data.train)
        batch = to_tensors(rows.batch(np.arange(SAMPLE)), [score])
        state: Any = batch.inputs
        head = f"{inputs.model.layers + 2}.heads.token.linear.weight"
        frequent = token_frequencies(run) if weights == "pretrained" and modality != "pixel" else None
        cosines, norms, frequencies = [], [], []
        for stage in network[:-1]:
            state = stage(state)
            hidden = state[0].transpose(0, 1).flatten(0, 1)[batch.inputs.targets[0][:SAMPLE]].detach()  # [n, h]
            alike = F.normalize(hidden, dim=1)
            cosines.append(float((alike @ alike.T).fill_diagonal_(0).sum()) / (SAMPLE * (SAMPLE - 1)))
            norms.append(float(hidden.norm(dim=1).mean()))
            if frequent is not None:
                said = start.weights.read(head) @ network[-2].norm(hidden.mean(0)).detach()
                frequencies.append(float(torch.corrcoef(torch.stack([said, frequent]))[0, 1]))
        assert data.train.labels is not None
        F.cross_entropy(network[-1](state)[0], torch.from_numpy(data.train.labels[:SAMPLE])).backward()
        gradients = {name: p.grad.norm() for name, p in network.named_parameters() if p.grad is not None}
        bias = PROJECTION.replace("weight", "bias")
        total = float(torch.stack(list(gradients.values())).norm())
        return {
            "cosines": cosines,
            "norms": norms,
            "frequencies": frequencies,
            "gradient": total,
            "of_patch_bias": float(gradients[bias]) if bias in gradients else None,
        }


def token_frequencies(run: Path) -> Tensor:
    """Logarithm of the frequency of every token in the English text that the systems were trained on, float32 [v]."""
    store = TokenStore(str(run / "data" / "english-text"), "train")
    vocabulary = Tokenizer(run / "data" / "tokenizer.model").vocab_size
    counts = np.bincount(store.read(0, store.num_tokens), minlength=vocabulary)
    return torch.from_numpy(np.log(counts + 0.5)).float()  # one that never occurs has a logarithm, too


def outcomes(runs: Path) -> list[dict[str, Any]]:
    """Mean score over seeds, and the mean training loss of the last steps, by settings."""
    found: dict[tuple[int, float, str], list[tuple[float, float]]] = defaultdict(list)
    for result in results_below(runs):
        lines = [json.loads(line) for line in (Path(result["folder"]) / "metrics.jsonl").open(encoding="utf-8")]
        last = statistics.fmean([line["loss"] for line in lines if "loss" in line][-10:])
        key = (result["steps"], result["settings"]["lr"], result["weights"])
        found[key].append((100 * result["score"], last))
    rows = []
    for (steps, rate, weights), values in sorted(found.items()):
        scores = [score for score, _ in values]
        rows.append(
            {
                "steps": steps,
                "lr": rate,
                "weights": weights,
                "seeds": len(values),
                "score": statistics.fmean(scores),
                "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
                "last_loss": statistics.fmean(loss for _, loss in values),
            }
        )
    return rows


def measure(run: Path, folder: Path, runs: Path) -> dict[str, Any]:
    """All figures of the page."""
    words, majority = words_alone(run)
    print(f"words alone {words:.1f}%, majority {majority:.1f}%", flush=True)
    kinds = [(modality, weights) for modality in SYSTEMS for weights in ("pretrained", "random")]
    return {
        "words": words,
        "majority": majority,
        "probes": {name: probe(settings_of(run, folder, name, "pretrained")) for name in SYSTEMS},
        "states": [{"modality": m, "weights": w, **states(run, folder, m, w)} for m, w in kinds],
        "text": outcomes(runs / "text"),
        "by_heart": outcomes(runs / "by-heart"),
    }


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(found: dict[str, Any], rows: int) -> str:
    """The figures as Markdown."""
    stages = ["embedding", *(f"layer {n}" for n in range(1, len(found["probes"]["text"]["random"])))]
    probes = (
        [f"{SYSTEMS[name]}, {name}", weights, *(f"{100 * score:.1f}" for score in probed[weights])]
        for name, probed in found["probes"].items()
        for weights in ("pretrained", "random")
    )
    alike = (
        [f"{SYSTEMS[state['modality']]}, {state['modality']}", state["weights"]]
        + [f"{cosine:.2f} ({norm:.1f})" for cosine, norm in zip(state["cosines"], state["norms"], strict=True)]
        + [f"{state['gradient']:.1f}", "-" if state["of_patch_bias"] is None else f"{state['of_patch_bias']:.1f}"]
        for state in found["states"]
    )

    frequencies = (
        [f"{SYSTEMS[state['modality']]}, {state['modality']}", *(f"{value:.2f}" for value in state["frequencies"])]
        for state in found["states"]
        if state["frequencies"]
    )

    def runs(name: str) -> Iterable[list[str]]:
        for line in found[name]:
            deviation = "" if line["deviation"] is None else f" ± {line['deviation']:.1f}"
            score = f"{line['score']:.1f}{deviation} ({line['seeds']})"
            yield [str(line["steps"]), f"{line['lr']:g}", line["weights"], score, f"{line['last_loss']:.2f}"]

    settings = ["steps", "learning rate", "weights", "accuracy (seeds)", "training loss, last 10 steps"]
    return f"""\
Written by `examples/finetuning_diagnosis.py`: systems trained on {rows:,} rows, the sentences of the small study.
What follows from it stands in [fine-tuning](../../../finetuning.md#why-so-little-pretraining-does-not-help).

### What the words alone tell

A logistic regression on which tokens a sentence has, without their order: {found["words"]:.1f}% (best of
{len(PENALTIES)} penalties); the majority class: {found["majority"]:.1f}%.

### What a linear classifier reads from frozen states, accuracy in percent

{table(["reads", "weights", *stages], probes)}

### Where the classifier reads: cosine between rows (norm of a state), and the first gradient

Means over the first {SAMPLE} sentences, at the last real position of each row. The last columns are the norm of the
first gradient and that of its part in the bias of the patch projection; clipping is at 1.

{table(["reads", "weights", *stages, "final norm", "gradient", "of patch bias"], alike)}

### What the mean of these states says of the next token

Correlation of its logits, by the pretrained final norm and token head, with the logarithm of the tokens' frequencies.

{table(["reads", *stages, "final norm"], frequencies)}

### Fine-tuning TextGPT on text

Batches of 16 of 2,560 sentences: 160 steps see each once. Mean ± standard deviation over seeds.

{table(settings, runs("text"))}

### {FEW} images by heart: PixelGPT, scored on the sentences that it is trained on

{table(settings, runs("by_heart"))}
"""


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--run", type=Path, default=Path("runs/study"), help="the study's folder (default: %(default)s)"
    )
    parser.add_argument("--rows", type=int, default=3200, help="which of its budgets (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each kind")
    parser.add_argument("--workers", type=int, default=2, help="fine-tunings side by side")
    parser.add_argument("--output", type=Path, help="folder for the tables (default: below the study's)")
    arguments = parser.parse_args()
    started = time.monotonic()
    run = arguments.run.resolve()
    folder = run / f"rows-{arguments.rows}"
    runs = folder / "diagnosis"
    output = (arguments.output or runs).resolve()
    os.chdir(Path(__file__).resolve().parent.parent)
    if not (folder / "dualgpt" / "checkpoints").is_dir():
        raise SystemExit(
            f"error: {folder} holds no trained systems: "
            f"python examples/finetuning_study.py --run {arguments.run} --rows {arguments.rows}"
        )
    runs.mkdir(parents=True, exist_ok=True)
    for name, grid in write_grids(run, folder, runs, arguments.seeds).items():
        words = ["megatron_pixel/finetune.py", "search", "--grid", str(grid), "--output", str(runs / grid.stem)]
        demo.run(f"Fine-tuning: {name}", [*words, "--workers", str(arguments.workers)])
    print("\n== Probes and states", flush=True)
    found = measure(run, folder, runs)
    output.mkdir(parents=True, exist_ok=True)
    write_file(str(output / "tables.json"), (json.dumps(found, indent=1) + "\n").encode())
    write_file(str(output / "tables.md"), page(found, arguments.rows).encode())
    print(f"\n{page(found, arguments.rows)}\nwritten to {output}; took {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
