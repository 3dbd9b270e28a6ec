import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megatron_pixel.config.schema import LossConfig, ModelConfig
from megatron_pixel.data.rows import Kind, count_targets, target_masks
from megatron_pixel.model.objectives import LossSum, NextPatch, NextToken, losses
from tests.model.helpers import batch_of, build


@pytest.mark.parametrize("end_patch", [True, False])
def test_positions_equal_the_numpy_definition(end_patch: bool) -> None:
    rng = np.random.default_rng(0)
    modality = rng.integers(0, 3, (200, 12)).astype(np.uint8)
    segments = np.where(modality == 0, -1, rng.integers(0, 2, (200, 12))).astype(np.int32)
    token, patch = target_masks(modality, segments, end_patch)
    assert token.any()
    assert patch.any()
    tensors = torch.from_numpy(modality), torch.from_numpy(segments)
    np.testing.assert_array_equal(NextToken().positions(*tensors).numpy(), token)
    np.testing.assert_array_equal(NextPatch(end_patch=end_patch).positions(*tensors).numpy(), patch)


def patch_loss_of_the_paper(prediction: np.ndarray, patch: np.ndarray, normalize: bool) -> float:
    """Squared error over the values of one patch, scaled to [0, 1] and normalized by its own statistics."""
    x = patch.astype(np.float64) / 255
    if normalize:
        mean = sum(x) / len(x)
        variance = sum((x - mean) ** 2) / (len(x) - 1)
        x = (x - mean) / (variance + 1e-6) ** 0.5
    return sum((prediction.astype(np.float64) - x) ** 2) / len(x)


@pytest.mark.parametrize("target", ["normalised", "raw"])
@pytest.mark.parametrize("kind", [Kind.PIXEL, Kind.PAIR])
def test_patch_loss_equals_the_formula(small: ModelConfig, kind: Kind, target: str) -> None:
    small.patch_target = target  # type: ignore[assignment]
    network, objectives = build(small)
    batch = batch_of(kind, small, objectives)
    outputs = network(batch.inputs)
    result = losses(outputs, batch.labels, objectives)["patch"]
    patches = batch.inputs.patches.numpy()
    _, mask = target_masks(batch.inputs.modality.numpy(), batch.inputs.segment_ids.numpy())
    terms = [
        patch_loss_of_the_paper(prediction, patches[row, i + 1], target == "normalised")
        for prediction, (row, i) in zip(outputs[1].detach().numpy(), np.argwhere(mask), strict=True)
    ]
    assert result.count == len(terms) == batch.counts["patch"]
    assert result.sum.item() == pytest.approx(sum(terms), rel=1e-6)


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.PAIR])
def test_token_loss_equals_torch_cross_entropy(small: ModelConfig, kind: Kind) -> None:
    network, objectives = build(small)
    network[-1].closes[0] = False
    batch = batch_of(kind, small, objectives)
    outputs = network(batch.inputs)
    before = outputs[0].clone()
    result = losses(outputs, batch.labels, objectives)["token"]
    network[-1].closes[0] = True
    closed = losses(network(batch.inputs), batch.labels, objectives)["token"]
    torch.testing.assert_close(closed.each, result.each)
    assert torch.equal(closed.positions, result.positions)
    assert closed.count == result.count
    mask, _ = target_masks(batch.inputs.modality.numpy(), batch.inputs.segment_ids.numpy())
    targets = torch.stack([batch.inputs.tokens[row, i + 1] for row, i in np.argwhere(mask)])
    assert result.count == len(targets)
    torch.testing.assert_close(result.sum, F.cross_entropy(before, targets, reduction="sum"), rtol=1e-6, atol=0)
    assert torch.equal(outputs[0], before)


def test_a_blank_and_a_black_patch_have_the_same_normalized_target(small: ModelConfig) -> None:
    _, objectives = build(small)
    labels = batch_of(Kind.PIXEL, small, objectives).labels
    labels.patches[0, 1], labels.patches[0, 2] = 255, 0
    targets = objectives[1].targets(labels, torch.tensor([0, 1]))
    assert torch.equal(targets, torch.zeros(2, 48))


def test_predictions_become_pixels_with_the_statistics_of_the_true_patch(small: ModelConfig) -> None:
    for normalized in (True, False):
        objective = NextPatch(normalized=normalized)
        _, objectives = build(small)
        labels = batch_of(Kind.PIXEL, small, objectives).labels
        positions = torch.arange(5)
        pixels = objective.to_pixels(objective.targets(labels, positions), labels, positions)
        assert torch.equal(pixels, labels.patches[0, 1:6])


def test_counts_follow_the_end_patch_setting(small: ModelConfig) -> None:
    for end_patch in (True, False):
        network, objectives = build(small, loss=LossConfig(end_patch=end_patch))
        batch = batch_of(Kind.PIXEL, small, objectives)
        rows = batch.inputs.modality.numpy(), batch.inputs.segment_ids.numpy()
        assert batch.counts == {"patch": count_targets(*rows, end_patch).patches}
        assert losses(network(batch.inputs), batch.labels, objectives)["patch"].count == batch.counts["patch"]


def test_rows_without_targets_give_a_zero_that_reaches_every_parameter_of_the_head(small: ModelConfig) -> None:
    network, objectives = build(small)
    batch = batch_of(Kind.PIXEL, small, objectives)
    batch.inputs.header[3] = 0
    result = losses(network(batch.inputs), batch.labels, objectives)["patch"]
    result.sum.backward()
    assert result == LossSum(result.sum, 0)
    assert result.sum.item() == 0
    for parameter in network[-1].heads["patch"].parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_losses_are_fp32_under_bfloat16(small: ModelConfig) -> None:
    network, objectives = build(small)
    batch = batch_of(Kind.PAIR, small, objectives)
    exact = losses(network(batch.inputs), batch.labels, objectives)
    rounded = losses(network.bfloat16()(batch.inputs), batch.labels, objectives)
    for name, result in rounded.items():
        assert result.sum.dtype == torch.float32
        assert result.sum.item() == pytest.approx(exact[name].sum.item(), rel=0.02)
