"""Evaluations beyond the paper: any corpus, every layer, misspelled texts."""

import json
import math
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.finetuning.arguments import load
from megatron_pixel.finetuning.corpus import score_corpus, token_rows
from megatron_pixel.finetuning.probing import apply, probe, ridge
from megatron_pixel.finetuning.robustness import measure
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training.canonical import tensor_file
from tests.finetuning.conftest import finetune, settings

TEXTS = ["a fine day " * 30, "the good song", "nasty weather " * 12]


@pytest.fixture(autouse=True)
def own_mesh(monkeypatch: pytest.MonkeyPatch, one_process: Mesh) -> None:
    """The evaluations open a mesh; here there is one."""
    for module in ("corpus", "probing", "robustness"):
        monkeypatch.setattr(f"megatron_pixel.finetuning.{module}.mesh", lambda _: nullcontext(one_process))


@pytest.fixture
def blind(place: Path, tmp_path: Path) -> Path:
    """A checkpoint whose heads say nothing."""
    folder = tmp_path / "blind" / "checkpoints" / files.folder_name(7)
    shutil.copytree(place / "dualgpt" / "checkpoints" / files.folder_name(7), folder)
    for name in ("token", "patch"):
        path = folder / tensor_file(f"4.heads.{name}.linear.weight", "fp32")
        torch.save({"param": torch.zeros_like(torch.load(path)["param"])}, path)
    files.write_manifest(folder, 7, files.describe_files(folder, files.files_below(folder)))
    return tmp_path / "blind"


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return str(path)


def test_every_token_is_predicted_once(place: Path) -> None:
    tokenizer = Tokenizer(place / "tokenizer.model")
    for text in TEXTS:
        rows = list(token_rows([text], tokenizer, 16))
        seen = np.concatenate([row.tokens[row.modality == 1][1:] for row in rows])
        assert seen.tolist() == [*tokenizer.encode(text).tolist(), tokenizer.eos_id]
        assert rows[0].tokens[0] == tokenizer.bos_id


def test_a_model_that_knows_nothing_needs_the_logarithm_of_its_vocabulary(
    place: Path, blind: Path, corpus: str
) -> None:
    tokenizer = place / "tokenizer.model"
    words = ["--checkpoint", str(blind), "--modality", "text", "--input.tokenizer", str(tokenizer)]
    found = score_corpus(load(None, words), [corpus], 0, lambda _: None)
    tokens = sum(len(Tokenizer(tokenizer).encode(text)) + 1 for text in TEXTS)
    characters = sum(map(len, TEXTS))
    assert (found["tokens"], found["characters"]) == (tokens, characters)
    assert found["perplexity"] == pytest.approx(300, rel=1e-4)
    assert found["bits_per_character"] == pytest.approx(math.log2(300) * tokens / characters, rel=1e-4)
    first = score_corpus(load(None, words), [corpus], 1, lambda _: None)
    assert first["documents"] == 1


def test_patches_of_a_corpus(blind: Path, corpus: str) -> None:
    found = score_corpus(load(None, ["--checkpoint", str(blind), "--modality", "pixel"]), [corpus], 0, lambda _: None)
    # Normalized patches have a mean square of 767 / 768; blank and black ones are zero.
    assert 0.8 < found["patch_error"] < 1
    assert found["constant_patch"] < found["patch_error"]


def test_pairs_have_no_bits_per_character(blind: Path, corpus: str) -> None:
    with pytest.raises(UserError, match="choose one of the two"):
        score_corpus(load(None, ["--checkpoint", str(blind), "--modality", "pair"]), [corpus], 0)


def test_ridge_is_the_solution_of_its_own_equations() -> None:
    rng = np.random.default_rng(0)
    states, targets = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    weights = ridge(states, targets, 3.0)
    errors = apply(weights, states) - targets
    # The gradient of the penalized error is zero; the constant is free.
    assert np.allclose(states.T @ errors + 3.0 * weights[:-1], 0)
    assert np.allclose(errors.sum(0), 0)


def test_probing_tells_every_layer(place: Path) -> None:
    found = probe(load(None, settings(place, "dualgpt", "text", place / "probe")), lambda _: None)
    assert len(found["pretrained"]) == len(found["random"]) == 3
    # Ten sentences that are the training split too: the words themselves tell them apart.
    assert found["pretrained"][0] == 1.0


def test_robustness(place: Path, one_process: Mesh) -> None:
    folder = place / "robust"
    result, _ = finetune(settings(place, "dualgpt", "text", folder), one_process)
    said: list[str] = []
    found = measure(folder, ["swap", "script"], [0.1, 1.0], 0, said.append)
    assert found["clean"] == result["score"] == 1.0
    assert found["attacks"]["script"]["1.0"] < found["clean"]
    assert [line.split()[0] for line in said[-2:]] == ["swap", "script"]
    with pytest.raises(UserError, match=r"--attacks: there is no nothing; known: swap"):
        measure(folder, ["nothing"], [0.1], 0)
    with pytest.raises(UserError, match=r"--rates"):
        measure(folder, ["swap"], [2.0], 0)
