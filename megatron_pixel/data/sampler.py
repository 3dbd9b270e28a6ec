"""The order of rows as a formula: which row is the k-th, with no list, no state and nothing to build.

``Blend`` says from which source the k-th row comes, ``RowOrder`` which row of that source it is. Both are pure
functions of k, so the only state of a run is how many rows it has consumed.
"""

import hashlib
import json
from fractions import Fraction
from functools import lru_cache
from math import isqrt, lcm

import numpy as np

_ROUNDS = 8
_MASK = (1 << 64) - 1
_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def derive_key(*parts: str | int) -> bytes:
    """64 bytes that depend on every part and on their order."""
    return hashlib.blake2b(json.dumps(parts).encode()).digest()


class KeyedPermutation:
    """A pseudo-random bijection of ``range(n)`` in O(1) memory.

    A Feistel network over ``Z_a x Z_b`` with a, b near sqrt(n) (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002); the few values that fall outside ``range(n)`` walk on along their cycle until they are inside.
    The round function is the finaliser of SplitMix64.

    Args:
        n: size of the domain, 1 to 2**40.
        key: 64 bytes, see :func:`derive_key`; other keys give unrelated permutations.
    """

    def __init__(self, n: int, key: bytes) -> None:
        if not 1 <= n <= 1 << 40:
            raise ValueError(f"a permutation of {n} elements: 1 to 2**40 are possible")
        self.n = n
        self._a = isqrt(n - 1) + 1
        self._b = -(-n // self._a)
        self._keys = [int(value) for value in np.frombuffer(key, "<u8", count=_ROUNDS)]

    def __call__(self, index: int) -> int:
        """The image of one index."""
        a, b = self._a, self._b
        while True:
            left, right = divmod(index, b)
            for number, key in enumerate(self._keys):
                if number % 2 == 0:
                    left = (left + _mix(right ^ key)) % a
                else:
                    right = (right + _mix(left ^ key)) % b
            index = left * b + right
            if index < self.n:
                return index

    def inverse(self, index: int) -> int:
        """The index whose image is ``index``."""
        a, b = self._a, self._b
        while True:
            left, right = divmod(index, b)
            for number in reversed(range(_ROUNDS)):
                if number % 2 == 0:
                    left = (left - _mix(right ^ self._keys[number])) % a
                else:
                    right = (right - _mix(left ^ self._keys[number])) % b
            index = left * b + right
            if index < self.n:
                return index

    def apply(self, indices: np.ndarray) -> np.ndarray:
        """The images of many indices: integers [m] in, int64 [m] out."""
        values = np.array(indices, np.uint64)
        outside = np.arange(len(values))
        while len(outside):
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= np.uint64(self.n)]
        return values.astype(np.int64)

    def _network(self, values: np.ndarray) -> np.ndarray:
        a, b = np.uint64(self._a), np.uint64(self._b)
        left: np.ndarray = values // b
        right: np.ndarray = values % b
        for number, key in enumerate(self._keys):
            # The hash is reduced before the addition: a 64-bit sum must not wrap around.
            if number % 2 == 0:
                left = (left + _mix_array(right ^ np.uint64(key)) % a) % a
            else:
                right = (right + _mix_array(left ^ np.uint64(key)) % b) % b
        return left * b + right


