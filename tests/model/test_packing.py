"""Rows of several documents against the same documents in rows of their own."""

import numpy as np
import pytest
import torch
from torch import Tensor

from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.data.rows import Kind, MicroBatch, Piece, Row, fill_documents, fill_pair, fill_text, stack_rows
from megatron_pixel.model import attention
from megatron_pixel.model.attention import Documents
from megatron_pixel.model.batch import Header, to_tensors
from megatron_pixel.model.objectives import losses
from megatron_pixel.training.losses import tally
from tests.model.helpers import build, hidden_states, page

LENGTHS = ((5, 3, 6), (4, 4), (14,))
"""Positions of the documents of each row; all rows have room for 16."""


def document(kind: Kind, model: ModelConfig, row: Row, start: int, length: int, seed: int) -> Piece:
    """Writes a page or pair of ``length`` positions, always the same for a seed."""
    rng = np.random.default_rng(seed)
    patches = length if kind == Kind.PIXEL else length - length // 2
    assert row.patches is not None
    row.patches[start : start + patches] = page(rng, model, patches).reshape(patches, -1)
    return Piece(patches, None if kind == Kind.PIXEL else rng.integers(3, model.vocab_size, length - patches))


def rows_of(kind: Kind, model: ModelConfig, lengths: tuple[tuple[int, ...], ...], first_seed: int = 0) -> MicroBatch:
    """Rows of documents of these lengths, whose seeds count from ``first_seed``."""
    rows, seed = [], first_seed
    for number, row_lengths in enumerate(lengths):
        if kind == Kind.TEXT:
            seeds = range(seed, seed + len(row_lengths))
            tokens = [np.random.default_rng(s).integers(3, 40, n) for s, n in zip(seeds, row_lengths, strict=True)]
            starts = np.cumsum([0, *row_lengths[:-1]])
            empty = Row.empty(model.seq_length, 0, ("text", number))
            rows.append(fill_text(empty, np.concatenate(tokens), starts, apart=True))
        else:
            row = Row.empty(model.seq_length, model.patch_size**2 * model.num_channels, ("page", number))
            pieces = []
            for i, length in enumerate(row_lengths):
                pieces.append(document(kind, model, row, sum(row_lengths[:i]), length, seed + i))
            rows.append(fill_documents(row, pieces))
        seed += len(row_lengths)
    return stack_rows(kind, rows)


