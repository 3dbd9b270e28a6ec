"""Sources of rows: what stands between the datasets and the mixture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig
from megatron_pixel.data.rows import Kind, Row
from megatron_pixel.data.synthetic import SyntheticSource


class Source(Protocol):
    """Rows of one kind, addressed by index. Reading is a pure function of the index and safe from one thread."""

    name: str
    """Names the source in batches, checkpoints and messages; keys its order."""
    kind: Kind
    num_rows: int
    rows_per_block: int
    """Neighbouring rows that make about 1 MB of the file."""

    def row(self, index: int) -> Row:
        """Row ``index``, 0 <= index < num_rows."""
        ...


DATA_KEYS = {Kind.TEXT: "data.text", Kind.PIXEL: "data.pixels", Kind.PAIR: "data.pairs"}
"""The config key that lists the datasets of a kind."""

WeightedSources = Mapping[Kind, Sequence[tuple[float, Source]]]
"""The sources of each kind with their weights."""


def open_sources(
    kinds: Iterable[Kind], split: str, data: DataConfig, model: ModelConfig, pair: PairConfig
) -> WeightedSources:
    """Opens the sources of some kinds.

    Args:
        kinds: kinds to open.
        split: ``train`` or ``heldout``.
    """
    return {kind: [(1.0, SyntheticSource(kind, split, model, pair))] for kind in kinds if data.synthetic}
