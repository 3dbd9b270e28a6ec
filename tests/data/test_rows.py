import numpy as np
import pytest

from megatron_pixel.data.rows import (
    PADDING_ORIGIN,
    Kind,
    Modality,
    TargetCounts,
    count_targets,
    padding_row,
    pair_row,
    pixel_row,
    stack_rows,
    target_masks,
    text_row,
)

ORIGIN = ("source", 7)
PAD, TOKEN, PATCH = Modality.PADDING, Modality.TOKEN, Modality.PATCH


def page(n: int, size: int = 2, channels: int = 3) -> np.ndarray:
    patches = np.random.default_rng(n).integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    patches[-1] = 0
    return patches


def expected_masks(modality, segments, end_patch):
    """The definition, position by position."""
    token, patch = np.zeros(len(modality), bool), np.zeros(len(modality), bool)
    for i in range(len(modality) - 1):
        if modality[i] != modality[i + 1] or segments[i] != segments[i + 1]:
            continue
        if modality[i] == TOKEN:
            token[i] = True
        if modality[i] == PATCH:
            last = i + 2 == len(modality) or (modality[i + 2], segments[i + 2]) != (PATCH, segments[i + 1])
            patch[i] = end_patch or not last
    return token, patch


def check_common(row, seq_length):
    assert row.tokens.dtype == np.int64
    assert row.modality.dtype == np.uint8
    assert row.position_ids.dtype == row.segment_ids.dtype == np.int32
    assert row.tokens.shape == row.modality.shape == row.position_ids.shape == row.segment_ids.shape == (seq_length,)
    np.testing.assert_array_equal(row.position_ids, np.arange(seq_length))
    np.testing.assert_array_equal(row.segment_ids == -1, row.modality == PAD)
    assert not row.tokens[row.modality != TOKEN].any()
    if row.patches is not None:
        assert row.patches.dtype == np.uint8
        assert (row.patches[row.modality != PATCH] == 255).all()


def test_text_row_counts_its_documents():
    row = text_row(np.array([5, 6, 2, 1, 7, 2, 1, 8], np.uint16), np.array([3, 6]), 8, ORIGIN)
    check_common(row, 8)
    assert row.patches is None
    assert row.origin == ORIGIN
    assert row.tokens.tolist() == [5, 6, 2, 1, 7, 2, 1, 8]
    assert row.segment_ids.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert count_targets(row.modality, row.segment_ids) == TargetCounts(tokens=2 + 2 + 1, patches=0)


def test_text_row_that_begins_with_a_document():
    row = text_row(np.array([1, 5, 2, 1]), np.array([0, 3]), 4, ORIGIN)
    assert row.segment_ids.tolist() == [0, 0, 0, 1]