class RowOrder:
    """Which row is the k-th draw from a source; each epoch visits every row exactly once, in another order.

    Blocks of neighbouring rows are permuted over the whole source, and rows inside each window of ``window`` permuted
    blocks. Reads therefore stay within a few dozen places of the file at any time, while neighbours of the file end up
    far apart.

    Args:
        num_rows: rows of the source.
        rows_per_block: neighbouring rows that are permuted as one, about 1 MB of the file.
        key: see :func:`derive_key`.
        window: blocks among whose rows the second permutation mixes.
    """

    def __init__(self, num_rows: int, rows_per_block: int, key: bytes, window: int = 64) -> None:
        if min(num_rows, rows_per_block, window) < 1:
            raise ValueError(f"no order over {num_rows} rows in blocks of {rows_per_block} and windows of {window}")
        self.num_rows = num_rows
        self._block = rows_per_block
        self._window = window
        self._key = key
        self._num_blocks = -(-num_rows // rows_per_block)
        # Rows that the last block of the file lacks: 0 if it is full.
        self._lacking = self._num_blocks * rows_per_block - num_rows
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._rows_of_window = lru_cache(maxsize=4)(self._make_rows_of_window)

    def __call__(self, k: int) -> int:
        """Row index of draw ``k``, counted over all epochs."""
        epoch, place = divmod(k, self.num_rows)
        blocks, short = self._epoch(epoch)
        window, start, size = self._locate_window(place, short)
        place = start + self._rows_of_window(epoch, window, size)(place - start)
        slot, offset = self._locate_block(place, short)
        return blocks(slot) * self._block + offset

    def _make_epoch(self, epoch: int) -> tuple[KeyedPermutation, int]:
        """The permutation of blocks and the place to which it moves the last block of the file."""
        blocks = KeyedPermutation(self._num_blocks, self._derive("blocks", epoch))
        return blocks, blocks.inverse(self._num_blocks - 1)

    def _make_rows_of_window(self, epoch: int, window: int, size: int) -> KeyedPermutation:
        return KeyedPermutation(size, self._derive("rows", epoch, window))

    def _derive(self, *parts: str | int) -> bytes:
        return derive_key(self._key.hex(), *parts)

    def _locate_window(self, place: int, short: int) -> tuple[int, int, int]:
        """Window of a place among the permuted blocks: its number, its first place, its number of places."""
        full = self._window * self._block
        holds_short = short // self._window
        window = place // full
        if place >= (holds_short + 1) * full - self._lacking:
            window = (place + self._lacking) // full
        start = window * full - (self._lacking if window > holds_short else 0)
        stop = (window + 1) * full - (self._lacking if window >= holds_short else 0)
        return window, start, min(stop, self.num_rows) - start

    def _locate_block(self, place: int, short: int) -> tuple[int, int]:
        """Which permuted block a place falls in, and the offset inside it."""
        slot, offset = divmod(place, self._block)
        if place >= (short + 1) * self._block - self._lacking:
            slot, offset = divmod(place + self._lacking, self._block)
        return slot, offset


class Blend:
    """From which source the k-th row comes, and which row in the order of that source it is.

    Weights become whole numbers of rows in a period of at most ``max_period`` rows: exactly, where their ratio allows
    it, else rounded (each source keeps at least one row). Inside the period the rows of each source are spread evenly.

    Args:
        weights: positive numbers, one a source; only their ratio counts.
    """

    def __init__(self, weights: list[float] | list[int], max_period: int = 1 << 16) -> None:
        if not weights or not all(weight > 0 for weight in weights) or len(weights) > max_period:
            raise ValueError(f"weights {weights}: one positive number a source, {max_period} at the most")
        counts = _whole_numbers(weights, max_period)
        self.counts = tuple(counts)
        """Rows of each source in a period."""
        self.period = sum(counts)
        """Rows after which the pattern repeats."""
        source = np.repeat(np.arange(len(counts)), counts)
        rank = np.concatenate([np.arange(count) for count in counts])
        # The r-th of n rows wants to stand at (2r + 1) / 2n of the period; ties go to the earlier source.
        order = np.lexsort((source, (2 * rank + 1) / (2 * np.array(counts)[source])))
        self._source = source[order]
        self._rank = rank[order]
        self._slots = [np.flatnonzero(self._source == number) for number in range(len(counts))]

    def __call__(self, k: int) -> tuple[int, int]:
        """Source of row ``k`` and how many rows of that source come before it."""
        periods, slot = divmod(k, self.period)
        source = int(self._source[slot])
        return source, periods * self.counts[source] + int(self._rank[slot])

    def consumed(self, rows: int) -> list[int]:
        """Rows that the first ``rows`` rows take from each source."""
        periods, rest = divmod(rows, self.period)
        return [
            periods * count + int(np.searchsorted(slots, rest))
            for count, slots in zip(self.counts, self._slots, strict=True)
        ]

    def pattern(self) -> list[int]:
        """The sources of one period, in order."""
        return [int(source) for source in self._source]


def _whole_numbers(weights: list[float] | list[int], max_period: int) -> list[int]:
    # A weight means what was typed: 0.1 is one tenth, not the nearest binary fraction.
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    period = lcm(*(share.denominator for share in shares))
    if period <= max_period:
        return [int(share * period) for share in shares]
    ideal = [share * max_period for share in shares]
    counts = [max(1, int(value)) for value in ideal]
    missing = max(0, max_period - sum(counts))
    by_remainder = sorted(range(len(ideal)), key=lambda number: counts[number] - ideal[number])
    for number in by_remainder[:missing]:
        counts[number] += 1
    return counts


def _mix(value: int) -> int:
    value = (value + _GAMMA) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _mix_array(value: np.ndarray) -> np.ndarray:
    value = value + np.uint64(_GAMMA)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(_MIX_1)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(_MIX_2)
    return value ^ (value >> np.uint64(31))
