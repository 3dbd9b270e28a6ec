"""Making the plan of a dataset: the lengths of its pages, window by window, in any number of processes."""

from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.packing import PlanFacts, pack, plan_prefix, windows, write_plan
from megatron_pixel.data.split import TRAIN
from megatron_pixel.data.stores import PageStore, PairStore

Window = tuple[int, int]
"""First page and end."""


def pack_dataset(
    prefix: str,
    seq_length: int,
    workers: int = 1,
    progress: Callable[[PlanFacts, int], None] = lambda facts, pages: None,
) -> PlanFacts:
    """Write the plan of a dataset's training split, in memory that does not depend on its size.

    Args:
        prefix: of a dataset of pixels or of pairs.
        seq_length: positions of a row.
        workers: processes that read the lengths; the plan is the same for any number.
        progress: told what is written, and the pages of the split, after each window.

    Raises:
        UserError: there is no such dataset, or it is of another kind, or a page is damaged or longer than a row.
    """
    store = _open(prefix)
    pages = len(store)

    def rows() -> Iterator[tuple[list[list[int]], int]]:
        work = partial(_pack_window, prefix, seq_length)
        if workers == 1:
            yield from map(work, windows(pages))
            return
        with get_context("spawn").Pool(workers) as pool:
            yield from pool.imap(work, windows(pages))

    path_prefix = plan_prefix(prefix, TRAIN, seq_length)
    return write_plan(path_prefix, store.fingerprint, seq_length, rows(), lambda facts: progress(facts, pages))


_opened: dict[str, PageStore | PairStore] = {}
"""The dataset that this process reads."""


def _pack_window(prefix: str, seq_length: int, window: Window) -> tuple[list[list[int]], int]:
    """Rows of a window, and the positions that they hold."""
    if prefix not in _opened:
        _opened.clear()
        _opened[prefix] = _open(prefix)
    store = _opened[prefix]
    lengths = [store.num_patches(page) for page in range(*window)]
    if isinstance(store, PairStore):
        tokens = store.tokens.sizes[slice(*window)]
        lengths = [patches + int(count) for patches, count in zip(lengths, tokens, strict=True)]
    if lengths and max(lengths) > seq_length:
        page = window[0] + lengths.index(max(lengths))
        raise UserError(f"page {page} of {prefix} takes {max(lengths)} positions: more than --seq-length {seq_length}")
    return pack(lengths, seq_length), sum(lengths)


def _open(prefix: str) -> PageStore | PairStore:
    kind = Manifest.read(prefix).kind
    if kind == PageStore.kind:
        return PageStore(prefix)
    if kind == PairStore.kind:
        return PairStore(prefix)
    raise UserError(f"{prefix} is a {kind} dataset: datasets of pixels and of pairs can be packed; text needs no plan")
