"""The training stages and the decoder for inference give what the released architecture, written out plainly, gives."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from megatron_pixel.config.schema import LossConfig
from megatron_pixel.data.rows import Kind, MicroBatch, Modality, pair_row, pixel_row, stack_rows, text_row
from megatron_pixel.generation.decoder import Cache, Decoder
from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.open import open_any
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.training.canonical import load_weights, open_source
from tests.alone import alone
from tests.interop.helpers import SMALL, full_tensors, write_canonical
from tests.interop.plain import Plain

ROWS = ["text", "pixel", "pair-compact", "pair-released"]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def stages(run: Path) -> Iterator[nn.Sequential]:
    """The training model, its weights drawn from another seed and then loaded from the checkpoint."""
    with alone():
        network = nn.Sequential(*build_stages(SMALL, pretraining_objectives(SMALL, LossConfig()), seed=9))
        load_weights(network, open_source(open_any(run).folder))
        yield network


@pytest.fixture(scope="module")
def decoder(run: Path) -> Decoder:
    return decoder_of(run)


def decoder_of(folder: Path) -> Decoder:
    source = open_any(folder).source
    return Decoder(SMALL, lambda name: source.read(name, "fp32"), set(source.shapes))


def rows(kind: str) -> MicroBatch:
    """Two rows of different lengths: one has padding at its end, and released pairs have it in the middle."""
    rng = np.random.default_rng(5)
    found = []
    for i, (patches, tokens) in enumerate(((9, 16), (13, 11))):
        page = rng.integers(0, 256, (patches, 8, 8, 3), dtype=np.uint8)
        page[-1] = 0
        ids = rng.integers(3, SMALL.vocab_size, tokens)
        if kind == "text":
            found.append(text_row(ids, np.array([0]), SMALL.seq_length, ("text", i)))
        elif kind == "pixel":
            found.append(pixel_row(page, SMALL.seq_length, ("pixel", i)))
        else:
            layout = kind.removeprefix("pair-")
            found.append(pair_row(page, ids, SMALL.seq_length, ("pair", i), layout, 16))  # type: ignore[arg-type]
    return stack_rows({"text": Kind.TEXT, "pixel": Kind.PIXEL}.get(kind, Kind.PAIR), found)


def plain_states(plain: Plain, batch: MicroBatch) -> Tensor:
    """[b, s, hidden] of every row, padding included."""
    states = []
    for i in range(len(batch.rows)):
        modality = torch.from_numpy(batch.modality[i])
        embedded = plain.tokens(torch.from_numpy(batch.tokens[i]))
        if batch.patches is not None:
            page = torch.from_numpy(batch.patches[i]).view(-1, 8, 8, 3)
            strip = page.permute(3, 1, 0, 2).flatten(2).float() / 255  # [C, P, n * P]
            is_patch = (modality == Modality.PATCH)[:, None]
            embedded = torch.where(is_patch, plain.patches(strip), embedded)
        positions = torch.from_numpy(batch.position_ids[i])
        states.append(plain.hidden(embedded, positions, modality != Modality.PADDING))
    return torch.stack(states)


@pytest.mark.parametrize("kind", ROWS)
def test_the_training_model_equals_the_released_architecture(kind: str, stages: nn.Sequential, exported: Path) -> None:
    plain, objectives = Plain(exported), pretraining_objectives(SMALL, LossConfig())
    rows_here = rows(kind)
    batch = to_tensors(rows_here, objectives)
    with torch.no_grad():
        stages[-1].closes[0] = False  # logits, not losses
        outputs = stages(batch.inputs)
        states = plain_states(plain, rows_here).flatten(0, 1)
    assert states.abs().max() > 1
    compared = 0
    for output, head, targets, objective in zip(
        outputs, ("lm_token_head", "lm_pixel_head"), batch.labels.targets, objectives, strict=True
    ):
        count = batch.counts.get(objective.name, 0)
        if count:
            torch.testing.assert_close(output, plain.head(head, states[targets[:count]]), **CLOSE)
            compared += count
    assert compared == {"text": 25, "pixel": 20}.get(kind, 45)


@pytest.mark.parametrize("kind", ROWS)
def test_the_decoder_equals_the_released_architecture(kind: str, decoder: Decoder, exported: Path) -> None:
    plain, batch = Plain(exported), rows(kind)
    modality = torch.from_numpy(batch.modality)
    embedded = decoder.embed_tokens(torch.from_numpy(batch.tokens))
    if batch.patches is not None:
        patches = decoder.embed_patches(torch.from_numpy(batch.patches))
        embedded = torch.where((modality == Modality.PATCH)[..., None], patches, embedded)
    content = modality != Modality.PADDING
    hidden = decoder.forward(embedded, torch.from_numpy(batch.position_ids), content=content)
    expected = plain_states(plain, batch)
    torch.testing.assert_close(hidden[content], expected[content], **CLOSE)
    for head, name in (("token", "lm_token_head"), ("patch", "lm_pixel_head")):
        ours, theirs = decoder.head(head, hidden)[content], plain.head(name, expected)[content]
        torch.testing.assert_close(ours, theirs, **CLOSE)


def test_the_cache_changes_nothing(decoder: Decoder) -> None:
    """Read at once, in pieces, and position by position; with padding at the beginning of a row and without."""
    tokens = torch.randint(3, SMALL.vocab_size, (2, 20), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(20).expand(2, 20).clone()
    for padding in (0, 6):
        content = torch.ones(2, 20, dtype=torch.bool)
        content[1, :padding] = False
        positions[1] = (torch.arange(20) - padding).clamp_min(0)
        embedded = decoder.embed_tokens(tokens)
        whole = decoder.forward(embedded, positions, content=content if padding else None)
        alone = decoder.forward(embedded[1:, padding:], torch.arange(20 - padding)[None])
        torch.testing.assert_close(whole[1:, padding:], alone, **CLOSE)
        for cuts in ([8, 13], [7, 8, 9, 10, 19], list(range(1, 20))):
            if cuts[0] < padding:
                continue
            cache = Cache(decoder, 2, 20, content[:, : cuts[0]])
            pieces = [
                decoder.forward(embedded[:, start:end], positions[:, start:end], cache)
                for start, end in zip([0, *cuts], [*cuts, 20], strict=True)
            ]
            torch.testing.assert_close(torch.cat(pieces, 1)[content], whole[content], **CLOSE)


@pytest.mark.parametrize(("heads", "kv_heads", "channels"), [(4, 4, 3), (4, 1, 1), (8, 2, 3)])
def test_other_shapes(heads: int, kv_heads: int, channels: int, tmp_path: Path) -> None:
    model = SMALL.__class__(**{**vars(SMALL), "heads": heads, "kv_heads": kv_heads, "num_channels": channels})
    write_canonical(tmp_path / "run", model, full_tensors(model))
    to_hf(open_any(tmp_path / "run"), tmp_path / "out", ExportOptions())
    source, plain = open_any(tmp_path / "run").source, Plain(tmp_path / "out")
    decoder = Decoder(model, lambda name: source.read(name, "fp32"), set(source.shapes))
    page = torch.randint(0, 256, (10, 8, 8, channels), dtype=torch.uint8)
    strip = page.permute(3, 1, 0, 2).flatten(2).float() / 255
    positions, everything = torch.arange(10), torch.ones(10, dtype=torch.bool)
    expected = plain.hidden(plain.patches(strip), positions, everything)
    found = decoder.forward(decoder.embed_patches(page.view(10, -1))[None], positions[None])[0]
    torch.testing.assert_close(found, expected, **CLOSE)
