"""What ``startup.py`` measures, each in a process of its own: from its start to its first micro-batch.

    python benchmarks/startup_child.py NAME PREFIX

prints one line of JSON: when things were done (seconds since 1970) and how much memory that took.
"""

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
ROWS, SEQ_LENGTH, SEED = 8, 1024, 1234


class Memory:
    """Peak of this process's own memory, files that it maps left out: the system keeps only the peak of the sum."""

    def __init__(self) -> None:
        self.anonymous = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, self.read("RssAnon"))
            time.sleep(0.005)

    def read(self, key: str) -> int:
        """A line of the process's status, in bytes."""
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
        return 0


def ours(kind: str, prefix: str, times: dict[str, float]) -> int:
    """The first micro-batch of a mixture of one dataset of this kind, through the loader."""
    from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig, TrainingConfig
    from megatron_pixel.data.loader import PrefetchLoader
    from megatron_pixel.data.mixture import open_training
    from megatron_pixel.data.rows import MicroBatch

    times["imported"] = time.time()
    pixels = kind == "pixels"
    data = DataConfig(mixture="0:1:0" if pixels else "1:0:0", **{kind: [prefix]})  # type: ignore[arg-type]
    model = ModelConfig(vocab_size=256)
    training = TrainingConfig(global_batch_rows=ROWS, micro_batch_rows=ROWS, seed=SEED)
    reader = open_training(data, model, PairConfig(), training, dp_size=1)
    times["opened"] = time.time()
    with PrefetchLoader[MicroBatch](reader, range(1), 0, 1, depth=1) as loader:
        _, [batch] = next(loader)
    return len(batch.rows)


def megatron(prefix: str, times: dict[str, float]) -> int:
    """The first micro-batch out of megatron-core's blend of GPT datasets, one epoch of one dataset."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    class Bytes:
        """As much of a tokenizer as the dataset asks for."""

        vocab_size, eod, pad, unique_identifiers = 256, 2, 0, {"class": "bytes"}

    times["imported"] = time.time()
    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=SEQ_LENGTH,
        blend=([f"{prefix}.train.tokens"], None),
        split="1,0,0",
        path_to_cache=f"{prefix}.cache",
        tokenizer=Bytes(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, [None, None, None], lambda: True, config).build()
    assert train is not None
    times["opened"] = time.time()
    return len([train[number]["tokens"] for number in range(ROWS)])


def main(name: str, prefix: str) -> None:
    """Run one of them and tell."""
    times: dict[str, float] = {"began": time.time()}
    memory = Memory()
    runs: dict[str, Callable[[], int]] = {
        "pixels": lambda: ours("pixels", prefix, times),
        "text": lambda: ours("text", prefix, times),
        "megatron": lambda: megatron(prefix, times),
    }
    rows = runs[name]()
    times["first_batch"] = time.time()
    used = {"rss": memory.read("VmHWM"), "anonymous": max(memory.anonymous, memory.read("RssAnon"))}
    print(json.dumps({"rows": rows, "times": times, "bytes": used}))


if __name__ == "__main__":
    main(*sys.argv[1:])
