#!/usr/bin/env python
"""How many bytes does a page take, and how fast is it written and read?

    python benchmarks/storage.py
    python benchmarks/storage.py --json storage.json

The documents of ``benchmarks/rendering.py``, 2,500 characters each: English, twelve languages with one a document, and
the twelve languages mixed on every page. Compared are raw RGB patches, PNG (the strip as a picture, RGB and gray), zstd
over the raw patches, and the two page codecs. Every page is decoded into the training layout, uint8 [n, 16, 16, 3] in
memory that is there already, and compared with what was drawn.

The codecs learn from a sample of other documents than those that are measured; of the translations there is little
text, so their sample is small. Times are processor seconds of one thread, medians over repeats, everything in memory.
"""

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import zstandard
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from benchmarks.rendering import mixes
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data.codec import PageCodec, load_codec, train_codec
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer

CORPUS_PAGES = 400_000_000
PATCHES = 1024
SLOW_PAGES = 20
"""Pages of the formats that take milliseconds each."""
PIECE = 125


class Format(NamedTuple):
    """A way to store a page."""

    name: str
    encode: Callable[[Page], bytes]
    decode: Callable[[bytes, np.ndarray], np.ndarray]
    """Bytes and a row of RGB patches; returns the patches."""
    slow: bool = False


def raw() -> Format:
    """RGB patches as they are."""

    def decode(data: bytes, row: np.ndarray) -> np.ndarray:
        patches = np.frombuffer(data, np.uint8).reshape(-1, *row.shape[1:])
        row[: len(patches)] = patches
        return row[: len(patches)]

    return Format("raw RGB patches", lambda page: page.patches(3).tobytes(), decode)


def png(channels: int) -> Format:
    """The strip as a picture, with Pillow's settings."""

    def encode(page: Page) -> bytes:
        strip = page.patches(channels).transpose(1, 0, 2, 3).reshape(page.patch_size, -1, channels)
        file = io.BytesIO()
        Image.fromarray(strip if channels == 3 else strip[:, :, 0]).save(file, "PNG")
        return file.getvalue()

    def decode(data: bytes, row: np.ndarray) -> np.ndarray:
        strip = np.asarray(Image.open(io.BytesIO(data)))
        size = len(strip)
        strip = strip.reshape(size, -1, size, channels)
        row[: strip.shape[1]] = strip.transpose(1, 0, 2, 3)
        return row[: strip.shape[1]]

    return Format("PNG, RGB" if channels == 3 else "PNG, gray", encode, decode, slow=True)


def zstd_over_raw(level: int) -> Format:
    """RGB patches, compressed."""
    plain = raw()
    compress = zstandard.ZstdCompressor(level=level).compress
    decompress = zstandard.ZstdDecompressor().decompress
    return Format(
        f"zstd -{level} over raw",
        lambda page: compress(plain.encode(page)),
        lambda data, row: plain.decode(decompress(data), row),
    )


def stored(name: str, writer: PageCodec, reader: PageCodec) -> Format:
    """One of our codecs."""
    return Format(name, writer.encode, lambda data, row: reader.decode_patches(data, 3, row))


def process_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median over repeats."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def measure(form: Format, pages: Sequence[Page], repeats: int) -> dict[str, float]:
    """Figures of one format; the pages are drawn already."""
    pages = pages[:SLOW_PAGES] if form.slow else pages
    row = np.empty((PATCHES, 16, 16, 3), np.uint8)
    encoded = [form.encode(page) for page in pages]
    for page, data in zip(pages, encoded, strict=True):
        # Gray PNG cannot hold color; its figures are those of the luma.
        wanted = page.patches(1) if form.name == "PNG, gray" else page.patches(3)
        if not np.array_equal(form.decode(data, row), np.broadcast_to(wanted, (page.num_patches, 16, 16, 3))):
            raise SystemExit(f"error: {form.name} did not give a page back")
    patches = sum(page.num_patches for page in pages)
    encoding = process_seconds(lambda: [form.encode(page) for page in pages], 1 if form.slow else repeats)
    decoding = process_seconds(lambda: [form.decode(data, row) for data in encoded], repeats)
    size = sum(map(len, encoded)) / len(pages)
    return {
        "bytes_per_page": size,
        "terabytes_of_400m_pages": size * CORPUS_PAGES / 1e12,
        "encode_pages_per_second": len(pages) / encoding,
        "decode_patches_per_second": patches / decoding,
    }


