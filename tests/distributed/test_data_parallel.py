"""Loss and gradient belong to the global batch: the cut into micro-batches, ranks and ZeRO shards must not show."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from megatron_pixel.data.mixture import open_training
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import mesh
from tests.distributed.harness import run_ranks, side_by_side
from tests.distributed.tiny_run import Line, curves, tiny

SPLITS = {
    1: {"micro-1": ["--training.micro_batch_rows=1"], "micro-4": ["--training.micro_batch_rows=4"]},
    2: {
        "micro-1": ["--training.micro_batch_rows=1"],
        "micro-2": ["--training.micro_batch_rows=2"],
        "zero-2": ["--deepspeed_config=ds_configs/zero2.json"],
        "zero-3": ["--deepspeed_config=ds_configs/zero3.json"],
        "offload": ["--deepspeed_config=ds_configs/offload.json"],
        "bf16": ["--training.precision=bf16"],
        "bf16-micro-2": ["--training.precision=bf16", "--training.micro_batch_rows=2"],
    },
}
STEPS = ["--training.steps=4", "--optimizer.weight_decay=0.1", "--optimizer.lr=3e-3"]
LOSSES = ("loss", "loss_token_text", "loss_token_pair", "loss_patch_pixel", "loss_patch_pair")


def plain_first_step(folder: str) -> tuple[float, float]:
    """Loss and gradient norm of the first step by autograd alone: no DeepSpeed, no scaling, one backward pass."""
    config = tiny(folder, *STEPS)
    with mesh(config.parallel):
        objectives = pretraining_objectives(config.model, config.loss)
        model = torch.nn.Sequential(*build_stages(config.model, objectives, config.training.seed))
        reader = open_training(config.data, config.model, config.pair, config.training, 1)
        sums, counts = dict.fromkeys(("token", "patch"), torch.zeros(())), dict.fromkeys(("token", "patch"), 0)
        for index in range(reader.num_micro_batches(1)):
            batch = to_tensors(reader.micro_batch(0, index, 0, 1), objectives)
            for name, term in losses(model(batch.inputs), batch.labels, objectives).items():
                sums[name], counts[name] = sums[name] + term.sum, counts[name] + term.count
        loss = sums["token"] / counts["token"] + sums["patch"] / counts["patch"]
        loss.backward()
        gradients = [parameter.grad.flatten() for parameter in model.parameters()]
        return float(loss), float(torch.cat(gradients).norm())


def one_process(folder: str, variants: dict[str, list[str]]) -> tuple[dict[str, list[Line]], tuple[float, float]]:
    return curves(folder, variants), plain_first_step(folder)


@dataclass
class Found:
    curves: dict[tuple[int, str], list[Line]]
    """Lines of metrics.jsonl by number of processes and variant."""
    plain: tuple[float, float]
    folder: Path


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Found:
    folder = tmp_path_factory.mktemp("runs")
    words = {n: {name: [*STEPS, *extra] for name, extra in variants.items()} for n, variants in SPLITS.items()}
    ((one, plain), *_), (two, *_) = side_by_side(
        partial(run_ranks, one_process, 1, (str(folder / "1"), words[1]), timeout=240),
        partial(run_ranks, curves, 2, (str(folder / "2"), words[2]), timeout=240),
    )
    lines = {(1, name): value for name, value in one.items()} | {(2, name): value for name, value in two.items()}
    return Found(lines, plain, folder)


@pytest.fixture(scope="module")
def found(everything: Found) -> dict[tuple[int, str], list[Line]]:
    return everything.curves


def split(lines: list[Line]) -> tuple[list[Line], list[Line]]:
    return [line for line in lines if "loss" in line], [line for line in lines if "eval_loss" in line]


def test_the_first_step_is_that_of_plain_autograd(everything: Found) -> None:
    first = split(everything.curves[1, "micro-1"])[0][0]
    assert first["loss"] == pytest.approx(everything.plain[0], rel=1e-5)
    assert first["grad_norm"] == pytest.approx(everything.plain[1], rel=1e-5)


@pytest.mark.parametrize(
    "variant",
    [(1, "micro-4"), (2, "micro-1"), (2, "micro-2"), (2, "zero-2"), (2, "zero-3"), (2, "offload")],
    ids=str,
)
def test_one_process_is_the_truth(found: dict[tuple[int, str], list[Line]], variant: tuple[int, str]) -> None:
    truth, truth_evaluation = split(found[1, "micro-1"])
    steps, evaluation = split(found[variant])
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for mine, other in zip(steps, truth, strict=True):
        for key in (*LOSSES, "grad_norm"):
            assert mine[key] == pytest.approx(other[key], rel=1e-5), key
        for key in ("tokens", "patches", "lr", "skipped_steps"):
            assert mine[key] == other[key], key
    assert len(evaluation) == len(truth_evaluation) == 1
    for key in LOSSES:
        # Three held-out rows of a kind: the last batches are filled up, which must not count.
        assert evaluation[0][f"eval_{key}"] == pytest.approx(truth_evaluation[0][f"eval_{key}"], rel=1e-5)


def test_bf16_follows_fp32(found: dict[tuple[int, str], list[Line]]) -> None:
    truth, _ = split(found[1, "micro-1"])
    for name in ("bf16", "bf16-micro-2"):
        steps, _ = split(found[2, name])
        assert [line["loss"] for line in steps] == pytest.approx([line["loss"] for line in truth], rel=5e-3)
        assert [line["grad_norm"] for line in steps] == pytest.approx([line["grad_norm"] for line in truth], rel=5e-2)
        assert steps[0]["loss"] != truth[0]["loss"], "bf16 must not run in fp32"


def test_the_run_learns_and_clips(found: dict[tuple[int, str], list[Line]]) -> None:
    """A step that does nothing would pass every comparison above."""
    steps, _ = split(found[1, "micro-1"])
    losses = [line["loss"] or 0.0 for line in steps]
    assert losses[-1] < losses[0] - 0.1
    assert all((line["grad_norm"] or 0) > 1 for line in steps), "the recipe's limit of 1 must be what clips here"


def test_the_loss_is_the_sum_of_means_over_all_targets(found: dict[tuple[int, str], list[Line]]) -> None:
    for line in split(found[2, "micro-1"])[0]:
        low, high = sorted((line["loss_token_text"] or 0, line["loss_token_pair"] or 0))
        patch_low, patch_high = sorted((line["loss_patch_pixel"] or 0, line["loss_patch_pair"] or 0))
        assert low + patch_low < (line["loss"] or 0) < high + patch_high


def test_files_of_a_run(everything: Found) -> None:
    folder = everything.folder / "2" / "micro-1"
    expected = {"checkpoints", "config.yaml", "logs", "metrics.jsonl", "run.lock", "tensorboard"}
    assert {path.name for path in folder.iterdir()} == expected
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000004"]
