import os
import pickle
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data import columns as kernels
from megatron_pixel.data.codec import DamagedPageError, codec_class, load_codec, train_codec
from megatron_pixel.data.codec_columns import ColumnCodec
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer

MakePage = Callable[..., Page]
COLORS = ["", "none", "some"]


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("patch_size", [16, 32, 8, 12, 5])
@pytest.mark.parametrize("trained", [True, False])
def test_lossless(make_page: MakePage, patch_size: int, color: str, trained: bool) -> None:
    """With all gray columns in the table, and with none but white and black."""
    page = make_page(7, 1, patch_size, color)
    codec = train_codec([page] if trained else [make_page(1, 0, patch_size)])
    data = codec.encode(page)
    assert codec.encode(page) == data
    assert codec.num_patches(data) == 7

    decoded = codec.decode(data)
    assert (decoded.num_patches, decoded.patch_size) == (7, patch_size)
    assert decoded.columns.dtype == np.uint8
    assert np.array_equal(decoded.columns, page.columns)
    for channels in (1, 3):
        assert np.array_equal(codec.decode_patches(data, channels), page.patches(channels))


@pytest.mark.parametrize("color", COLORS)
@pytest.mark.parametrize("patch_size", [16, 12])
@pytest.mark.parametrize("channels", [1, 3])
def test_decoding_into_a_row(make_page: MakePage, color: str, patch_size: int, channels: int) -> None:
    page = make_page(5, 1, patch_size, color)
    codec = train_codec([])
    if patch_size != 16:
        codec = train_codec([make_page(1, 0, patch_size)])
    row = np.full((8, patch_size * patch_size * channels), 77, np.uint8)
    shaped = row.reshape(8, patch_size, patch_size, channels)
    patches = codec.decode_patches(codec.encode(page), channels, shaped)
    assert len(patches) == 5
    assert np.array_equal(row[:5], page.patches(channels).reshape(5, -1))
    assert (row[5:] == 77).all()
    for wrong in (shaped[:4], shaped[:, :, ::-1], shaped.astype(np.int32), shaped[:, 1:]):
        with pytest.raises(ValueError, match="do not fit"):
            codec.decode_patches(codec.encode(page), channels, wrong)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        codec.decode_patches(codec.encode(page), 2)


def test_noise_and_many_columns() -> None:
    """More columns than the table takes, and numbers of three bytes."""
    rng = np.random.default_rng(0)
    noise = [Page(rng.integers(0, 256, (2**14, 8), dtype=np.uint8), 2**11, 0, 0, 8) for _ in range(4)]
    codec = train_codec(noise)
    for page in noise:
        assert np.array_equal(codec.decode(codec.encode(page)).columns, page.columns)
    assert isinstance(codec, ColumnCodec)
    assert codec.num_columns == 49_152


def test_text_is_small(make_page: MakePage) -> None:
    """40 distinct gray columns would fit a byte each, three channels or not; the codec may take no more than that."""
    codec = train_codec([make_page(64, 0)])
    for color in ("", "none"):
        assert len(codec.encode(make_page(64, 1, color=color))) < 64 * 16 + 40
    # A page with color carries its five columns that have some, and nothing else.
    _, three_channels, patches, gray, color_columns = struct.unpack_from(
        "<IBIII", codec.encode(make_page(64, 1, color="some"))
    )
    assert (three_channels, patches, gray, color_columns) == (1, 64, 0, 5)


def test_a_dictionary_shortens_pages_that_repeat_each_other(make_page: MakePage) -> None:
    words = [make_page(1, seed).columns for seed in range(50)]
    words += [make_page(2, seed).columns[:16] for seed in range(50)]

    def page(seed: int) -> Page:
        chosen = np.random.default_rng(seed).integers(0, 100, 40)
        return Page(np.concatenate([words[word] for word in chosen]), 40, 0, 0, 16)

    plain = train_codec([page(seed) for seed in range(63)])
    trained = train_codec([page(seed) for seed in range(200)])
    data = trained.encode(page(1000))
    assert len(data) < 0.8 * len(plain.encode(page(1000)))
    assert np.array_equal(trained.decode(data).columns, page(1000).columns)


