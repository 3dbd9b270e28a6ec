"""A classifier begins as the model that was pretrained: it sees the same rows, and thinks the same of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_pixel.config.schema import LossConfig, PairConfig, RenderingConfig
from megatron_pixel.data.documents import DocumentReader
from megatron_pixel.data.preprocess_documents import Recipe
from megatron_pixel.data.preprocessing import preprocess
from megatron_pixel.data.rows import Modality, Row
from megatron_pixel.data.sources import PairSource, PixelSource, TextSource
from megatron_pixel.finetuning.arguments import load
from megatron_pixel.finetuning.run import FinetuningRun
from megatron_pixel.model.batch import ModelInputs, to_tensors
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.canonical import load_weights, open_source
from megatron_pixel.training.weights import newest_whole
from tests.finetuning.conftest import SENTENCES, settings, tiny

SENTENCE = [text for group in SENTENCES.values() for text in group]
LENGTH = tiny().model.seq_length


def begin(place: Path, modality: str, here: Mesh) -> FinetuningRun:
    words = settings(place, "dualgpt", modality, place / "unused", "--keep_model", "false")
    return FinetuningRun(load(None, [*words, "--input.length", str(LENGTH)]), here, lambda _: None)


@pytest.fixture(scope="module")
def pretraining_rows(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    """The sentences as preprocessing and the readers of pretraining make rows of them, a document each."""
    folder = tmp_path_factory.mktemp("datasets")
    documents, tokenizer = folder / "documents.jsonl", str(place / "tokenizer.model")
    documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in SENTENCE), encoding="utf-8")
    pair, model = PairConfig(patches=LENGTH // 2, tokens=LENGTH // 2), tiny().model
    recipes = {
        "text": Recipe("text", 0.0, tokenizer=tokenizer),
        "pixel": Recipe("pixels", 0.0, RenderingConfig(seq_length=LENGTH)),
        "pair": Recipe("pairs", 0.0, RenderingConfig(seq_length=LENGTH), tokenizer, pair),
    }
    for name, recipe in recipes.items():
        preprocess(DocumentReader([str(documents)]), recipe, str(folder / name))
    sources = {
        "text": TextSource(str(folder / "text"), "train", model, "text"),
        "pixel": PixelSource(str(folder / "pixel"), "train", model, "pixel"),
        "pair": PairSource(str(folder / "pair"), "train", model, pair, "pair"),
    }
    return {name: [source.row(index) for index in range(source.num_rows)] for name, source in sources.items()}


@pytest.mark.parametrize("modality", ["pixel", "pair"])
def test_an_example_is_the_row_that_pretraining_has_of_it(
    modality: str, place: Path, pretraining_rows: dict[str, list[Row]], one_process: Mesh
) -> None:
    """Pixels, tokens, the black patch, BOS and EOS, positions, segments, and where padding begins."""
    train = begin(place, modality, one_process)._train
    assert len(pretraining_rows[modality]) == len(SENTENCE)
    for index, other in enumerate(pretraining_rows[modality]):
        row = train.batch(np.array([index])).row(0)
        length = int(train.lengths[index])
        assert other.modality.tolist().index(Modality.PADDING) == length
        for name in ("tokens", "modality", "position_ids", "segment_ids", "patches"):
            here, there = getattr(row, name)[:length], getattr(other, name)[:length]
            assert np.array_equal(here, there), name


def test_texts_are_the_documents_of_the_stream(
    place: Path, pretraining_rows: dict[str, list[Row]], one_process: Mesh
) -> None:
    train = begin(place, "text", one_process)._train
    rows = [train.batch(np.array([index])).row(0) for index in range(len(SENTENCE))]
    mine = np.concatenate([row.tokens[row.modality == Modality.TOKEN] for row in rows])
    stream = np.concatenate([row.tokens[row.modality == Modality.TOKEN] for row in pretraining_rows["text"]])
    assert np.array_equal(mine, stream)


@pytest.mark.parametrize("modality", ["text", "pixel", "pair"])
def test_a_classifier_begins_with_the_states_of_the_pretrained_model(
    modality: str, place: Path, one_process: Mesh
) -> None:
    """Behind the embedding, every layer and the final norm, bit by bit, at every position of rows of all lengths."""
    started = begin(place, modality, one_process)
    model = tiny().model
    objectives = pretraining_objectives(model, LossConfig())
    pretrained = torch.nn.Sequential(*build_stages(model, objectives, seed=99)).eval()
    load_weights(pretrained, open_source(newest_whole(place / "dualgpt" / "checkpoints")[1]))
    classifier = started._engine.module.eval()
    rows = started._train.batch(np.arange(len(SENTENCE)))
    states = tuple(to_tensors(rows, objectives).inputs), tuple(to_tensors(rows, [started._score]).inputs)
    real = ModelInputs(*states[0]).modality != Modality.PADDING
    with torch.no_grad():
        for number, (one, other) in enumerate(zip(pretrained[:-1], classifier[:-1], strict=True)):
            states = one(states[0]), other(states[1])
            hidden, found = (state[0].transpose(0, 1)[real] for state in states)
            assert torch.equal(hidden, found), f"stage {number}"
            assert hidden.std() > 0
        last = torch.tensor([row.nonzero().max() for row in real])
        read = states[1][0][last, torch.arange(len(last))]  # what the classifier reads: behind the norm
        assert torch.equal(classifier[-1](states[1])[0], classifier[-1].heads["score"].linear(read))
