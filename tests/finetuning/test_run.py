"""Whole runs: what they learn, what they leave behind, what they refuse."""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.finetuning.arguments import load
from megatron_pixel.finetuning.classifier import averaged_channels
from megatron_pixel.finetuning.inference import open_classifier
from megatron_pixel.finetuning.origin import PROJECTION, find_start
from megatron_pixel.finetuning.robustness import noisy
from megatron_pixel.finetuning.run import FinetuningRun
from megatron_pixel.finetuning.weights import score_name
from megatron_pixel.parallel.mesh import Mesh
from tests.finetuning.conftest import finetune, settings, tiny


@pytest.fixture(scope="module", params=["text", "pixel", "pair"])
def run(request: pytest.FixtureRequest, place: Path, one_process: Mesh) -> tuple[str, Path, dict, list[str]]:
    folder = place / f"run-{request.param}"
    result, said = finetune(settings(place, "dualgpt", request.param, folder), one_process)
    return request.param, folder, result, said


def test_a_run_learns_and_keeps_its_best_model(run: tuple[str, Path, dict, list[str]], one_process: Mesh) -> None:
    modality, folder, result, said = run
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 40
    assert losses[-1] < 0.8 * losses[0]
    evaluations = {line["step"]: line["eval_score"] for line in lines if "eval" in line}
    assert result["score"] == max(evaluations.values())
    assert evaluations[result["best_step"]] == result["score"]
    assert json.loads((folder / "result.json").read_text()) == result
    assert result["majority"] == {"validation": 0.5}
    assert any("10 examples" in line for line in said)
    # The model on disk is the one that was scored.
    again = open_classifier(folder, one_process)
    split = again.data.evaluation[0]
    assert again.scores(split)["accuracy"] == result["score"]
    predictions = [json.loads(line) for line in (folder / "predictions-validation.jsonl").read_text().splitlines()]
    outputs = again.outputs(split)
    for line, values in zip(predictions, outputs.tolist(), strict=True):
        assert list(line["scores"].values()) == pytest.approx(values, abs=1e-5)
        assert line["prediction"] == max(line["scores"], key=line["scores"].get)
    hits = sum(line["prediction"] == line["label"] for line in predictions)
    assert hits / len(predictions) == result["score"]
    assert modality == result["modality"]


def test_the_same_run_again_is_the_same_and_finds_its_sets(
    run: tuple[str, Path, dict, list[str]], place: Path, one_process: Mesh
) -> None:
    modality, _, result, _ = run
    again, said = finetune(
        settings(place, "dualgpt", modality, place / "again", "--keep_model", "false", "--dropout", "0.0"), one_process
    )
    assert again["scores"] == result["scores"]
    assert all("encoded before" in line for line in said if "examples," in line)
    assert not (place / "again" / "best").exists()


def test_a_noisy_split_is_another_one(run: tuple[str, Path, dict, list[str]], one_process: Mesh) -> None:
    _, folder, result, _ = run
    model = open_classifier(folder, one_process)
    split = model.data.evaluation[0]
    clean, wild = model.outputs(split), model.outputs(noisy(split, "swap", 1.0))
    assert not np.allclose(clean, wild)
    assert result["weights"] == "pretrained"


def test_random_weights_differ_from_pretrained_ones(place: Path, one_process: Mesh) -> None:
    words = settings(place, "textgpt", "text", place / "random", "--training.steps", "2", "--keep_model", "false")
    networks = []
    for weights in ("pretrained", "random"):
        built = FinetuningRun(load(None, [*words, "--weights", weights]), one_process, lambda _: None)
        networks.append(dict(built._engine.module.named_parameters()))
    start = find_start(str(place / "textgpt"))
    name = "1.layer.mlp.linear_fc1.weight"
    assert torch.equal(networks[0][name], start.weights.read(name))
    assert not torch.allclose(networks[1][name], start.weights.read(name))
    assert not networks[0][PROJECTION].requires_grad, "rows of text leave the patch embedder alone"


