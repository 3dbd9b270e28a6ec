#!/usr/bin/env python
"""The main job on real text, small enough for two CPU cores: corpus, tokenizer, datasets, training, curves, pictures.

Every step is a command that works on any other corpus as well; the demo prints each before it runs it. What is already
there is kept, so a second call only shows the summary; ``--fresh`` starts over. Options that it does not know, such as
``--training.steps 40``, go on to pretrain.py.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples import demo_corpus

RECIPE = "megatron_pixel/config/recipes/dualgpt-tiny.yaml"
VOCABULARY = 4096
# English makes nine rows of ten; the other languages are there to be seen, not to be learnt in so few steps.
WEIGHTS = {"english": 9, "languages": 1}


def run(title: str, command: list[str]) -> None:
    """Print a command, run it, and stop the demo where it fails."""
    print(f"\n== {title}\n   $ {shlex.join(['python', *command])}", flush=True)
    started = time.monotonic()
    status = subprocess.run([sys.executable, *command]).returncode
    if status:
        raise SystemExit(f"error: this step failed with status {status}; nothing after it was run")
    print(f"   ({time.monotonic() - started:.0f} s)", flush=True)


def train_tokenizer(folder: Path, corpus: dict[str, Path]) -> Path:
    """Train the demo's sentencepiece model on all of its text."""
    model = folder / "tokenizer.model"
    if not model.exists():
        files = [str(path) for path in corpus.values()]
        run(
            "Tokenizer",
            ["data_tools/tokenizer.py", "train", "--input", *files, "--output", str(model)]
            + ["--vocab-size", str(VOCABULARY)],
        )
    return model


def write_datasets(folder: Path, corpus: dict[str, Path], tokenizer: Path, workers: int) -> dict[str, list[str]]:
    """Write pixel, text and pair datasets of each corpus; returns ``weight:prefix`` lists by kind."""
    sources: dict[str, list[str]] = {"text": [], "pixels": [], "pairs": []}
    # 256 positions a row, as in the recipe; a pair row is half patches, half tokens.
    page = ["--rendering.seq_length", "256"]
    pair = ["--pair.patches", "128", "--pair.tokens", "128"]
    options = {"text": ["--tokenizer", str(tokenizer)], "pixels": page, "pairs": ["--tokenizer", str(tokenizer), *pair]}
    for name, path in corpus.items():
        for kind, extra in options.items():
            prefix = folder / f"{name}-{kind}"
            if not Path(f"{prefix}.manifest.json").exists():
                run(
                    f"Dataset: {name}, {kind}",
                    ["data_tools/preprocess.py", kind, "--input", str(path), "--output-prefix", str(prefix)]
                    + ["--workers", str(workers), "--heldout-fraction", "0.03", *extra],
                )
            sources[kind].append(f"{WEIGHTS[name]}:{prefix}")
    return sources


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"), help="folder of the run (default: %(default)s)")
    parser.add_argument("--fresh", action="store_true", help="delete the run folder first")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="preprocessing processes")
    arguments, overrides = parser.parse_known_args()
    os.chdir(Path(__file__).resolve().parent.parent)

    started = time.monotonic()
    if arguments.fresh and arguments.run.exists():
        shutil.rmtree(arguments.run)
    data = arguments.run / "data"
    print(f"== Corpus: presidential messages and interface translations, from two packages, into {data}", flush=True)
    corpus = demo_corpus.prepare(data)
    tokenizer = train_tokenizer(data, corpus)
    sources = write_datasets(data, corpus, tokenizer, arguments.workers)

    names = [word for kind, prefixes in sources.items() for word in (f"--data.{kind}", *prefixes)]
    run(
        "Pretraining",
        ["megatron_pixel/pretrain.py", "--config", RECIPE, "--run.dir", str(arguments.run), *names]
        # One process is busier with two rows at a time; the recipe's one row is for two processes.
        + ["--training.micro_batch_rows", "2", *overrides],
    )
    run("What it learnt", ["megatron_pixel/evaluate.py", "heldout", "--run", str(arguments.run)])
    run("Report", ["megatron_pixel/report.py", str(arguments.run)])
    print(f"\nThe demo took {time.monotonic() - started:.0f} s.")
    print(f"Report:  {arguments.run / 'report.html'}")
    print(f"Curves:  {Path(sys.executable).parent / 'tensorboard'} --logdir {arguments.run / 'tensorboard'}")


if __name__ == "__main__":
    main()