def test_last_text_row_is_padded():
    row = text_row(np.array([1, 5, 2]), np.array([0]), 5, ORIGIN)
    check_common(row, 5)
    assert row.modality.tolist() == [TOKEN] * 3 + [PAD] * 2
    assert count_targets(row.modality, row.segment_ids) == TargetCounts(2, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_row(channels):
    patches = page(3, channels=channels)
    row = pixel_row(patches, 5, ORIGIN)
    check_common(row, 5)
    assert row.patches.shape == (5, 4 * channels)
    # Row, column, channel order inside a patch.
    assert row.patches[1].tolist() == [patches[1, y, x, c] for y in range(2) for x in range(2) for c in range(channels)]
    assert row.modality.tolist() == [PATCH] * 3 + [PAD] * 2
    assert row.segment_ids.tolist() == [0, 0, 0, -1, -1]
    assert count_targets(row.modality, row.segment_ids) == TargetCounts(0, 2)
    assert count_targets(row.modality, row.segment_ids, end_patch=False) == TargetCounts(0, 1)


def test_full_pixel_row():
    row = pixel_row(page(4), 4, ORIGIN)
    check_common(row, 4)
    assert count_targets(row.modality, row.segment_ids) == TargetCounts(0, 3)
    assert count_targets(row.modality, row.segment_ids, end_patch=False) == TargetCounts(0, 2)


def test_page_of_an_end_patch_alone_has_no_target():
    row = pixel_row(page(1), 4, ORIGIN)
    assert count_targets(row.modality, row.segment_ids) == TargetCounts(0, 0)


def test_compact_pair_has_no_padding_between():
    row = pair_row(page(3), np.array([1, 8, 9, 2]), 10, ORIGIN, "compact", patch_cap=5)
    check_common(row, 10)
    assert row.modality.tolist() == [PATCH] * 3 + [TOKEN] * 4 + [PAD] * 3
    assert row.segment_ids.tolist() == [0] * 3 + [1] * 4 + [-1] * 3
    assert row.tokens.tolist() == [0, 0, 0, 1, 8, 9, 2, 0, 0, 0]
    np.testing.assert_array_equal(row.patches[:3], page(3).reshape(3, -1))
    # BOS is no target: none crosses from the last patch to the first token.
    assert count_targets(row.modality, row.segment_ids) == TargetCounts(3, 2)


def test_released_pair_starts_the_text_after_the_cap():
    row = pair_row(page(3), np.array([1, 8, 9, 2]), 10, ORIGIN, "released", patch_cap=5)
    check_common(row, 10)
    assert row.modality.tolist() == [PATCH] * 3 + [PAD] * 2 + [TOKEN] * 4 + [PAD]
    assert row.segment_ids.tolist() == [0] * 3 + [-1] * 2 + [1] * 4 + [-1]
    assert row.tokens.tolist() == [0, 0, 0, 0, 0, 1, 8, 9, 2, 0]
    assert count_targets(row.modality, row.segment_ids) == TargetCounts(3, 2)


@pytest.mark.parametrize(
    "build",
    [
        lambda: text_row(np.arange(5), np.array([0]), 4, ORIGIN),
        lambda: text_row(np.arange(0), np.array([], int), 4, ORIGIN),
        lambda: pixel_row(page(5), 4, ORIGIN),
        lambda: pair_row(page(5), np.arange(3), 10, ORIGIN, "compact", patch_cap=4),
        lambda: pair_row(page(4), np.arange(7), 10, ORIGIN, "compact", patch_cap=4),
        lambda: pair_row(page(2), np.arange(7), 10, ORIGIN, "released", patch_cap=4),
    ],
)
def test_what_does_not_fit_is_refused(build):
    with pytest.raises(ValueError, match="do not fit a row"):
        build()


@pytest.mark.parametrize("end_patch", [True, False])
def test_masks_follow_the_definition(end_patch):
    rng = np.random.default_rng(0)
    modality = rng.choice(3, size=(200, 12), p=[0.1, 0.4, 0.5]).astype(np.uint8)
    segments = np.where(modality == PAD, -1, np.cumsum(rng.random((200, 12)) < 0.2, axis=1)).astype(np.int32)
    token, patch = target_masks(modality, segments, end_patch)
    assert token.shape == patch.shape == (200, 12)
    for row in range(200):
        expected = expected_masks(modality[row], segments[row], end_patch)
        np.testing.assert_array_equal(token[row], expected[0])
        np.testing.assert_array_equal(patch[row], expected[1])
    assert count_targets(modality, segments, end_patch) == TargetCounts(token.sum(), patch.sum())


def test_stacking_keeps_the_order_and_the_origins():
    rows = [pixel_row(page(n), 6, ("pages", n)) for n in (2, 5, 3)]
    batch = stack_rows(Kind.PIXEL, rows)
    assert batch.patches.dtype == np.uint8
    assert batch.patches.shape == (3, 6, 12)
    assert batch.tokens.shape == batch.modality.shape == batch.position_ids.shape == batch.segment_ids.shape == (3, 6)
    assert batch.rows == [("pages", 2), ("pages", 5), ("pages", 3)]
    np.testing.assert_array_equal(batch.patches[1], rows[1].patches)
    assert batch.count_targets() == TargetCounts(0, 1 + 4 + 2)
    assert batch.count_targets(end_patch=False) == TargetCounts(0, 0 + 3 + 1)


def test_text_batches_hold_no_patches():
    assert stack_rows(Kind.TEXT, [text_row(np.array([1, 2]), np.array([0]), 2, ORIGIN)]).patches is None


def test_rows_of_another_kind_are_refused():
    text = text_row(np.array([1, 2]), np.array([0]), 4, ORIGIN)
    with pytest.raises(ValueError, match="kind TEXT"):
        stack_rows(Kind.TEXT, [text, pixel_row(page(2), 4, ORIGIN)])
    with pytest.raises(ValueError, match="kind PIXEL"):
        stack_rows(Kind.PIXEL, [text])


@pytest.mark.parametrize("patch_values", [0, 12])
def test_padding_row_has_no_targets(patch_values):
    row = padding_row(6, patch_values)
    check_common(row, 6)
    assert row.origin == PADDING_ORIGIN
    assert (row.patches is None) == (patch_values == 0)
    assert count_targets(row.modality, row.segment_ids) == TargetCounts(0, 0)


def test_counts_add_up():
    assert TargetCounts(1, 2) + TargetCounts(3, 4) == TargetCounts(4, 6)
