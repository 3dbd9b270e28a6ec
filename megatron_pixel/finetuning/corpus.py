"""How well a pretrained model predicts any text: bits per character, perplexity, normalized patch error."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.schema import LossConfig, ModelConfig, ParallelConfig
from megatron_pixel.data.documents import read_documents
from megatron_pixel.data.rows import Kind, MicroBatch, Row, pixel_row, stack_rows, text_row
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.finetuning.inputs import open_inputs
from megatron_pixel.finetuning.origin import Start, find_start
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.training.baselines import PatchBaselines

BATCH_ROWS = 8


def token_rows(texts: Iterable[str], tokenizer: Tokenizer, length: int) -> Iterator[Row]:
    """Rows of ``BOS text EOS``, each text cut every ``length`` positions; a row begins with the last token of the one
    before, so every token but BOS is predicted once."""
    for number, text in enumerate(texts):
        tokens = np.concatenate([[tokenizer.bos_id], tokenizer.encode(text), [tokenizer.eos_id]])
        for first in range(0, len(tokens) - 1, length - 1):
            yield text_row(tokens[first : first + length], np.zeros(1, np.int64), length, ("corpus", number))


def page_rows(texts: Iterable[str], renderer: Renderer, model: ModelConfig) -> Iterator[Row]:
    """A row for each page of each text."""
    for number, text in enumerate(texts):
        for page in renderer.iter_pages(text, model.seq_length):
            yield pixel_row(page.patches(model.num_channels), model.seq_length, ("corpus", number))


def score_corpus(
    config: FinetuningConfig, files: list[str], documents: int, show: Callable[[str], None] = print
) -> dict[str, Any]:
    """Losses of a pretrained model on the documents of some files.

    Args:
        config: ``checkpoint``, ``modality`` (``text`` or ``pixel``), ``input.tokenizer`` and ``rendering`` count.
        files: in any format that preprocessing reads.
        documents: first ones to take; 0 takes all.

    Returns:
        For text ``nats_per_token``, ``perplexity``, ``bits_per_character``, ``tokens_per_character``; for pixels
        ``patch_error`` beside ``constant_patch`` and ``linear_previous_patch``, errors of models without context.

    Raises:
        UserError: modality ``pair``, a model without the head that predicts this modality, or files without text.
    """
    if config.modality == "pair":
        raise UserError("modality: bits per character are of text, patch errors of pixel: choose one of the two")
    texts = []
    for document in read_documents(files):
        texts.append(document.text)
        if len(texts) == documents:
            break
    characters = sum(map(len, texts))
    if not characters:
        raise UserError(f"{', '.join(files)}: no text")
    with mesh(ParallelConfig()) as here:
        start = find_start(config.checkpoint)
        inputs = open_inputs(config, start)
        network = _pretrained(start, inputs.model, here)
        facts = {
            "system": start.system,
            "checkpoint": str(start.where),
            "documents": len(texts),
            "characters": characters,
        }
        if config.modality == "text":
            assert inputs.tokenizer is not None
            rows = token_rows(texts, inputs.tokenizer, inputs.model.seq_length)
            nats, count = _total(network, rows, Kind.TEXT, inputs.model, here)
            facts |= {
                "tokens": count,
                "nats_per_token": nats / count,
                "perplexity": math.exp(nats / count),
                "bits_per_character": nats / math.log(2) / characters,
                "tokens_per_character": count / characters,
            }
            show(
                f"{start.where}: {facts['bits_per_character']:.4f} bits per character, perplexity "
                f"{facts['perplexity']:.2f} over {count:,} tokens, {characters:,} characters"
            )
            return facts
        assert inputs.rendering is not None
        renderer = Renderer(replace(inputs.rendering, seq_length=inputs.model.seq_length))
        baselines = PatchBaselines(inputs.model.patch_size**2 * inputs.model.num_channels, True, True)
        rows = page_rows(texts, renderer, inputs.model)
        error, count = _total(network, rows, Kind.PIXEL, inputs.model, here, baselines.add)
        facts |= {
            "patches": count,
            "patch_error": error / count,
            "constant_patch": baselines.constant_patch(),
            "linear_previous_patch": baselines.linear_previous_patch(),
        }
        show(
            f"{start.where}: patch error {error / count:.4f} over {count:,} patches; one constant patch "
            f"{facts['constant_patch']:.4f}, linear map of the previous patch {facts['linear_previous_patch']:.4f}"
        )
        return facts


def _pretrained(start: Start, model: ModelConfig, here: Mesh) -> nn.Sequential:
    """The model with its pretraining heads."""
    network = nn.Sequential(*build_stages(model, pretraining_objectives(model, LossConfig()), 0))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name not in start.weights.shapes:
                raise UserError(f"{start.where} has no {name}: it cannot predict text or patches")
            parameter.copy_(start.weights.read(name))
    return network.to(here.device).eval()


@torch.no_grad()
def _total(
    network: nn.Sequential,
    rows: Iterator[Row],
    kind: Kind,
    model: ModelConfig,
    here: Mesh,
    look: Callable[[MicroBatch], None] | None = None,
) -> tuple[float, int]:
    """Sum of the losses of all targets, and their number."""
    objectives = pretraining_objectives(model, LossConfig())
    total, count = 0.0, 0
    waiting: list[Row] = []

    def run() -> None:
        nonlocal total, count
        batch = stack_rows(kind, waiting)
        if look is not None:
            look(batch)
        tensors = to_tensors(batch, objectives, here.device)
        for part in losses(network(tensors.inputs), tensors.labels, objectives).values():
            total += float(part.sum)
            count += part.count
        waiting.clear()

    for row in rows:
        waiting.append(row)
        if len(waiting) == BATCH_ROWS:
            run()
    if waiting:
        run()
    return total, count
