"""Pages from all over the input, for the codec to learn from: the same ones whoever draws them."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, islice

from megatron_pixel.data.documents import Document, PartReader
from megatron_pixel.data.preprocess_documents import Chunk, Converter
from megatron_pixel.data.preprocess_plan import cut_file
from megatron_pixel.data.records import Part, ReaderOptions
from megatron_pixel.rendering.page import Page

PLACES = 64
_PAGES_OF_A_DOCUMENT = 4
_DOCUMENTS_OF_A_PLACE = 64


def places(units: Sequence[Part], count: int, options: ReaderOptions, shift: float = 0.0) -> list[tuple[Part, int]]:
    """About ``count`` evenly spaced places of the input, as parts that begin there.

    ``units`` are the inputs, of those that are spooled their parts. A unit that cannot be entered in the middle is
    entered at its beginning, and comes once with the number of places that lie in it. ``shift`` moves all places by a
    fraction of their distance.
    """
    ends = list(accumulate(unit.size for unit in units))
    found: Counter[Part] = Counter()
    for number in range(count):
        position = int(ends[-1] * (number + shift) / count)
        index = min(bisect_right(ends, position), len(units) - 1)
        found[_enter(units[index], position - (ends[index] - units[index].size), options)] += 1
    return list(found.items())


def _enter(unit: Part, inside: int, options: ReaderOptions) -> Part:
    if unit.content == "parquet":
        for group in cut_file(unit, 1, options):
            if inside < group.size:
                return group
            inside -= group.size
    elif unit.compression is None and not (unit.content == "txt" and options.txt_mode == "file"):
        return replace(unit, start=inside, stop=unit.size, first=None, size=unit.size - inside)
    return unit


def sample_pages(units: Sequence[Part], converter: Converter, options: ReaderOptions, count: int) -> list[Page]:
    """At most about ``count`` pages; records that cannot be read are passed over."""
    pages: list[Page] = []
    for part, weight in places(units, PLACES, options) if units else []:
        wanted = -(-count * weight // PLACES)
        drawn: list[Page] = []
        for document in documents_at(part, options, weight * _DOCUMENTS_OF_A_PLACE):
            chunks: Iterator[Chunk] = converter.chunks(document.text)
            drawn += [page for page, _ in islice(chunks, min(_PAGES_OF_A_DOCUMENT, wanted - len(drawn)))]
            if len(drawn) >= wanted:
                break
        pages += drawn
    return pages


def documents_at(part: Part, options: ReaderOptions, most: int) -> Iterator[Document]:
    """The first documents of a part, bad records left out."""
    return islice(PartReader(part, replace(options, on_bad_record="skip")), most)