def test_the_same_pages_make_the_same_tables(make_page: MakePage, tmp_path: Path) -> None:
    pages = [make_page(6, seed, color=COLORS[seed % 3]) for seed in range(70)]
    files = []
    for name in ("a", "b"):
        codec = train_codec(pages)
        (path,) = codec.save(str(tmp_path / name), codec.take_used())
        files.append(Path(path).read_bytes())
        assert codec.encode(pages[0]) == pickle.loads(pickle.dumps(codec)).encode(pages[0])
    assert files[0] == files[1]
    loaded = load_codec(str(tmp_path / "a.codec.columns"), "columns", 1)
    assert loaded.encode(pages[2]) == codec.encode(pages[2])
    assert loaded.patch_size == 16


@pytest.mark.parametrize("color", COLORS)
def test_no_damage_passes(make_page: MakePage, color: str) -> None:
    page = make_page(3, 1, color=color)
    codec = train_codec([page])
    data = codec.encode(page)
    damaged = [data[:size] for size in range(len(data))] + [data + b"\0"]
    for offset in range(len(data)):
        for flip in (1, 128):
            damaged.append(data[:offset] + bytes([data[offset] ^ flip]) + data[offset + 1 :])
    for bad in damaged:
        with pytest.raises(DamagedPageError):
            codec.decode(bad)
        with pytest.raises(DamagedPageError):
            codec.decode_patches(bad, 3)
        with pytest.raises(DamagedPageError):
            codec.num_patches(bad)


def test_damage_below_a_right_checksum(make_page: MakePage) -> None:
    """Even a page that was written wrong is refused rather than read outside of the tables."""
    page = make_page(3, 1)
    codec = train_codec([page])
    data = codec.encode(page)

    def sealed(rest: bytes) -> bytes:
        table_crc = zlib.crc32(codec._content)  # type: ignore[attr-defined]
        return zlib.crc32(rest, table_crc).to_bytes(4, "little") + rest

    assert sealed(data[4:]) == data
    header = len(data) - len(data[17:])
    for offset, value in [(5, 4), (5, 2), (8, 255), (9, 1), (12, 255), (13, 1), (16, 255)]:
        bad = bytearray(data[4:])
        bad[offset - 4] = value
        with pytest.raises(DamagedPageError):
            codec.decode(sealed(bytes(bad)))
    with pytest.raises(DamagedPageError):
        codec.decode(sealed(data[4:header] + b"no zstd frame"))


@pytest.mark.parametrize(
    ("data", "limit", "count"),
    [([5, 6], 6, 2), ([5], 9, 2), ([5, 6, 7], 9, 2), ([5, 128], 300, 1), ([128, 128, 128, 128, 128, 0], 2**31 - 1, 1)],
    ids=["beyond the table", "too few", "too many", "cut", "too long"],
)
def test_column_numbers_that_are_not_valid(data: list[int], limit: int, count: int) -> None:
    assert not kernels.denumber(np.array(data, np.uint8), limit, np.empty(count, np.int32))


def test_column_numbers() -> None:
    numbers = np.array([0, 1, 127, 128, 300, 16383, 16384, 2**21, 2**31 - 2], np.int32)
    data = np.empty(5 * len(numbers), np.uint8)
    size = kernels.number(numbers, data)
    assert data[:6].tolist() == [0, 1, 127, 128, 1, 172]
    decoded = np.empty_like(numbers)
    assert kernels.denumber(data[:size], 2**31 - 1, decoded)
    assert decoded.tolist() == numbers.tolist()


