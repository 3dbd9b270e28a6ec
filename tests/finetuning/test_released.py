"""Models in the released layout: they start a run, and a fine-tuned one of ours comes back from there."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.finetuning.arguments import load
from megatron_pixel.finetuning.inference import open_classifier
from megatron_pixel.finetuning.origin import find_start
from megatron_pixel.finetuning.run import FinetuningRun
from megatron_pixel.finetuning.weights import score_name
from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.open import open_any
from megatron_pixel.parallel.mesh import Mesh
from tests.finetuning.conftest import finetune, settings


def test_a_released_model_starts_a_run_in_its_own_layout(place: Path, one_process: Mesh, tmp_path: Path) -> None:
    to_hf(open_any(place / "dualgpt"), tmp_path / "released", ExportOptions(tokenizer=place / "tokenizer.model"))
    start = find_start(str(tmp_path / "released"))
    ours = find_start(str(place / "dualgpt"))
    assert start.released
    for name in ("0.tokens.weight", "0.patches.projection.weight", "2.layer.mlp.linear_fc1.weight", "3.norm.weight"):
        assert torch.equal(start.weights.read(name), ours.weights.read(name))
    words = settings(place, "dualgpt", "pair", tmp_path / "run", "--training.steps", "2")
    words += ["--checkpoint", str(tmp_path / "released"), "--input.tokenizer", "", "--rendering.preset", "default"]
    built = FinetuningRun(load(None, words), one_process, lambda _: None)
    batch = built._train.batch(np.arange(2))
    patches, tokens = batch.modality == 2, batch.modality == 1
    assert tokens.argmax(1).tolist() == [32, 32], "tokens start behind the padded image"
    assert (patches.sum(1) < 32).all()
    assert not (batch.tokens == 2).any(), "no EOS"


def test_a_classifier_comes_back(place: Path, one_process: Mesh, tmp_path: Path) -> None:
    words = settings(place, "dualgpt", "text", tmp_path / "run", "--training.steps", "4", "--stopping.every", "2")
    finetune(words, one_process)
    to_hf(open_any(tmp_path / "run"), tmp_path / "released", ExportOptions(tokenizer=place / "tokenizer.model"))
    back = find_start(str(tmp_path / "released"))
    name = score_name(back.model)
    assert back.classes == ["bad", "good"]
    assert torch.equal(back.weights.read(name), find_start(str(tmp_path / "run")).weights.read(name))
    more = [*words, "--checkpoint", str(tmp_path / "released"), "--run.dir", str(tmp_path / "more")]
    built = FinetuningRun(load(None, [*more, "--input.layout", "native"]), one_process, lambda _: None)
    kept = open_classifier(tmp_path / "run", one_process)
    assert torch.equal(dict(built._engine.module.named_parameters())[name], dict(kept.network.named_parameters())[name])


def test_classes_of_a_released_classifier_are_compared_by_name_where_it_has_names(
    place: Path, one_process: Mesh, tmp_path: Path
) -> None:
    words = settings(place, "dualgpt", "text", tmp_path / "run", "--training.steps", "1", "--stopping.every", "1")
    finetune(words, one_process)
    released = tmp_path / "released"
    to_hf(open_any(tmp_path / "run"), released, ExportOptions(tokenizer=place / "tokenizer.model"))
    file = released / "config.json"
    told = json.loads(file.read_text())

    def build(*names: str) -> str:
        """What is said of a start whose classes have these names."""
        told["id2label"] = {str(number): name for number, name in enumerate(names)}
        file.write_text(json.dumps(told))
        said: list[str] = []
        FinetuningRun(load(None, [*words, "--checkpoint", str(released)]), one_process, said.append)
        return "\n".join(said)

    assert "numbered" not in build("bad", "good")
    with pytest.raises(UserError, match=r"tells good, bad apart, and the task has bad, good: set head to new"):
        build("good", "bad")
    said = build("LABEL_0", "LABEL_1")
    assert "the classifier's classes are numbered, not named; taken as the task's: 0 is bad, 1 is good" in said
    (place / "three.jsonl").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n' * 2)
    more = json.dumps({"text": "c", "label": "z"}) + "\n"
    (place / "three.jsonl").write_text((place / "three.jsonl").read_text() + more)
    words += ["--examples.train", str(place / "three.jsonl"), "--examples.evaluation", str(place / "three.jsonl")]
    with pytest.raises(UserError, match=r"tells 2 classes without names apart, and the task has x, y, z"):
        build("LABEL_0", "LABEL_1")


def test_folders_that_are_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run, a checkpoint, a fine-tuned model nor a released model"):
        find_start(str(tmp_path))
