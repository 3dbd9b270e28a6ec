import pytest
import torch

from megatron_pixel.config.schema import LossConfig, ModelConfig, PairConfig
from megatron_pixel.data.rows import PADDING_ORIGIN, Kind, MicroBatch, Modality, stack_rows
from megatron_pixel.data.synthetic import SyntheticSource
from megatron_pixel.model.objectives import LossSum, pretraining_objectives
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.losses import LossTotals, StepCounts, loss_factors, micro_batch_loss, tally

OBJECTIVES = pretraining_objectives(ModelConfig(), LossConfig(token_weight=1.0, patch_weight=0.5))


def term(total: float, count: int) -> LossSum:
    return LossSum(torch.tensor(total, requires_grad=True), count)


def test_means_over_all_targets_not_over_micro_batches(one_process: Mesh) -> None:
    totals = LossTotals(one_process.device)
    totals.add(Kind.TEXT, {"token": term(10.0, 4)})
    totals.add(Kind.TEXT, {"token": term(2.0, 1)})
    totals.add(Kind.PAIR, {"token": term(6.0, 5), "patch": term(3.0, 2)})
    totals.add(Kind.PIXEL, {"patch": term(1.0, 2)})
    means = totals.means(OBJECTIVES, one_process)
    assert means == {
        "loss_token_text": 12 / 5,
        "loss_token_pair": 6 / 5,
        "loss_patch_pixel": 1 / 2,
        "loss_patch_pair": 3 / 2,
        "loss": pytest.approx(18 / 10 + 0.5 * 4 / 4),
    }


def test_losses_by_source_are_means_over_the_targets_of_its_rows(one_process: Mesh) -> None:
    """Three rows of four positions; the targets of the second row come from another source than those around it."""
    names = {Kind.TEXT: ["text:a", "text:b"], Kind.PIXEL: ["pixel:only"]}
    totals = LossTotals(one_process.device, names)
    rows = MicroBatch.empty(Kind.TEXT, [("text:a", 7), ("text:b", 1), ("text:a", 8)], 4, 0)
    each = torch.tensor([1.0, 2.0, 10.0, 20.0, 30.0, 4.0])
    positions = torch.tensor([0, 2, 4, 5, 6, 9])
    totals.add(Kind.TEXT, {"token": LossSum(each.sum(), 6, each, positions)}, rows)
    padded = MicroBatch.empty(Kind.TEXT, [("text:b", 2), PADDING_ORIGIN, PADDING_ORIGIN], 4, 0)
    totals.add(Kind.TEXT, {"token": LossSum(torch.tensor(5.0), 1, torch.tensor([5.0]), torch.tensor([3]))}, padded)
    pages = MicroBatch.empty(Kind.PIXEL, [("pixel:only", 0)], 4, 3)
    totals.add(Kind.PIXEL, {"patch": LossSum(torch.tensor(3.0), 2, torch.ones(2), torch.tensor([0, 1]))}, pages)
    found = totals.collect(OBJECTIVES, one_process)
    assert found.by_source == {
        "loss_token_text/a": pytest.approx(7 / 3),
        "loss_token_text/b": pytest.approx(65 / 4),
        "loss_patch_pixel/only": 1.5,
    }
    assert found.by_kind["loss_token_text"] == pytest.approx(72 / 7)


def test_what_has_no_target_is_none(one_process: Mesh) -> None:
    totals = LossTotals(one_process.device)
    totals.add(Kind.TEXT, {"token": term(9.0, 3), "patch": term(0.0, 0)})
    means = totals.means(OBJECTIVES, one_process)
    assert (means["loss"], means["loss_token_text"]) == (3.0, 3.0)
    assert (means["loss_token_pair"], means["loss_patch_pixel"], means["loss_patch_pair"]) == (None, None, None)


def divisors(tokens: int, patches: int) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(float(n), dtype=torch.float64) for name, n in (("token", tokens), ("patch", patches))}


def test_a_micro_batch_is_scaled_so_that_averaging_cancels() -> None:
    token, patch = term(6.0, 3), term(8.0, 4)
    factors = loss_factors(OBJECTIVES, divisors(12, 16), data_parallel=2, accumulation=5)
    loss = micro_batch_loss({"token": token, "patch": patch}, factors)
    assert loss.item() == pytest.approx((6 / 12 + 0.5 * 8 / 16) * 10)
    loss.backward()
    assert token.sum.grad is not None
    assert token.sum.grad.item() == pytest.approx(10 / 12)


def test_an_objective_without_any_target_still_takes_part() -> None:
    patch = term(0.0, 0)
    factors = loss_factors(OBJECTIVES, divisors(3, 1), 1, 1)
    loss = micro_batch_loss({"token": term(6.0, 3), "patch": patch}, factors)
    loss.backward()
    assert patch.sum.grad is not None, "ranks that disagree about which parameters have a gradient would hang"


@pytest.mark.parametrize("end_patch", [True, False])
def test_counts_of_a_step(one_process: Mesh, end_patch: bool) -> None:
    model, pair = ModelConfig(vocab_size=64, seq_length=16, patch_size=4), PairConfig(patches=8, tokens=8)
    sources = {kind: SyntheticSource(kind, "train", model, pair) for kind in Kind}
    batches = [stack_rows(kind, [source.row(i) for i in range(3)]) for kind, source in sources.items()]
    counts = StepCounts(
        [tally(batch, end_patch) for batch in batches], OBJECTIVES, one_process.data_group, one_process.device
    )
    patches = sum(int((batch.modality == Modality.PATCH).sum()) for batch in batches)
    assert counts.patches == patches
    # A page of n patches has n - 1 targets, one less without its end patch; there are six pages.
    assert counts.targets["patch"] == patches - 6 * (1 if end_patch else 2)
    assert counts.positions == sum(int((batch.modality != Modality.PADDING).sum()) for batch in batches)
    lengths = [int(n) for batch in batches for n in (batch.modality != Modality.PADDING).sum(1)]
    assert counts.attended == sum(sum(range(1, n + 1)) for n in lengths)
    assert 0 < counts.targets["token"] < counts.positions - patches
