"""What a step reads: rows of every kind in fixed numbers, the same rows for every layout of devices."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import gcd, lcm
from typing import Any

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.mixture import PerKind, parse_mixture, rows_per_kind
from megatron_pixel.config.schema import DataConfig, EvaluationConfig, ModelConfig, PairConfig, TrainingConfig
from megatron_pixel.data.rows import PADDING_ORIGIN, Kind, MicroBatch, Origin, Row, batch_bytes, fill_padding
from megatron_pixel.data.sampler import Blend, RowOrder, derive_key
from megatron_pixel.data.sources import DATA_KEYS, Source, WeightedSources, open_sources


def kinds_of(data: DataConfig) -> list[Kind]:
    """The kinds that have rows in the mixture."""
    return [kind for kind, part in zip(Kind, parse_mixture(data.mixture), strict=True) if part]


@dataclass(frozen=True)
class Mixture:
    """Rows of each kind in a step, and how they are cut into micro-batches."""

    rows_per_step: Mapping[Kind, int]
    """Rows of a step over all ranks; kinds without rows are left out."""
    micro_batch_rows: int

    @classmethod
    def from_config(cls, data: DataConfig, training: TrainingConfig, dp_size: int) -> "Mixture":
        """The mixture of a run.

        Raises:
            UserError: if the rows of a step cannot be shared out to kinds, ranks and micro-batches without a rest; the
                message lists the nearest values that can.
        """
        mixture, micro = parse_mixture(data.mixture), training.micro_rows
        counts = rows_per_kind(mixture, training.global_batch_rows)
        rows_per_step = {kind: count for kind, count in zip(Kind, counts, strict=True) if count}
        if micro < 1 or any(count % (micro * dp_size) for count in counts):
            raise UserError(_does_not_divide(data, training, mixture, rows_per_step, dp_size))
        return cls(rows_per_step, micro)

    def schedule(self, dp_size: int) -> tuple[Kind, ...]:
        """The kinds of a step's micro-batches on every rank, evenly interleaved; the same for every step and rank."""
        kinds = list(self.rows_per_step)
        counts = [self.rows_per_step[kind] // (self.micro_batch_rows * dp_size) for kind in kinds]
        pattern = Blend(counts, max_period=sum(counts)).pattern()
        return tuple(kinds[number] for number in pattern * gcd(*counts))


class MixtureReader:
    """Reads the micro-batches of a run; every method is a pure function of its arguments.

    Args:
        mixture: rows of each kind in a step.
        sources: sources of each kind in the mixture.
        seed: seed of the run, keys the order of the rows.
    """

    def __init__(self, mixture: Mixture, sources: WeightedSources, seed: int) -> None:
        self.mixture = mixture
        self._sources, self._seed = sources, seed
        self._streams: dict[Kind, _Stream] = {}
        for kind in mixture.rows_per_step:
            if not sources.get(kind):
                raise UserError(
                    f"data.mixture asks for {kind.name.lower()} rows, but {DATA_KEYS[kind]} is empty: list a dataset "
                    f"prefix there or set the part of {kind.name.lower()} rows in data.mixture to 0"
                )
            self._streams[kind] = _Stream(sources[kind], seed)
        self._places = lru_cache(maxsize=4)(self._make_places)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.mixture, self._sources, self._seed)

    @property
    def notes(self) -> list[str]:
        """What the user should know of the sources before a run."""
        return [source.note for stream in self._streams.values() for source in stream.sources if source.note]

    @property
    def source_names(self) -> dict[Kind, list[str]]:
        """Names of the sources of each kind, as rows carry them."""
        return {kind: [source.name for source in stream.sources] for kind, stream in self._streams.items()}

    def warm_up(self) -> None:
        """Reads a row of every source, so that code is compiled and cached; what goes wrong is left for later."""
        for stream in self._streams.values():
            for source in stream.sources:
                with suppress(Exception):
                    source.row(0)

    def sample(self, share: int = 0, shares: int = 1, rows: int = 8) -> None:
        """Read some rows spread over every source, others for each share, so that damage shows before hours are spent.

        Raises:
            UserError: a row cannot be read; the message names the source and the row.
        """
        for stream in self._streams.values():
            for source in stream.sources:
                for number in range(min(rows, source.num_rows)):
                    place = (number * shares + share) * source.num_rows // (rows * shares)
                    try:
                        read_row(source, place)
                    except RowError as error:
                        raise UserError(f"{error}; python data_tools/verify.py PREFIX tells what is damaged") from error

    @property
    def batch_bytes(self) -> int:
        """Memory that the arrays of a micro-batch take at the most."""
        return max(
            batch_bytes(self.mixture.micro_batch_rows, stream.seq_length, stream.patch_values)
            for stream in self._streams.values()
        )

    def num_rows(self, kind: Kind) -> int:
        """Rows of this kind in all of its sources."""
        return self._streams[kind].num_rows

    def num_micro_batches(self, dp_size: int) -> int:
        """Micro-batches of a step on each rank: the steps of gradient accumulation."""
        return len(self._places(dp_size))

    def micro_batch(
        self, step: int, index: int, dp_rank: int, dp_size: int, buffer: np.ndarray | None = None
    ) -> MicroBatch:
        """Micro-batch ``index`` of ``step`` (both from 0) on one data-parallel rank.

        The rows of a step are the same for every ``micro_batch_rows`` and ``dp_size``; only who reads them changes.
        ``buffer``, uint8 of at least :attr:`batch_bytes` elements, receives the arrays if it is given.

        Raises:
            UserError, RowError: if a row cannot be read; the message names the source and the row.
        """
        kind, index_of_kind = self._places(dp_size)[index]
        size = self.mixture.micro_batch_rows
        first = step * self.mixture.rows_per_step[kind] + (index_of_kind * dp_size + dp_rank) * size
        stream = self._streams[kind]
        places = [stream.locate(k) for k in range(first, first + size)]
        return _read_batch(kind, places, stream.seq_length, stream.patch_values, size, buffer)

    def micro_batch_of(self, kind: Kind, rows: list[Origin], buffer: np.ndarray) -> MicroBatch:
        """The micro-batch that :meth:`micro_batch` has written into ``buffer``, perhaps in another process."""
        stream = self._streams[kind]
        return MicroBatch.empty(kind, rows, stream.seq_length, stream.patch_values, buffer)

    def consumed(self, steps: int) -> dict[str, int]:
        """Rows that the first ``steps`` steps take from each source, by identity; the whole state of the data."""
        counts: dict[str, int] = {}
        for kind, stream in self._streams.items():
            counts |= stream.consumed(steps * self.mixture.rows_per_step[kind])
        return counts

    def _make_places(self, dp_size: int) -> list[tuple[Kind, int]]:
        """Kind of each micro-batch of a step, and its number among those of its kind."""
        seen = dict.fromkeys(Kind, 0)
        places = []
        for kind in self.mixture.schedule(dp_size):
            places.append((kind, seen[kind]))
            seen[kind] += 1
        return places