@pytest.mark.parametrize("mode", ["gray", "binary"])
def test_render_modes_average_the_projection(place: Path, one_process: Mesh, mode: str) -> None:
    words = settings(place, "pixelgpt", "pixel", place / mode, "--rendering.mode", mode, "--training.steps", "2")
    built = FinetuningRun(load(None, words), one_process, lambda _: None)
    weight = find_start(str(place / "pixelgpt")).weights.read(PROJECTION)
    kernel = weight.reshape(32, 16, 16, 3)
    expected = (kernel[..., 0] + kernel[..., 1] + kernel[..., 2]) / 3
    found = dict(built._engine.module.named_parameters())[PROJECTION].detach()
    assert torch.allclose(found, expected.reshape(32, 256), atol=1e-7)
    assert torch.equal(averaged_channels(weight, 16), found)
    batch = built._train.batch(np.arange(3))
    assert batch.patches is not None
    assert batch.patches.shape[-1] == 256
    gray = set(np.unique(batch.patches).tolist())
    assert (gray <= {0, 255}) == (mode == "binary")


def test_a_fine_tuned_model_goes_on_and_refuses_other_classes(
    run: tuple[str, Path, dict, list[str]], place: Path, one_process: Mesh, tmp_path: Path
) -> None:
    modality, folder, _, _ = run
    words = settings(
        place, "dualgpt", modality, tmp_path / "more", "--training.steps", "2", "--checkpoint", str(folder)
    )
    built = FinetuningRun(load(None, words), one_process, lambda _: None)
    name = score_name(tiny().model)
    kept = find_start(str(folder / "best")).weights.read(name)
    assert torch.equal(dict(built._engine.module.named_parameters())[name], kept)
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("text,label\na,cold\nb,warm\n", encoding="utf-8")
    other = [*words, "--examples.path", str(tmp_path)]
    with pytest.raises(UserError, match=r"tells bad, good apart, and the task has cold, warm.*head to new"):
        FinetuningRun(load(None, other), one_process)
    FinetuningRun(load(None, [*other, "--head", "new"]), one_process, lambda _: None)


def test_early_stopping(place: Path, one_process: Mesh) -> None:
    words = settings(place, "dualgpt", "text", place / "early", "--stopping.every", "1", "--stopping.patience", "3")
    result, _ = finetune([*words, "--optimizer.lr", "1e-9", "--keep_model", "false"], one_process)
    assert result["ended_by"] == "early stopping"
    assert result["steps"] == result["best_step"] + 3


@pytest.mark.parametrize(
    ("system", "modality", "words", "message"),
    [
        ("textgpt", "pixel", [], r"\(textgpt\) was never trained on pixel rows.*--modality text"),
        ("pixelgpt", "pair", [], r"\(pixelgpt\) was never trained on text rows.*--modality pixel"),
        ("dualgpt", "text", ["--input.tokenizer", ""], r"input\.tokenizer is not given"),
        ("dualgpt", "text", ["--input.length", "4"], r"input\.length: 4 positions hold no example"),
        ("dualgpt", "pixel", ["--rendering.patch_size", "8"], r"rendering\.patch_size: 8.* patches of 16"),
        (
            "dualgpt",
            "text",
            ["--training.micro_batch_rows", "4"],
            r"training\.global_batch_rows: 10 .*nearest: 8 or 12",
        ),
        ("nothing", "text", [], r"there is no folder"),
    ],
)
def test_what_does_not_go_together_is_refused(
    place: Path, one_process: Mesh, system: str, modality: str, words: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        FinetuningRun(load(None, settings(place, system, modality, place / "refused", *words)), one_process)


def test_a_run_that_is_closed_leaves_no_model_behind(place: Path, one_process: Mesh, tmp_path: Path) -> None:
    """A worker of a search trains one after the other."""
    words = settings(place, "dualgpt", "text", tmp_path, "--training.steps", "1", "--stopping.every", "1")
    with FinetuningRun(load(None, words), one_process, lambda _: None) as run:
        run.train()
        kept = [weakref.ref(part) for part in (run._engine.module, run._engine.optimizer)]
    del run
    gc.collect()
    assert [reference() for reference in kept] == [None, None]
