#!/usr/bin/env python
"""Is fine-tuning bound by the model? Our classifier against Hugging Face's Trainer: same model, texts and batches.

Both train a Llama of the same size (``LlamaForSequenceClassification`` there) on token rows of sentences as long as
SST-2's, from random weights, in fp32 on a CPU or bf16 on a GPU, padded to the longest row of a batch. They take turns
on the same machine, each in a process of its own; the time of a step is that of the steps after the first ones. Ratio:
our examples a second by theirs, above 1 where ours is faster. Also told: the time from text to rows and from the cache.
"""

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.llama_config import llama_config
from benchmarks.result_file import add_json_argument, write
from megatron_pixel.config.schema import ModelConfig, ParallelConfig

SIZES = {
    "tiny": ModelConfig(layers=4, hidden=192, heads=6, kv_heads=3, ffn=512, vocab_size=4096, seq_length=256),
    "paper": ModelConfig(),
}
BATCH, MICRO, WARM_UP = 32, 16, 4


def made_up_rows(count: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Token rows with the lengths of SST-2's training split: 2 to 60 tokens, 13 on average."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.gamma(1.6, 8.0, count).astype(int) + 2, 3, 66)
    return [[1, *rng.integers(3, vocabulary, length - 2).tolist(), 2] for length in lengths]


def ours(size: str, steps: int) -> dict[str, float]:
    """Examples a second of our fitter."""
    import torch

    from megatron_pixel.config.finetuning import FinetuningConfig
    from megatron_pixel.finetuning.batches import RowBuilder
    from megatron_pixel.finetuning.classifier import Score, build_classifier, freeze_unused
    from megatron_pixel.finetuning.sets import EncodedSet
    from megatron_pixel.finetuning.tasks import GLUE
    from megatron_pixel.finetuning.training import Fitter
    from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile
    from megatron_pixel.parallel.engine import build_engine, merged_config
    from megatron_pixel.parallel.mesh import mesh

    rows = made_up_rows(4096, SIZES[size].vocab_size)
    counts = np.array([len(row) for row in rows])
    flat, offsets = np.concatenate(rows).astype(np.int32), np.concatenate([[0], np.cumsum(counts)])
    nothing = np.zeros(len(rows) + 1, np.int64)
    encoded = EncodedSet(
        "train", None, np.empty(0, np.uint8), nothing, np.zeros(len(rows), np.int32), flat, offsets, 0, 0
    )
    config = FinetuningConfig(modality="text")
    config.training.global_batch_rows, config.training.micro_batch_rows = BATCH, MICRO
    config.training.steps = steps + WARM_UP
    config.training.precision = "bf16" if torch.cuda.is_available() else "fp32"
    config.optimizer.warmup_steps = 1
    score = Score("text", 2)
    seconds: list[float] = []
    with mesh(ParallelConfig()) as here:
        network = build_classifier(SIZES[size], score, 1).to(here.device)
        freeze_unused(network, "text")
        file = DeepSpeedFile(config.deepspeed_config)
        merged = merged_config(file, config.training, config.optimizer, BATCH // MICRO, here.device.type == "cuda")
        engine = build_engine(network, merged, 0.0, here.mpu)
        labels = np.arange(len(rows)) % 2
        train = RowBuilder(encoded, "text", 16, 3)
        fitter = Fitter(engine, train, labels, GLUE["sst2"], score, 2, config, here)
        for step in range(1, config.training.steps + 1):
            started = time.perf_counter()
            fitter.step(step)
            if step > WARM_UP:
                seconds.append(time.perf_counter() - started)
    return {"examples_per_second": BATCH / float(np.median(seconds)), "parameters": _count(network)}


def theirs(size: str, steps: int) -> dict[str, float]:
    """Examples a second of Hugging Face's Trainer."""
    import torch
    from transformers import (
        DataCollatorWithPadding,
        LlamaForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    model = LlamaForSequenceClassification(llama_config(SIZES[size], pad_token_id=0, num_labels=2))
    rows = made_up_rows(4096, SIZES[size].vocab_size)
    dataset = [{"input_ids": row, "attention_mask": [1] * len(row), "labels": i % 2} for i, row in enumerate(rows)]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1] += time.perf_counter()

    class Padding:
        """A tokenizer's ``pad`` and nothing else, which is all that the collator asks for."""

        padding_side = "right"
        deprecation_warnings: dict[str, bool] = {}  # noqa: RUF012 - the collator writes into it

        def pad(self, features: Sequence[Mapping[str, Any]], **_: Any) -> dict[str, torch.Tensor]:
            longest = -(-max(len(f["input_ids"]) for f in features) // 8) * 8
            filled = {
                key: torch.tensor([f[key] + [0] * (longest - len(f[key])) for f in features])
                for key in ("input_ids", "attention_mask")
            }
            return filled | {"labels": torch.tensor([f["labels"] for f in features])}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=MICRO,
            gradient_accumulation_steps=BATCH // MICRO,
            max_steps=steps + WARM_UP,
            bf16=torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        collator = DataCollatorWithPadding(Padding(), pad_to_multiple_of=8)
        trainer = Trainer(
            model=model, args=arguments, train_dataset=dataset, data_collator=collator, callbacks=[Clock()]
        )
        trainer.train()
    return {"examples_per_second": BATCH / float(np.median(times[WARM_UP:])), "parameters": _count(model)}


def encoding() -> dict[str, float]:
    """Examples a second from text to rows of pixels, and from the cache."""
    from megatron_pixel.config.schema import RenderingConfig
    from megatron_pixel.finetuning.encoding import PageEncoder
    from megatron_pixel.finetuning.examples import Examples
    from megatron_pixel.finetuning.sets import SetMaker

    rng = np.random.default_rng(0)
    words = [line.strip() for line in Path(__file__).read_text(encoding="utf-8").split() if line.isalpha()]
    texts = [" ".join(rng.choice(words, 9)) for _ in range(10000)]
    examples = Examples("train", texts, None, None, [str(i) for i in range(len(texts))])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        maker = SetMaker(PageEncoder(RenderingConfig(seq_length=256)), None, {}, Path(folder))
        for name in ("made", "found"):
            started = time.perf_counter()
            maker.make(examples)
            found[f"encoding_{name}_per_second"] = len(texts) / (time.perf_counter() - started)
    return found


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Run both sides in turn and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny", help="of the model (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=3, help="turns of each side; the median counts")
    add_json_argument(parser)
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        with contextlib.redirect_stdout(io.StringIO()):
            found = (ours if options.side == "ours" else theirs)(options.size, options.steps)
        print(json.dumps(found))
        return
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    parameters: dict[str, int] = {}
    for _ in range(options.turns):
        for side, found_rates in rates.items():
            command = [sys.executable, __file__, "--side", side, "--size", options.size, "--steps", str(options.steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            found_rates.append(found["examples_per_second"])
            parameters[side] = int(found["parameters"])
    median = {side: float(np.median(values)) for side, values in rates.items()}
    figures = {
        "size": options.size,
        "parameters": parameters,
        "examples_per_second": median,
        "turns": rates,
        "ratio": median["ours"] / median["theirs"],
        **encoding(),
    }
    print(f"{'':28}{'examples/s':>12}{'parameters':>14}")
    for side, name in (("ours", "megatron_pixel"), ("theirs", "Hugging Face Trainer")):
        print(f"{name:28}{median[side]:12.1f}{parameters[side]:14,}")
    print(f"ratio {figures['ratio']:.2f}")
    print(
        f"text to pages {figures['encoding_made_per_second']:,.0f} examples/s, from the cache "
        f"{figures['encoding_found_per_second']:,.0f}"
    )
    write(options.json, figures, ("torch", "deepspeed", "megatron-core", "transformers", "accelerate"))


if __name__ == "__main__":
    main()