class HeldoutReader:
    """Reads held-out rows of each kind, every row once and in the order of the file.

    Args:
        sources: held-out sources of each kind; a kind without rows gives no batches.
        rows: rows of each kind at the most, shared out to the sources of the kind by weight.
        micro_batch_rows: rows of a batch.
    """

    def __init__(self, sources: WeightedSources, rows: int, micro_batch_rows: int) -> None:
        self._micro_batch_rows = micro_batch_rows
        self._rows: dict[Kind, list[tuple[Source, int]]] = {}
        for kind, weighted in sources.items():
            filled = [(weight, source) for weight, source in weighted if source.num_rows]
            quotas = _quotas([weight for weight, _ in filled], [source.num_rows for _, source in filled], rows)
            self._rows[kind] = [
                (source, index) for (_, source), quota in zip(filled, quotas, strict=True) for index in range(quota)
            ]

    @property
    def source_names(self) -> dict[Kind, list[str]]:
        """Names of the sources of each kind, as rows carry them."""
        return {kind: list(dict.fromkeys(source.name for source, _ in rows)) for kind, rows in self._rows.items()}

    def num_rows(self, kind: Kind) -> int:
        """Rows of this kind that an evaluation reads."""
        return len(self._rows.get(kind, []))

    def num_batches(self, kind: Kind, dp_size: int) -> int:
        """Batches of this kind on each rank."""
        return -(-self.num_rows(kind) // (self._micro_batch_rows * dp_size))

    def batches(self, kind: Kind, dp_rank: int = 0, dp_size: int = 1) -> Iterator[MicroBatch]:
        """The batches of one rank: as many on every rank, the last ones filled up with rows that have no targets."""
        rows, size = self._rows.get(kind, []), self._micro_batch_rows
        if not rows:
            return
        for index in range(self.num_batches(kind, dp_size)):
            first = (index * dp_size + dp_rank) * size
            source = rows[0][0]
            yield _read_batch(kind, rows[first : first + size], source.seq_length, source.patch_values, size)


def open_training(
    data: DataConfig, model: ModelConfig, pair: PairConfig, training: TrainingConfig, dp_size: int
) -> MixtureReader:
    """The reader of a run's training rows.

    Raises:
        UserError: for everything that does not fit, before any work.
    """
    mixture = Mixture.from_config(data, training, dp_size)
    return MixtureReader(mixture, open_sources(mixture.rows_per_step, "train", data, model, pair), training.seed)


def open_heldout(
    data: DataConfig, model: ModelConfig, pair: PairConfig, training: TrainingConfig, evaluation: EvaluationConfig
) -> HeldoutReader:
    """The reader of the held-out rows of every kind in the run's mixture."""
    sources = open_sources(kinds_of(data), "heldout", data, model, pair)
    return HeldoutReader(sources, evaluation.rows, training.micro_rows)


class RowError(RuntimeError):
    """A row could not be read, through no fault that the user can mend."""


def read_row(source: Source, index: int, out: Row | None = None) -> Row:
    """One row, written into ``out`` if given; an error names the source and the row.

    Raises:
        UserError: if the source raised one.
        RowError: for anything else that went wrong.
    """
    try:
        return source.row(index, out)
    except UserError as error:
        raise UserError(f"row {index} of {source.name}: {error}") from error
    except Exception as error:
        raise RowError(f"row {index} of {source.name}: {type(error).__name__}: {error}") from error


def _read_batch(
    kind: Kind,
    places: Sequence[tuple[Source, int]],
    seq_length: int,
    patch_values: int,
    size: int,
    buffer: np.ndarray | None = None,
) -> MicroBatch:
    """The rows at ``places`` and, up to ``size`` rows, padding; every row is decoded or drawn where it stays."""
    origins = [(source.name, index) for source, index in places]
    origins += [PADDING_ORIGIN] * (size - len(places))
    batch = MicroBatch.empty(kind, origins, seq_length, patch_values, buffer)
    for i, (source, index) in enumerate(places):
        read_row(source, index, batch.row(i))
    for i in range(len(places), size):
        fill_padding(batch.row(i))
    return batch


class _Stream:
    """The endless stream of rows of one kind: sources blended by weight, each in its own order."""

    def __init__(self, weighted: Sequence[tuple[float, Source]], seed: int) -> None:
        self.sources = [source for _, source in weighted]
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"{DATA_KEYS[self.sources[0].kind]} lists {name} twice: give it one entry, and weight")
        for source in self.sources:
            if not source.num_rows:
                raise UserError(f"{source.name} has no rows to train on")
        self.seq_length, self.patch_values = self.sources[0].seq_length, self.sources[0].patch_values
        self._blend = Blend([weight for weight, _ in weighted])
        self._orders = [
            RowOrder(source.num_rows, source.rows_per_block, derive_key(seed, source.name)) for source in self.sources
        ]

    @property
    def num_rows(self) -> int:
        return sum(source.num_rows for source in self.sources)

    def locate(self, k: int) -> tuple[Source, int]:
        """Source and row index of row ``k`` of the stream."""
        source, draw = self._blend(k)
        return self.sources[source], self._orders[source](draw)

    def consumed(self, rows: int) -> dict[str, int]:
        return dict(zip((source.identity for source in self.sources), self._blend.consumed(rows), strict=True))


