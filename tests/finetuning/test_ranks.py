"""Data parallelism: two ranks, with every ZeRO stage, train what one process trains."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.finetuning.arguments import load
from megatron_pixel.finetuning.examples import Examples
from megatron_pixel.finetuning.run import FinetuningRun
from megatron_pixel.finetuning.sets import SetMaker
from megatron_pixel.parallel.mesh import Mesh, mesh
from tests.distributed.harness import run_ranks, sign_of_life, use_store
from tests.finetuning.conftest import settings

pytestmark = pytest.mark.processes

LAYOUTS = [("text", "zero1"), ("pair", "zero2"), ("pixel", "zero3")]


def losses_of(place: Path, modality: str, stage: str, name: str, here: Mesh | None) -> tuple[list[float], list[dict]]:
    """Losses of the steps and predictions of the best model; each count of ranks has encoded sets of its own."""
    folder = place / f"{name}-{stage}"
    words = settings(
        place, "dualgpt", modality, folder, "--training.steps", "6", "--stopping.every", "3",
        *("--training.global_batch_rows", "8", "--training.micro_batch_rows", "2", "--optimizer.lr", "3e-3"),
        *("--deepspeed_config", f"ds_configs/{stage}.json", "--input.cache", str(place / f"cache-{name}")),
    )  # fmt: skip
    with nullcontext(here) if here is not None else mesh(ParallelConfig()) as mine:
        FinetuningRun(load(None, words), mine, lambda _: None).train()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    predictions = (folder / "predictions-validation.jsonl").read_text().splitlines()
    return [line["loss"] for line in lines if "loss" in line], [json.loads(line) for line in predictions]


def everywhere(place: str) -> tuple[list[tuple[list[float], list[dict]]], int]:
    """All layouts, one after the other, in a rank of two; and how many sets this rank has made."""
    found, made, write = [], [], SetMaker._write

    def counted(self: SetMaker, examples: Examples, folder: Path) -> None:
        made.append(examples.name)
        write(self, examples, folder)

    SetMaker._write = counted
    for number, (modality, stage) in enumerate(LAYOUTS):
        use_store(number)
        found.append(losses_of(Path(place), modality, stage, "two", None))
        sign_of_life()
    return found, len(made)


def test_two_ranks_train_what_one_does(place: Path, one_process: Mesh) -> None:
    one = [losses_of(place, modality, stage, "one", one_process) for modality, stage in LAYOUTS]
    (two, made), (_, made_by_other) = run_ranks(everywhere, 2, [str(place)], stores=len(LAYOUTS))
    sets = len(list((place / "cache-two").iterdir()))
    assert made + made_by_other == sets >= len(LAYOUTS), "one rank encodes a split, the other one finds it"
    for (losses, predictions), (others, other_predictions), layout in zip(one, two, LAYOUTS, strict=True):
        assert losses == pytest.approx(others, rel=2e-5), layout
        for line, other in zip(predictions, other_predictions, strict=True):
            assert list(line["scores"].values()) == pytest.approx(list(other["scores"].values()), abs=2e-4), layout
