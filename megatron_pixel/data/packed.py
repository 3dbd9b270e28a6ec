"""A source whose rows hold several pages, or pairs, that do not see each other."""

from typing import Protocol

from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.packing import PackingPlan
from megatron_pixel.data.rows import Kind, Piece, Row, fill_documents


class Pages(Protocol):
    """A source of single pages or pairs that can also write one behind others."""

    name: str
    identity: str
    kind: Kind
    note: str
    manifest: Manifest
    rows_per_block: int
    num_rows: int
    seq_length: int
    patch_values: int

    def piece(self, index: int, row: Row, start: int) -> Piece:
        """Write the patches of a page from position ``start`` of ``row`` on; returns what else stands there."""
        ...


class PackedSource:
    """The pages of a source as rows of several; see :mod:`megatron_pixel.data.packing`.

    Args:
        pages: the source of single pages.
        plan: which of them share a row.
    """

    def __init__(self, pages: Pages, plan: PackingPlan) -> None:
        self._pages, self._plan = pages, plan
        self.name, self.kind, self.manifest = pages.name, pages.kind, pages.manifest
        facts = plan.facts
        packed = f"{self.name}: {facts.pages:,} packed into {facts.rows:,} rows, {facts.fill:.1%} full"
        self.note = "; ".join(filter(None, (packed, pages.note)))
        self.identity = f"{pages.identity} packed {plan.identity[:12]}"
        self.num_rows = len(plan)
        # As many bytes of the file as a block of single pages.
        self.rows_per_block = max(1, pages.rows_per_block * self.num_rows // max(1, pages.num_rows))
        self.seq_length, self.patch_values = pages.seq_length, pages.patch_values

    def row(self, index: int, out: Row | None = None) -> Row:
        """Row ``index`` of the plan."""
        row = out or Row.empty(self.seq_length, self.patch_values, (self.name, index))
        pieces: list[Piece] = []
        start = 0
        for page in self._plan.pages(index):
            pieces.append(self._pages.piece(page, row, start))
            start += pieces[-1].length
        return fill_documents(row, pieces)