def measure_mix(documents: list[str], most: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Figures of all formats for a mix. The first documents are measured, the codecs learn from the others."""
    renderer = Renderer(RenderingConfig(seq_length=PATCHES))
    measured = documents[: min(most, 2 * len(documents) // 5)]
    sample = [renderer.render(text) for text in documents[len(measured) :]]
    pages = [renderer.render(text) for text in measured]
    started = time.process_time()
    writer = train_codec(sample, renderer)
    training = time.process_time() - started
    columns = train_codec(sample[:512])
    for page in pages:
        writer.encode(page)
    (path, entry), *_ = writer.save(str(folder / "set"), writer.take_used(), renderer).items()
    reader = load_codec(path, writer.name, writer.version)
    forms = [raw(), png(3), png(1), zstd_over_raw(3)]
    forms += [stored("columns", columns, columns), stored("glyphs", writer, reader)]
    figures = {form.name: measure(form, pages, repeats) for form in forms}

    def render() -> None:
        for text in measured:
            assert renderer.render(text).marks

    def convert() -> None:
        for text in measured:
            writer.encode(renderer.render(text))

    rendering = len(pages) / process_seconds(render, repeats)
    return {
        "pages": len(pages),
        "sample_pages": len(sample),
        "patches_per_page": sum(page.num_patches for page in pages) / len(pages),
        "characters_per_page": sum(page.end - page.start for page in pages) / len(pages),
        **figures["glyphs"],
        "rendered_pages_per_second": rendering,
        "encode_speed_to_rendering": figures["glyphs"]["encode_pages_per_second"] / rendering,
        "text_to_bytes_pages_per_second": len(pages) / process_seconds(convert, repeats),
        "codec_file_bytes": entry.bytes,
        "learning_seconds": training,
        "formats": figures,
    }


def mixed_pages(documents: list[str]) -> list[str]:
    """Documents of many languages each, dealt out of documents of one language."""
    pieces = [[text[first : first + PIECE] for first in range(0, len(text), PIECE)] for text in documents]
    count = len(pieces[0])
    return [" ".join(pieces[(k + turn) % len(pieces)][k] for k in range(count)) for turn in range(len(pieces))]


def show(name: str, figures: dict[str, Any]) -> None:
    """Print the table of a mix."""
    print(f"\n{name}: {figures['pages']} pages of {figures['patches_per_page']:.0f} patches and ", end="")
    print(f"{figures['characters_per_page']:,.0f} characters; sample of {figures['sample_pages']} others")
    print(f"  {'':<18}{'bytes/page':>12}{'400M pages':>12}{'encode':>16}{'decode':>24}")
    for form, values in figures["formats"].items():
        print(
            f"  {form:<18}{values['bytes_per_page']:>12,.0f}{values['terabytes_of_400m_pages']:>9.2f} TB"
            f"{values['encode_pages_per_second']:>9,.0f} pages/s"
            f"{values['decode_patches_per_second'] / 1e6:>8.2f} million patches/s"
        )
    speed, both = figures["rendered_pages_per_second"], figures["text_to_bytes_pages_per_second"]
    print(f"  rendering {speed:,.0f} pages/s, encoding {figures['encode_speed_to_rendering']:.1f} times that, ", end="")
    print(f"both {both:,.0f}; file of the codec {figures['codec_file_bytes'] / 1e3:,.0f} KB, ", end="")
    print(f"learned in {figures['learning_seconds']:.1f} s")


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=200, help="most pages measured of a mix (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="passes over them (default: %(default)s)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    documents = mixes(5 * arguments.pages)
    documents["many_languages_a_page"] = mixed_pages(documents["multilingual"])
    results: dict[str, Any] = {}
    for name, texts in documents.items():
        with TemporaryDirectory() as folder:
            results[name] = measure_mix(texts, arguments.pages, arguments.repeats, Path(folder))
        show(name, results[name])
    result_file.write(arguments.json, results)


if __name__ == "__main__":
    main()
