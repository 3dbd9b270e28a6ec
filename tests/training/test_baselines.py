"""The baselines against direct computations, and the swap of images."""

import numpy as np
import pytest

from megatron_pixel.config.schema import ModelConfig, PairConfig
from megatron_pixel.data.rows import Kind, MicroBatch, Modality, pair_row, pixel_row, stack_rows, text_row
from megatron_pixel.training.baselines import PatchBaselines, UnigramEntropy
from megatron_pixel.training.heldout import swap_images

PATCH_SIZE = 2
PATCH_DIM = PATCH_SIZE**2 * 3
SEQ = 12


def page(seed: int, patches: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (patches, PATCH_SIZE, PATCH_SIZE, 3), dtype=np.uint8)


def pixel_batch() -> MicroBatch:
    return stack_rows(Kind.PIXEL, [pixel_row(page(i, 5 + i), SEQ, ("pages", i)) for i in range(6)])


def test_unigram_entropy_counts_targets_only() -> None:
    # The first token of each document is no target: 7 and the second 3 do not count.
    row = text_row(np.array([7, 1, 1, 2, 3, 1, 2, 2]), np.array([4]), SEQ, ("text", 0))
    entropy = UnigramEntropy(8)
    entropy.add(stack_rows(Kind.TEXT, [row]))
    assert entropy.counts.tolist() == [0, 3, 3, 0, 0, 0, 0, 0]
    assert entropy.value() == pytest.approx(np.log(2))


def test_no_targets_no_value() -> None:
    assert UnigramEntropy(4).value() is None
    assert PatchBaselines(PATCH_DIM).constant_patch() is None
    assert PatchBaselines(PATCH_DIM).linear_previous_patch() is None


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("end_patch", [True, False])
def test_patch_baselines_equal_least_squares(normalised: bool, end_patch: bool) -> None:
    baselines = PatchBaselines(PATCH_DIM, normalised, end_patch)
    batch = pixel_batch()
    baselines.add(batch)
    previous, targets = [], []
    for i in range(6):
        pixels = page(i, 5 + i).reshape(5 + i, PATCH_DIM) / 255
        last = len(pixels) if end_patch else len(pixels) - 1
        previous.append(pixels[: last - 1])
        targets.append(pixels[1:last])
    x, y = np.concatenate(previous), np.concatenate(targets)
    if normalised:
        y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, ddof=1, keepdims=True) + 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights, *_ = np.linalg.lstsq(x, y, rcond=None)
    assert baselines.count == len(y)
    assert baselines.constant_patch() == pytest.approx(((y - y.mean(0)) ** 2).mean())
    assert baselines.linear_previous_patch() == pytest.approx(((y - x @ weights) ** 2).mean(), rel=1e-6)
    assert baselines.linear_previous_patch() < baselines.constant_patch()  # type: ignore[operator]


def test_gray_pages_make_no_singular_fit() -> None:
    gray = [np.repeat(page(i, 9)[..., :1], 3, axis=-1) for i in range(8)]
    rows = [pixel_row(patches, SEQ, ("pages", i)) for i, patches in enumerate(gray)]
    baselines = PatchBaselines(PATCH_DIM)
    baselines.add(stack_rows(Kind.PIXEL, rows))
    error = baselines.linear_previous_patch()
    assert error is not None
    assert 0 < error < 1.1


def test_swapped_images_keep_tokens_and_targets() -> None:
    model, pair = ModelConfig(seq_length=SEQ, patch_size=PATCH_SIZE), PairConfig(patches=6, tokens=6)
    rows = [pair_row(page(i, 2 + i), np.arange(10 * i, 10 * i + 5), SEQ, ("pairs", i)) for i in range(4)]
    batches = [stack_rows(Kind.PAIR, rows[:2]), stack_rows(Kind.PAIR, rows[2:])]
    swapped = list(swap_images(batches, model, pair))
    assert [len(batch.rows) for batch in swapped] == [2, 2]
    for number, (before, after) in enumerate(zip(batches, swapped, strict=True)):
        assert before.rows == after.rows
        assert before.count_targets().tokens == after.count_targets().tokens
        for i in range(2):
            other = (2 * number + i + 2) % 4
            tokens = after.tokens[i][after.modality[i] == Modality.TOKEN]
            assert tokens.tolist() == before.tokens[i][before.modality[i] == Modality.TOKEN].tolist()
            assert after.patches is not None
            image = after.patches[i][after.modality[i] == Modality.PATCH]
            assert np.array_equal(image, page(other, 2 + other).reshape(-1, PATCH_DIM))
