import tracemalloc

import numpy as np
import pytest

from megatron_pixel.data.sampler import Blend, KeyedPermutation, RowOrder, derive_key

KEY = derive_key(1234, "source")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 99, 100, 101, 1000, 4097])
def test_permutation_is_a_bijection(n):
    permutation = KeyedPermutation(n, KEY)
    images = permutation.apply(np.arange(n))
    assert sorted(images) == list(range(n))
    assert [permutation(index) for index in range(n)] == images.tolist()
    assert [permutation.inverse(image) for image in images.tolist()] == list(range(n))


@pytest.mark.parametrize("n", [1 << 40, (1 << 40) - 1, 400_000_000, 999_983 * 1_000_003])
def test_large_permutation_is_invertible_and_same_scalar_and_vectorized(n):
    permutation = KeyedPermutation(n, KEY)
    indices = np.unique(np.concatenate([np.arange(500), n - 1 - np.arange(500), np.arange(0, n, n // 997)]))
    images = permutation.apply(indices)
    assert images.min() >= 0
    assert images.max() < n
    assert len(np.unique(images)) == len(indices)
    for index, image in zip(indices[::7].tolist(), images[::7].tolist(), strict=True):
        assert permutation(index) == image
        assert permutation.inverse(image) == index


@pytest.mark.parametrize("n", [0, -1, (1 << 40) + 1])
def test_permutation_refuses_other_sizes(n):
    with pytest.raises(ValueError, match=r"2\*\*40"):
        KeyedPermutation(n, KEY)


def test_permutation_never_changes():
    # A run that resumes under another version, machine or byte order must go on with the same rows.
    assert KeyedPermutation(1000, derive_key(0, "a")).apply(np.arange(8)).tolist() == [
        526,
        179,
        480,
        998,
        529,
        931,
        672,
        484,
    ]


def test_key_decides_everything():
    parts: list[tuple[str | int, ...]] = [(1, "a", 0), (1, "a", 1), (1, "b", 0), (2, "a", 0), ("1", "a", 0), (1, "a0")]
    orders = {tuple(KeyedPermutation(100, derive_key(*key)).apply(np.arange(100))) for key in parts}
    assert len(orders) == len(parts)


def test_permutation_shows_no_order():
    n = 20_011
    images = KeyedPermutation(n, KEY).apply(np.arange(n)).astype(float)
    for lag in (1, 2, 3, 141, 142):  # 141.5 is the square root of n: the two halves of the network
        correlation = np.corrcoef(images[:-lag], images[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(n), lag
    assert abs(np.corrcoef(images, np.arange(n))[0, 1]) < 5 / np.sqrt(n)
    # Every tenth of the draws covers every tenth of the range alike (chi-square, 81 degrees of freedom).
    table, _, _ = np.histogram2d(np.arange(n), images, bins=10)
    assert ((table - n / 100) ** 2 / (n / 100)).sum() < 81 + 5 * np.sqrt(2 * 81)
    # A random permutation has one fixed point on average.
    assert (images == np.arange(n)).sum() < 8


def test_all_orders_of_few_elements_are_about_equally_frequent():
    orders: dict[tuple[int, ...], int] = {}
    for number in range(6000):
        order = tuple(KeyedPermutation(4, derive_key(number)).apply(np.arange(4)))
        orders[order] = orders.get(order, 0) + 1
    assert len(orders) == 24
    assert min(orders.values()) > 150
    assert max(orders.values()) < 350


@pytest.mark.parametrize("num_rows", [1, 2, 9, 10, 11, 95, 100, 101, 359, 360, 361])
@pytest.mark.parametrize(("rows_per_block", "window"), [(1, 1), (10, 3), (10, 4), (7, 2), (500, 64), (3, 1)])
def test_every_row_exactly_once_per_epoch(num_rows, rows_per_block, window):
    order = RowOrder(num_rows, rows_per_block, KEY, window)
    epochs = [[order(k) for k in range(epoch * num_rows, (epoch + 1) * num_rows)] for epoch in range(6)]
    for rows in epochs:
        assert sorted(rows) == list(range(num_rows))
    if num_rows > 50:
        assert len({tuple(rows) for rows in epochs}) == 6


def test_short_block_stands_in_every_window():
    # 31 rows in blocks of 4: the last one has 3 rows and must not always stay at the end.
    last_rows = {28, 29, 30}
    places = set()
    for number in range(60):
        order = RowOrder(31, 4, derive_key(number), window=2)
        rows = [order(k) for k in range(31)]
        assert sorted(rows) == list(range(31))
        places.add(min(k for k, row in enumerate(rows) if row in last_rows) // 8)
    assert places == {0, 1, 2, 3}


def test_reads_stay_within_one_window_of_blocks():
    order = RowOrder(num_rows=10_000, rows_per_block=20, key=KEY, window=8)
    rows = [order(k) for k in range(10_000)]
    blocks_touched = [len({row // 20 for row in rows[start : start + 160]}) for start in range(0, 10_000 - 160, 160)]
    assert max(blocks_touched) == 8
    # ... and the blocks of a window are not neighbours in the file.
    spans = [max(rows[start : start + 160]) - min(rows[start : start + 160]) for start in range(0, 10_000 - 160, 160)]
    assert np.mean(spans) > 5000


def test_neighbours_of_the_file_are_far_apart_within_a_window():
    order = RowOrder(num_rows=6400, rows_per_block=100, key=KEY)
    place = np.empty(6400, int)
    for k in range(6400):
        place[order(k)] = k
    # Two independent places among 6400 are a third of that apart on average.
    assert np.abs(np.diff(place)).mean() == pytest.approx(6400 / 3, rel=0.05)


def test_opening_400_million_rows_costs_nothing():
    tracemalloc.start()
    order = RowOrder(400_000_000, 256, KEY)
    rows = [order(k) for k in (0, 1, 123_456_789, 399_999_999, 400_000_000, 4_000_000_000)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(0 <= row < 400_000_000 for row in rows)
    assert peak < 200_000


def test_order_refuses_no_rows():
    with pytest.raises(ValueError, match="0 rows"):
        RowOrder(0, 10, KEY)


@pytest.mark.parametrize("weights", [[1], [1, 1], [4, 4, 2], [0.7, 0.2, 0.1], [1, 999], [3, 5, 7, 11], [1e-3, 1.0]])
def test_blend_is_exact_over_a_period(weights):
    blend = Blend(weights)
    share = np.array(weights) / sum(weights)
    draws = [blend(k) for k in range(3 * blend.period)]
    assert np.bincount([source for source, _ in draws]) == pytest.approx(share * 3 * blend.period)
    for number in range(len(weights)):
        indices = [index for source, index in draws if source == number]
        assert indices == list(range(len(indices)))


@pytest.mark.parametrize("weights", [[4, 4, 2], [1, 2, 3, 50], [0.123, 0.456, 0.421]])
def test_blend_is_smooth(weights):
    blend = Blend(weights)
    share = np.array(weights) / sum(weights)
    taken = np.zeros(len(weights))
    for k in range(2 * blend.period):
        taken[blend(k)[0]] += 1
        assert np.abs(taken - share * (k + 1)).max() <= len(weights) / 2 + 1e-9


def test_blend_counts_what_was_consumed():
    blend = Blend([5, 3, 0.5])
    taken = [0, 0, 0]
    for k in range(2 * blend.period + 3):
        assert blend.consumed(k) == taken
        source, index = blend(k)
        assert index == taken[source]
        taken[source] += 1


def test_blend_is_cheap_far_out():
    assert Blend([4, 4, 2])(10**15) == (0, 4 * 10**14)


def test_weights_without_a_short_period_are_rounded_and_none_vanishes():
    blend = Blend([1_000_003, 2_000_003, 1], max_period=1000)
    assert blend.counts[2] == 1
    assert blend.counts[1] / blend.counts[0] == pytest.approx(2, rel=0.01)
    assert sum(blend.counts) == blend.period <= 1001


@pytest.mark.parametrize("weights", [[], [1, 0], [-1, 2]])
def test_blend_refuses_weights_that_are_not_positive(weights):
    with pytest.raises(ValueError, match="positive"):
        Blend(weights)