def _quotas(weights: list[float], available: list[int], rows: int) -> list[int]:
    """Rows to take from each source: by weight, and what one source lacks from the others."""
    quotas = [0] * len(weights)
    while weights and (left := min(rows, sum(available)) - sum(quotas)):
        open_sources = [number for number in range(len(weights)) if quotas[number] < available[number]]
        shares = Blend([weights[number] for number in open_sources]).consumed(left)
        for number, share in zip(open_sources, shares, strict=True):
            quotas[number] = min(available[number], quotas[number] + share)
    return quotas


def _does_not_divide(
    data: DataConfig, training: TrainingConfig, mixture: PerKind, rows_per_step: Mapping[Kind, int], dp_size: int
) -> str:
    """Why the rows of a step cannot be cut into micro-batches, with the nearest batch sizes that can."""
    rows, micro = training.global_batch_rows, training.micro_rows
    shares = ", ".join(f"{count} {kind.name.lower()}" for kind, count in rows_per_step.items())
    message = (
        f"training.global_batch_rows: {rows} rows split {data.mixture} are {shares} rows a step; each must "
        f"be a multiple of training.micro_batch_rows {micro} x {dp_size} data-parallel ranks"
    )
    unit = micro * dp_size
    if unit > 0:
        parts = [part // gcd(*mixture) for part in mixture if part]
        step = sum(parts) * lcm(*(unit // gcd(unit, part) for part in parts))
        below = rows // step * step
        nearest = [number for number in (below, below + step) if number]
        message += f"; nearest valid training.global_batch_rows: {' or '.join(map(str, nearest))}"
    common = gcd(*rows_per_step.values())
    if common % dp_size == 0:
        divisors = [divisor for divisor in range(1, common // dp_size + 1) if common // dp_size % divisor == 0]
        nearest = [divisor for divisor in divisors if divisor < micro][-1:] + [d for d in divisors if d > micro][:1]
        message += f"; nearest valid training.micro_batch_rows: {' or '.join(map(str, nearest))}"
    return message
