"""Making the plan of a dataset: the lengths of its pages, window by window, in any number of processes."""

import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import diff
from megatron_pixel.config.schema import RenderingOverrides
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.packing import WINDOW, Content, PackedWindow, PlanFacts, plan_prefix, windows, write_plan
from megatron_pixel.data.packing_kernel import pack
from megatron_pixel.data.rendered import StringPages
from megatron_pixel.data.split import TRAIN
from megatron_pixel.data.stores import PageStore, PairStore, StringStore

Measured = PageStore | PairStore | StringPages
"""What knows, or finds out, how long its pages are."""

_WINDOWS_OF_TASK = 16
"""Windows of stored pages that a process measures at once; rendering one takes as long as reading a hundred."""
_AHEAD = 3
"""Tasks in hand of each process."""


def pack_dataset(
    prefix: str,
    seq_length: int,
    workers: int = 1,
    progress: Callable[[PlanFacts, int], None] = lambda facts, pages: None,
    rendering: RenderingOverrides | None = None,
) -> PlanFacts:
    """Write the plan of a dataset's training split, in memory that does not depend on its size.

    Args:
        prefix: of a dataset of pixels, of strings or of pairs. The pages of strings are laid out once to measure them.
        seq_length: positions of a row.
        workers: processes that measure and pack; the plan is the same for any number.
        progress: told what is written, and the pages of the split, after each window.
        rendering: settings that strings will be drawn with instead of those of the dataset.

    Raises:
        UserError: there is no such dataset, or it is of another kind, or a page is damaged or longer than a row, or a
            process died.
    """
    rendering = rendering or RenderingOverrides()
    _opened.clear()
    measured = _opened[prefix, repr(rendering)] = open_measured(prefix, rendering)
    content = _content(measured)
    at_once = 1 if isinstance(measured, StringPages) else _WINDOWS_OF_TASK
    cuts = windows(content.pages)
    tasks = [(cuts[i][0], cuts[min(i + at_once, len(cuts)) - 1][1]) for i in range(0, len(cuts), at_once)]
    work = partial(_pack_stretch, prefix, seq_length, rendering)
    packed = map(work, tasks) if workers == 1 else _in_processes(work, tasks, workers)
    path_prefix = plan_prefix(prefix, TRAIN, seq_length)
    flat = (window for stretch in packed for window in stretch)
    return write_plan(path_prefix, content, seq_length, flat, lambda facts: progress(facts, content.pages))


def open_measured(prefix: str, rendering: RenderingOverrides) -> Measured:
    """The training split of a dataset that can be packed.

    Raises:
        UserError: it cannot, or there is none, or settings are given for pages that are drawn already.
    """
    kind = Manifest.read(prefix).kind
    if kind == StringStore.kind:
        return StringPages(StringStore(prefix), rendering)
    if given := sorted(diff(RenderingOverrides(), rendering)):
        raise UserError(f"data.rendering.{given[0]}: {prefix} is a {kind} dataset, whose pages are drawn already")
    if kind == PageStore.kind:
        return PageStore(prefix)
    if kind == PairStore.kind:
        return PairStore(prefix)
    raise UserError(
        f"{prefix} is a {kind} dataset: datasets of pixels, of strings and of pairs can be packed; text needs no plan"
    )


def measure(measured: Measured, first: int, stop: int) -> np.ndarray:
    """Positions that the pages, or pairs, ``first`` to ``stop`` take: int32."""
    if isinstance(measured, StringPages):
        return np.array([measured.page(index).num_patches for index in range(first, stop)], np.int32)
    lengths = measured.lengths(first, stop)
    if isinstance(measured, PairStore):
        lengths += measured.tokens.sizes[first:stop]
    return lengths


def _content(measured: Measured) -> Content:
    if isinstance(measured, StringPages):
        return measured.content
    return Content(measured.fingerprint, len(measured))


_opened: dict[tuple[str, str], Measured] = {}
"""The dataset that this process reads."""


def _pack_stretch(
    prefix: str, seq_length: int, rendering: RenderingOverrides, stretch: tuple[int, int]
) -> list[PackedWindow]:
    """The windows of a stretch of pages, which begins where one begins."""
    key = (prefix, repr(rendering))
    if key not in _opened:
        _opened.clear()
        _opened[key] = open_measured(prefix, rendering)
    lengths = measure(_opened[key], *stretch)
    if len(lengths) and lengths.max() > seq_length:
        page, longest = stretch[0] + int(lengths.argmax()), int(lengths.max())
        raise UserError(
            f"page {page} of {prefix} takes {longest} positions: more than --seq-length {seq_length}, and no page is "
            f"divided: give --seq-length {longest} or more, as model.seq_length, or make a dataset of shorter pages"
        )
    parts = [lengths[start : start + WINDOW] for start in range(0, len(lengths), WINDOW)]
    return [PackedWindow(*pack(part, seq_length), int(part.sum())) for part in parts]


def _in_processes(
    work: Callable[[tuple[int, int]], list[PackedWindow]], tasks: list[tuple[int, int]], workers: int
) -> Iterator[list[PackedWindow]]:
    """What tasks give, in their order; few are ahead of the one that is asked for, so memory is flat."""
    # Ctrl-C is for the process that waits for them.
    ignoring = signal.signal, (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(max(1, min(workers, len(tasks))), get_context("spawn"), *ignoring)
    running: deque[Future[list[PackedWindow]]] = deque()
    try:
        for task in tasks:
            running.append(pool.submit(work, task))
            if len(running) >= _AHEAD * workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a process that measured pages died, most likely for want of memory; run again with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