def test_another_table_is_noticed(make_page: MakePage) -> None:
    page = make_page(3, 1)
    other = train_codec([make_page(3, 1), make_page(1, 5, color="some")])
    with pytest.raises(DamagedPageError, match="another column table"):
        train_codec([]).decode(other.encode(page))


def test_threads(make_page: MakePage) -> None:
    """Each thread has its own zstd contexts and its own room for the columns that a page brings."""
    pages = [make_page(6, seed, color="some") for seed in range(8)]
    codec = train_codec([])
    encoded = [codec.encode(page) for page in pages]
    wrong: list[int] = []
    contexts = {}

    def work(which: int) -> None:
        for _ in range(50):
            if not np.array_equal(codec.decode_patches(encoded[which], 3), pages[which].patches(3)):
                wrong.append(which)
        contexts[which] = codec._scratch.decompressor  # type: ignore[attr-defined]

    threads = [threading.Thread(target=work, args=(which,)) for which in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(set(map(id, contexts.values()))) == 8


def test_tables_that_cannot_be_read(make_page: MakePage, tmp_path: Path) -> None:
    prefix = str(tmp_path / "set")
    with pytest.raises(UserError, match=r"set\.codec\.columns: No such file"):
        load_codec(prefix + ".codec.columns", "columns", 1)
    (path,) = train_codec([make_page(2)]).save(prefix)
    good = Path(path).read_bytes()
    for bad, reason in [
        (b"", "no column table"),
        (b"PNG" + good[3:], "no column table"),
        (good[:8] + b"\x07" + good[9:], "version 7"),
        (good[:-1], "damaged"),
        (good[:-1] + bytes([good[-1] ^ 1]), "damaged"),
    ]:
        Path(path).write_bytes(bad)
        with pytest.raises(UserError, match=reason):
            load_codec(prefix + ".codec.columns", "columns", 1)
    assert os.listdir(tmp_path) == ["set.codec.columns"]


def test_choosing_a_codec() -> None:
    assert codec_class("columns") is ColumnCodec
    for name, version in [("columns", 2), ("glyphs", 2), ("letters", 1)]:
        with pytest.raises(UserError, match=f"no page codec '{name}' version {version}"):
            codec_class(name, version)


def test_a_page_of_another_patch_size(make_page: MakePage) -> None:
    with pytest.raises(ValueError, match="patch size 32 for a codec of 16"):
        train_codec([]).encode(make_page(1, patch_size=32))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("color", COLORS)
def test_the_decoder_on_the_formats_page(make_page: MakePage, tmp_path: Path, color: str, trained: bool) -> None:
    """docs/formats.md tells enough to read a page, in fifty lines of plain Python."""
    page_text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    names: dict[str, Any] = {}
    exec(page_text.split("Page codec `columns`")[1].split("```python\n")[1].split("```")[0], names)

    pages = [make_page(20, seed) for seed in range(70)]
    codec = train_codec(pages if trained else [])
    (path,) = codec.save(str(tmp_path / "set"))
    page = make_page(9, 500, color=color)
    columns = names["columns_of"](Path(path).read_bytes(), codec.encode(page))
    decoded = [np.frombuffer(column, np.uint8).reshape(16, -1) for column in columns]
    if color:
        decoded = [np.broadcast_to(column, (16, 3)) for column in decoded]
    assert np.array_equal(np.array(decoded).reshape(page.columns.shape), page.columns)


def test_a_rendered_english_page_is_below_6_kilobytes() -> None:
    renderer = Renderer(RenderingConfig())
    pages = renderer.pages(" ".join((Path(__file__).parents[2] / "LICENSE").read_text().split()))
    codec = train_codec(pages[:2])
    assert pages[2].num_patches > 1000
    data = codec.encode(pages[2])
    assert len(data) < 6 * 1024
    assert np.array_equal(codec.decode(data).columns, pages[2].columns)
    assert np.array_equal(codec.decode_patches(data, 3), pages[2].patches(3))
