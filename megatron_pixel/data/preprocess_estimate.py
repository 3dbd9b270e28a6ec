"""What a run would make, from a sample: ``preprocess.py --dry-run``."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.codec import DEFAULT, codec_class, train_codec
from megatron_pixel.data.documents import DocumentReader, PartReader
from megatron_pixel.data.inputs import STDIN
from megatron_pixel.data.preprocess_documents import Converter, Recipe
from megatron_pixel.data.preprocess_plan import make_plan
from megatron_pixel.data.preprocess_progress import duration
from megatron_pixel.data.preprocess_sample import PLACES, places, sample_pages
from megatron_pixel.data.preprocess_writer import content_dtypes
from megatron_pixel.data.records import Part, ReaderOptions

QUANTITIES = ("documents", "text_bytes", "pages", "patches", "tokens", "disk_bytes", "cpu_seconds")
_SECONDS = 20.0
_TEXT_OF_A_PLACE = 48_000
_LONG_DOCUMENT = 1 << 20
"""Of a longer text so many characters are converted, and count for the whole."""
_COUNTED_BYTES = 1 << 19
"""Inputs of so many bytes are read to the end."""
_NORMAL_95 = 1.96
_INDEX_BYTES = 12, 8  # a sequence, a document


@dataclass(frozen=True)
class Estimate:
    """Expected results of a run. ``values`` and ``spreads`` are by the names of QUANTITIES."""

    kind: str
    input_bytes: int
    values: dict[str, float]
    """``pages``: sequences of pages; ``disk_bytes``: of the finished dataset; ``cpu_seconds``: of one core here."""
    spreads: dict[str, float]
    """Half the width of the 95% interval, as a share of the value; 0 where everything was counted."""
    documents: int
    """Documents looked at."""
    places: int


def estimate(reader: DocumentReader, recipe: Recipe) -> Estimate:
    """Convert documents from all over the input, for some seconds, and extrapolate. Nothing is written.

    Raises:
        UserError: standard input, whose end nobody knows; inputs without a document; a font or tokenizer that is
            missing.
    """
    if STDIN in reader.paths:
        raise UserError("--dry-run samples all of the input, and standard input can be read only once; name a file")
    converter = recipe.make()
    plan = make_plan(reader)
    if recipe.has_codec:
        pages = sample_pages(plan.files, converter, reader.options, codec_class(DEFAULT).sample_pages)
        converter.codec = train_codec(pages, converter.renderer)
    counted = plan.size <= _COUNTED_BYTES
    if counted:
        measured = [_measure(part, 1 << 40, converter, reader.options) for part in plan.files]
    else:
        measured = _sample(plan.files, converter, reader.options)
    sums = np.sum(measured, axis=0) if measured else np.zeros(1 + len(QUANTITIES))
    if not sums[1]:
        raise UserError(f"no documents found in {', '.join(reader.paths)}")
    values = sums[1:].copy()
    spread = np.zeros(len(QUANTITIES))
    if not counted:
        values *= plan.size / sums[0]
        spread = _spread(np.array(measured))
    limit = reader.options.max_documents
    if limit is not None and limit < values[0]:
        values *= limit / values[0]
        spread[0] = 0.0
    return Estimate(
        recipe.kind,
        plan.size,
        dict(zip(QUANTITIES, values.tolist(), strict=True)),
        dict(zip(QUANTITIES, spread.tolist(), strict=True)),
        int(sums[1]),
        len(measured),
    )


def _sample(files: Sequence[Part], converter: Converter, options: ReaderOptions) -> list[np.ndarray]:
    # Half a step beside the places that the codec has learned from: its own pages would look too small.
    found = places(files, PLACES, options, 0.5)
    # Near and far in turns, so that the sample is spread over the input whenever the time is up.
    order = sorted(range(len(found)), key=lambda number: int(f"{number:032b}"[::-1], 2))
    started = time.monotonic()
    measured = []
    for number in order:
        part, weight = found[number]
        values = _measure(part, weight * _TEXT_OF_A_PLACE, converter, options)
        if values[0]:
            measured.append(values)
        if time.monotonic() - started > _SECONDS and len(measured) > 1:
            break
    return measured


def _measure(part: Part, text_bytes: int, converter: Converter, options: ReaderOptions) -> np.ndarray:
    """Bytes of input and all QUANTITIES of the first documents of a part, float64."""
    dtypes = content_dtypes(converter.vocab_size)
    started = time.process_time()
    counts = np.zeros(4)  # pages, patches, tokens, bytes on disk
    saved = 0.0
    reader = PartReader(part, ReaderOptions(**{**vars(options), "on_bad_record": "skip"}))
    for document in reader:
        text = document.text[:_LONG_DOCUMENT]
        begun = time.process_time()
        one = np.zeros(4)
        for patches, contents in converter.pieces(text):
            elements = [len(sequence) * np.dtype(dtypes[name]).itemsize for name, sequence in contents.items()]
            tokens = len(contents["tokens"]) if "tokens" in contents else 0
            one += patches > 0, patches, tokens, sum(elements) + _INDEX_BYTES[0] * len(elements)
        share = len(document.text) / max(len(text), 1)
        saved += (share - 1) * (time.process_time() - begun)
        counts += one * share
        counts[3] += _INDEX_BYTES[1]
        if reader.text_bytes >= text_bytes:
            break
    seconds = time.process_time() - started + saved
    return np.array([reader.bytes_done, reader.documents, reader.text_bytes, *counts, seconds])


def _spread(measured: np.ndarray) -> np.ndarray:
    """Jackknife over the places: how much the ratios to the bytes of input hang on single ones."""
    places_ = len(measured)
    if places_ < 2:
        return np.full(len(QUANTITIES), np.inf)
    sums = measured.sum(axis=0)
    whole = sums[1:] / sums[0]
    without = sums - measured
    ratios = without[:, 1:] / np.maximum(without[:, :1], 1)
    variance = (places_ - 1) / places_ * ((ratios - whole) ** 2).sum(axis=0)
    return np.divide(_NORMAL_95 * np.sqrt(variance), whole, out=np.zeros_like(whole), where=whole > 0)


def estimate_table(result: Estimate, processes: int) -> str:
    """The estimate as a person reads it, for a run of so many processes."""
    values = result.values
    rows = [("input", _size(result.input_bytes)), ("documents", _about(result, "documents"))]
    rows.append(("text", f"{_size(values['text_bytes'])}{_plus_minus(result, 'text_bytes')}"))
    if values["pages"]:
        rows += [("pages", _about(result, "pages")), ("patches", _about(result, "patches"))]
    if values["tokens"]:
        rows.append(("tokens", _about(result, "tokens")))
    disk = f"{_size(values['disk_bytes'])}{_plus_minus(result, 'disk_bytes')}"
    if values["pages"]:
        disk += f", {values['disk_bytes'] / values['pages']:,.0f} bytes a page with its index"
    rows.append(("disk", disk))
    seconds = values["cpu_seconds"]
    margin = _plus_minus(result, "cpu_seconds")
    rows.append(("work", f"{duration(seconds)} of one core like this one{margin}"))
    cores = os.cpu_count() or 1
    rows.append((f"with {processes} process{'es' if processes > 1 else ''}", duration(seconds / processes)))
    if processes > cores:
        rows.append(("", f"if there are {processes} cores; this machine has {cores}"))
    if not any(result.spreads.values()):
        rows.append(("from", f"all {result.documents:,} documents"))
    else:
        rows.append(("from", f"{result.documents:,} documents at {result.places} places; ± is the 95% interval"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _about(result: Estimate, name: str) -> str:
    return f"{result.values[name]:,.0f}{_plus_minus(result, name)}"


def _size(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number / 1e6:,.1f} MB"


def _plus_minus(result: Estimate, name: str) -> str:
    spread = result.spreads[name]
    if spread == 0:
        return ""
    return f" ± {100 * spread:.0f}%" if spread < 10 else " (one place only: no spread)"