@pytest.mark.parametrize("kind", Kind)
def test_losses_and_gradients_are_those_of_the_documents_alone(small: ModelConfig, kind: Kind) -> None:
    network, objectives = build(small)
    packed = to_tensors(rows_of(kind, small, LENGTHS), objectives)
    alone = to_tensors(rows_of(kind, small, tuple((n,) for row in LENGTHS for n in row)), objectives)
    assert Header.read(packed.inputs.header).documents == 6
    assert Header.read(alone.inputs.header).documents == 0
    assert packed.counts == alone.counts
    gradients: list[list[Tensor]] = []
    found = []
    for batch in (packed, alone):
        network.zero_grad()
        terms = losses(network(batch.inputs), batch.labels, objectives)
        torch.stack([term.sum / max(1, term.count) for term in terms.values()]).sum().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        found.append({name: term.each for name, term in terms.items()})
    for name, each in found[0].items():
        assert each is not None
        torch.testing.assert_close(each, found[1][name], rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_released_pairs_need_no_padding_where_they_share_a_row(small: ModelConfig) -> None:
    """In ``pair.layout: released`` tokens begin at a fixed position; packed, their position ids alone say so."""
    network, objectives = build(small)
    cap, values = 8, small.patch_size**2 * small.num_channels
    packed, alone = list[Row](), list[Row]()
    for number, row_lengths in enumerate(LENGTHS):
        shared = Row.empty(small.seq_length, values, ("pair", number))
        pieces: list[Piece] = []
        for length in row_lengths:
            start, seed = sum(piece.length for piece in pieces), len(alone)
            pieces.append(document(Kind.PAIR, small, shared, start, length, seed)._replace(first_token=cap))
            own = Row.empty(small.seq_length, values, ("pair", 10 + seed))
            patches, tokens, _ = document(Kind.PAIR, small, own, 0, length, seed)
            assert tokens is not None
            alone.append(fill_pair(own, patches, tokens, "released", cap))
        packed.append(fill_documents(shared, pieces))
    batches = [to_tensors(stack_rows(Kind.PAIR, rows), objectives) for rows in (packed, alone)]
    headers = [Header.read(batch.inputs.header) for batch in batches]
    assert [(header.documents, header.inner_padding) for header in headers] == [(6, False), (0, True)]
    assert batches[0].counts == batches[1].counts
    mine, theirs = (losses(network(batch.inputs), batch.labels, objectives) for batch in batches)
    for name, term in mine.items():
        assert term.each is not None
        torch.testing.assert_close(term.each, theirs[name].each, rtol=1e-6, atol=1e-6)
    compact = to_tensors(rows_of(Kind.PAIR, small, LENGTHS), objectives)
    near = losses(network(compact.inputs), compact.labels, objectives)["token"].each
    assert near is not None
    assert not torch.allclose(near, mine["token"].each, rtol=1e-5), "the distance matters"


@pytest.mark.parametrize("kind", Kind)
def test_a_document_changes_no_other_bit(small: ModelConfig, kind: Kind) -> None:
    network, objectives = build(small)
    rows, other = (rows_of(kind, small, LENGTHS, seed) for seed in (0, 100))
    before = hidden_states(network, to_tensors(rows, objectives))
    rows.tokens[0, 5:8] = other.tokens[0, 5:8]
    if rows.patches is not None and other.patches is not None:
        rows.patches[0, 5:8] = other.patches[0, 5:8]
    after = hidden_states(network, to_tensors(rows, objectives))
    changed = (before != after).any(-1)
    assert changed[0, 5:8].all()
    changed[0, 5:8] = False
    assert not changed.any()


def test_bounds_and_mask(small: ModelConfig) -> None:
    rows = rows_of(Kind.TEXT, small, LENGTHS)
    documents = Documents(torch.from_numpy(rows.position_ids), 6)
    assert documents.bounds().tolist() == [0, 5, 8, 16, 20, 32, 48]
    mask = documents.mask()[0, 0]
    for query in range(14):
        begin = max(start for start in (0, 5, 8) if start <= query)
        assert torch.nonzero(mask[query]).flatten().tolist() == list(range(begin, query + 1))


@pytest.mark.parametrize("groups", [1, 4])
def test_every_way_to_attend_is_the_same(small: ModelConfig, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(Kind.TEXT, small, LENGTHS)
    documents = Documents(torch.from_numpy(rows.position_ids), 6)
    query, key, value = (torch.randn(16, 3, heads, 8) for heads in (4, groups, groups))
    one_by_one = attention._one_by_one(query, key, value, documents)
    masked = attention._masked(query, key, value, documents)
    assert one_by_one.shape == (16, 3, 32)
    torch.testing.assert_close(one_by_one, masked, rtol=1e-5, atol=1e-6)


def test_pairs_that_are_attended_are_counted(small: ModelConfig) -> None:
    for kind in Kind:
        counted = tally(rows_of(kind, small, LENGTHS), end_patch=True)
        assert counted.attended == sum(n * (n + 1) // 2 for row in LENGTHS for n in row)
        assert counted.positions == sum(map(sum, LENGTHS))


def test_an_older_flash_attention_gets_repeated_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of PyTorch 2.11 may have a window and know no grouped queries; before, it had neither."""
    given: list[tuple[int, ...]] = []

    def older(query: Tensor, key: Tensor, value: Tensor, *bounds: object, window_size: tuple[int, int]) -> Tensor:
        assert torch.equal(key[:, 0], key[:, 1])
        assert window_size == (-1, 0)
        given.append(tuple(key.shape))
        return value

    def first(query: Tensor, key: Tensor, value: Tensor, *bounds: object, is_causal: bool = False) -> Tensor:
        return value

    module = pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(module, "varlen_attn", older)
    flash = attention._varlen.__wrapped__()
    query, key, value = (torch.randn(6, heads, 8) for heads in (4, 2, 2))
    found = flash(query, key, value, 0, 0, 6, 6, window_size=(-1, 0), enable_gqa=True)
    assert given == [(6, 4, 8)]
    assert torch.equal(found[:, ::2], value)
    monkeypatch.setattr(module, "varlen_attn", first)
    assert attention._varlen.__wrapped__() is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("groups", [1, 4])
def test_on_a_gpu_flash_attention_takes_documents(small: ModelConfig, groups: int) -> None:
    rows = rows_of(Kind.TEXT, small, LENGTHS)
    documents = Documents(torch.from_numpy(rows.position_ids).cuda(), 6)
    parts = [
        torch.randn(16, 3, heads, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (4, groups, groups)
    ]
    if attention._varlen() is None:
        pytest.skip("this PyTorch has no flash attention over sequences of any lengths and a window")
    ways = []
    for way in (attention._attend_apart, attention._masked):
        context = way(*parts, documents)
        ways.append((context, *torch.autograd.grad(context.float().square().sum(), parts)))
    for mine, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), rtol=2e-2, atol=2e-2)
