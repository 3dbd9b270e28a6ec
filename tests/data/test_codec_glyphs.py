"""Pages of every kind through the glyph codec, and everything that may be wrong with its files."""

import json
import pickle
import random
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.data import glyphs as kernels
from megatron_pixel.data.codec import DamagedPageError, PageCodec, load_codec, train_codec
from megatron_pixel.data.codec_glyphs import GlyphCodec
from megatron_pixel.data.indexed import IndexedWriter
from megatron_pixel.data.manifest import CodecEntry, Manifest, SplitEntry, content_prefix
from megatron_pixel.data.stores import PageStore
from megatron_pixel.data.verification import verify
from megatron_pixel.rendering.blit import sprite_keys
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.page import Page
from megatron_pixel.rendering.renderer import Renderer

TEXTS = [
    "",
    "All human beings are born free and equal in dignity and rights. AVATAR, To Ty. fi ffl",
    "Être né libre\u0301; a\u0308\u0316\u0327 Ấ\u0300\u0301\u0302\u0303 Tiếng Việt",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. שָׁלוֹם abc 123",
    "सभी मनुष्यों को गौरव और अधिकारों ที่ ปู่ น้ำ တစ်ဦး",
    "人人生而自由,在尊严和权利上一律平等。すべての人間は 모든 인간은",
    "an emoji 😀 or two 👍🏽🇩🇪, and ❤️",
]
SETTINGS: dict[str, dict[str, Any]] = {
    "rgb": {},
    "gray": {"mode": "gray"},
    "binary": {"mode": "binary", "binary_threshold": 100},
    "small": {"patch_size": 8},
    "odd": {"patch_size": 12},
    "tall": {"patch_size": 32},
    "released": {"preset": "released", "seq_length": 12},
}


@lru_cache
def renderer_of(name: str) -> Renderer:
    settings = dict(SETTINGS[name])
    if settings.get("preset") == "released":
        settings["fonts"] = [str(find_fonts([], "default")[0].path)]
    return Renderer(RenderingConfig(**settings))


@lru_cache
def pages_of(name: str) -> list[Page]:
    """Single pages and pairs."""
    renderer = renderer_of(name)
    pages = [renderer.render(text, 40) for text in TEXTS]
    pairs = [(TEXTS[1], TEXTS[3]), (TEXTS[6], TEXTS[5]), ("", TEXTS[2]), (TEXTS[4], "")]
    return pages + [renderer.render_pair(*pair) for pair in pairs]


def stored(pages: list[Page], prefix: Path, renderer: Renderer, sample: list[Page]) -> tuple[PageCodec, list[bytes]]:
    """The pages, encoded, and the codec that reads them."""
    codec = train_codec(sample, renderer)
    encoded = [codec.encode(page) for page in pages]
    (path,) = codec.save(str(prefix), codec.take_used(), renderer)
    assert path == f"{prefix}.codec.glyphs"
    return load_codec(path, "glyphs", 1), encoded


@pytest.fixture
def rgb(tmp_path: Path) -> tuple[PageCodec, list[bytes]]:
    return stored(pages_of("rgb"), tmp_path / "set", renderer_of("rgb"), pages_of("rgb")[:4])


def sealed(codec: PageCodec, rest: bytes) -> bytes:
    """A page with a right checksum."""
    return zlib.crc32(rest, codec._tables.crc).to_bytes(4, "little") + rest  # type: ignore[attr-defined]


def opened(codec: PageCodec, data: bytes) -> tuple[bytes, bytes]:
    """Header without checksum, and symbols."""
    end = 4 + codec._header(data).end  # type: ignore[attr-defined]
    return data[4:end], codec._scratch.decompressor.decompress(data[end:])  # type: ignore[attr-defined]


def closed(header: bytes, body: bytes) -> bytes:
    """The converse, without a dictionary."""
    return header + zstandard.ZstdCompressor(write_checksum=False).compress(body)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_lossless(name: str, trained: bool, tmp_path: Path) -> None:
    """With all symbols in the table, and with none."""
    pages = pages_of(name)
    codec, encoded = stored(pages, tmp_path / "set", renderer_of(name), pages if trained else [])
    assert codec.patch_size == renderer_of(name).patch_size
    for page, data in zip(pages, encoded, strict=True):
        assert codec.num_patches(data) == page.num_patches
        decoded = codec.decode(data)
        assert (decoded.num_patches, decoded.patch_size) == (page.num_patches, page.patch_size)
        assert decoded.has_color == page.has_color
        assert np.array_equal(decoded.columns, page.columns)
        for channels in (1, 3):
            assert np.array_equal(codec.decode_patches(data, channels), page.patches(channels))
        marks, before = decoded.marks, page.marks
        assert marks is not None
        assert before is not None
        assert (marks.black, marks.counts) == (before.black, before.counts)
        assert np.array_equal(marks.glyphs, before.glyphs)
    if name == "released":
        assert any(len(set(page.marks.black)) < len(page.marks.black) for page in pages if page.marks)
    if name == "rgb":
        assert [page.has_color for page in pages].count(True) == 2
        assert any(len(page.marks.black) == 2 for page in pages if page.marks)
        assert any((page.marks.glyphs[1] != 0).any() for page in pages if page.marks)


def test_decoding_into_a_row(rgb: tuple[PageCodec, list[bytes]]) -> None:
    codec, encoded = rgb
    for channels in (1, 3):
        row = np.full((64, 16, 16, channels), 77, np.uint8)
        for page, data in zip(pages_of("rgb"), encoded, strict=True):
            row[:] = 77
            patches = codec.decode_patches(data, channels, row)
            assert np.shares_memory(patches, row)
            assert np.array_equal(patches, page.patches(channels))
            assert (row[page.num_patches :] == 77).all()
        for wrong in (row[:1], row[:, :, ::-1], row.astype(np.int32), row[:, 1:]):
            with pytest.raises(ValueError, match="do not fit"):
                codec.decode_patches(encoded[1], channels, wrong)
    with pytest.raises(ValueError, match="1 or 3 channels"):
        codec.decode_patches(encoded[1], 2)


def test_the_file_depends_on_what_was_used_not_on_who_used_it(tmp_path: Path) -> None:
    pages, renderer = pages_of("rgb"), renderer_of("rgb")
    codec = train_codec(pages[:4], renderer)
    copies = [pickle.loads(pickle.dumps(codec)) for _ in range(2)]
    files = []
    for name, workers in (("one", [codec]), ("two", copies)):
        used = []
        for turn, page in enumerate([*pages, *pages]):
            worker = workers[turn % len(workers)]
            assert worker.encode(page) == codec.encode(page)
            if turn % 3 == 0:
                used.append(worker.take_used())
        used += [worker.take_used() for worker in workers]
        assert len(workers[0].take_used()) == 0
        (path,) = workers[0].save(str(tmp_path / name), np.unique(np.concatenate(used)), renderer)
        files.append(Path(path).read_bytes())
    assert files[0] == files[1]
    again = train_codec(pages[:4], Renderer(RenderingConfig()))
    assert again.encode(pages[3]) == codec.encode(pages[3])


def test_what_was_used(tmp_path: Path) -> None:
    """Exactly the sprites on the pages, spaces too, whether the table has them or not."""
    for sample in ([], pages_of("rgb")):
        codec = train_codec(sample, renderer_of("rgb"))
        codec.encode(pages_of("rgb")[2])
        marks = pages_of("rgb")[2].marks
        assert marks is not None
        assert np.array_equal(codec.take_used(), np.unique(sprite_keys(marks.glyphs[0], marks.glyphs[1])))


def test_a_sprite_that_is_not_in_the_atlas(tmp_path: Path) -> None:
    page = pages_of("rgb")[2]
    assert page.marks is not None
    for sample in ([], [page]):
        codec = train_codec(sample, renderer_of("rgb"))
        data = codec.encode(page)
        used = codec.take_used()
        for left_out in range(len(used)):
            (path,) = codec.save(str(tmp_path / "set"), np.delete(used, left_out), renderer_of("rgb"))
            glyph, up = int(used[left_out]) >> 16, (int(used[left_out]) & 0xFFFF) - 0x8000
            with pytest.raises(DamagedPageError, match=f"glyph {glyph} at height {up} is not in the atlas"):
                load_codec(path, "glyphs", 1).decode(data)


def test_symbols_of_one_two_and_three_bytes() -> None:
    """More symbols than the table takes."""
    keys = (np.arange(kernels.MOST_SYMBOLS, dtype=np.int64) << 32) + (0x8000 << 16) + 0x8000
    advances = np.full(20_000, 3, np.int16)
    glyphs = np.array([0, 207, 208, 463, 464, kernels.MOST_SYMBOLS - 1, kernels.MOST_SYMBOLS, 19_999], np.int32)
    marks = np.stack([glyphs, np.zeros_like(glyphs), 2 + 3 * np.arange(len(glyphs), dtype=np.int32)])
    plain = np.full(20_000, kernels.NO_KEY, np.int32)
    plain[: kernels.MOST_SYMBOLS] = np.arange(kernels.MOST_SYMBOLS)
    out, others = np.zeros(200, np.uint8), np.zeros((9, 2), np.int32)
    starts, counts = np.zeros(1, np.int64), np.array([len(glyphs)])
    ticks = np.zeros(len(keys), np.bool_), np.zeros(20_000, np.bool_)
    size, unknown = kernels.write_symbols(
        marks, starts, counts, advances, plain, keys, kernels.make_slots(keys), *ticks, others, out
    )
    expected = [0, 207, 208, 0, 208, 255, 209, 0, 239, 255, 240, 8400 >> 8, 8400 & 255, 240, 19_999 >> 8, 19_999 & 255]
    assert kernels.MOST_SYMBOLS == 8400
    assert (out[:size].tolist(), unknown) == (expected, 0)
    assert np.flatnonzero(ticks[0]).tolist() == glyphs[:6].tolist()
    assert np.flatnonzero(ticks[1]).tolist() == glyphs[6:].tolist()


def test_a_table_takes_no_more_than_it_has_numbers_for(tmp_path: Path) -> None:
    """Every ideograph of the first block, each on its own."""
    renderer = renderer_of("rgb")
    pages = renderer.pages("".join(map(chr, range(0x4E00, 0x4E00 + 9000))))
    codec, encoded = stored(pages[-1:], tmp_path / "set", renderer, pages)
    assert len(codec._tables.symbols) == kernels.MOST_SYMBOLS  # type: ignore[attr-defined]
    assert np.array_equal(codec.decode(encoded[0]).columns, pages[-1].columns)


def test_english_is_below_a_kilobyte_a_page(tmp_path: Path) -> None:
    text = " ".join((Path(__file__).parents[2] / "LICENSE").read_text().split())
    renderer = renderer_of("rgb")
    pages = renderer.pages(text * 2)
    codec, (data,) = stored(pages[2:3], tmp_path / "set", renderer, renderer.pages(text[:5000]))
    assert pages[2].num_patches > 1000
    assert len(data) < 1400  # a dictionary of a thousand pages shortens it by a third
    sample = renderer.pages(text[-2000:] + text)
    codec, (data,) = stored(pages[2:3], tmp_path / "set", renderer, sample * 4)
    assert len(data) < 1000
    assert np.array_equal(codec.decode_patches(data, 3), pages[2].patches(3))


def in_bulk(codec: PageCodec, *pages: bytes) -> list[int]:
    """Lengths of pages that lie one after the other in a file."""
    sizes = np.array([len(page) for page in pages])
    data = np.frombuffer(b"".join(pages), np.uint8)
    return codec.lengths(data, np.cumsum(sizes) - sizes, sizes).tolist()


def test_lengths_of_many_pages_at_once(rgb: tuple[PageCodec, list[bytes]]) -> None:
    codec, encoded = rgb
    assert in_bulk(codec, *encoded) == [codec.num_patches(data) for data in encoded]


@pytest.mark.parametrize("which", [0, 1, 6, 8], ids=["empty", "gray", "color", "pair"])
def test_no_damage_passes(rgb: tuple[PageCodec, list[bytes]], which: int) -> None:
    codec, encoded = rgb
    data = encoded[which]
    damaged = [data[:size] for size in range(len(data))] + [data + b"\0"]
    for offset in range(len(data)):
        damaged += [data[:offset] + bytes([data[offset] ^ flip]) + data[offset + 1 :] for flip in (1, 128)]
    for bad in damaged:
        for read in (codec.decode, codec.num_patches, lambda data: codec.decode_patches(data, 3)):
            with pytest.raises(DamagedPageError):
                read(bad)
        with pytest.raises(DamagedPageError):
            in_bulk(codec, data, bad, data)


def test_pages_made_to_do_harm(rgb: tuple[PageCodec, list[bytes]]) -> None:
    """Bytes below a right checksum: refused, or some page; nothing else happens."""
    codec, encoded = rgb
    rng = random.Random(0)
    outcomes = {"refused": 0, "a page": 0}
    for _ in range(3000):
        header, body = opened(codec, rng.choice(encoded))
        where, parts = rng.randrange(3), [bytearray(header), bytearray(body)]
        part = parts[where % 2]
        for _ in range(rng.choice((1, 1, 2, 10))):
            place, change = rng.randrange(len(part) + 1), rng.randrange(4)
            if change == 0 and len(part) > place:
                part[place] ^= 1 << rng.randrange(8)
            elif change == 1:
                part[place:place] = rng.choice((b"\xff", b"\xfd\xff\xff\xff\xff\x0f", b"\xfe\x7f", b"\xf0\0", b"\xfd"))
            elif change == 2:
                del part[place:]
            else:
                part[place:place] = bytes([rng.randrange(256)])
        rest = closed(*map(bytes, parts))
        if where == 2:
            broken = bytearray(rest)
            broken[rng.randrange(len(header), len(rest))] ^= 1 << rng.randrange(8)
            rest = bytes(broken)
        try:
            patches = codec.decode_patches(sealed(codec, rest), 3)
            outcomes["a page"] += 1
            assert len(patches) == codec.num_patches(sealed(codec, rest))
            assert in_bulk(codec, sealed(codec, rest)) == [len(patches)]
        except DamagedPageError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 300


@pytest.mark.parametrize(
    ("header", "body", "message"),
    [
        ("00 05", "", "header"),
        ("00", "", "header"),
        ("01 00", "", "header"),
        ("02 05 03 00", "", "header"),
        ("01 ff ff ff 7f", "", "header"),
        ("01 ff ff ff ff ff 7f", "", "header"),
        ("02 05 09 05", "00", "symbols"),
        ("01 05", "ff", "symbols"),
        ("01 05", "fd", "symbols"),
        ("01 05", "fd 02", "symbols"),
        ("01 05", "fd ff ff ff ff ff ff 01 00", "symbols"),
        ("01 05", "fe ff ff", "symbols"),
        ("01 05", "f0 00", "symbols"),
        ("01 05", "ef ff", "symbols"),
        ("01 05", "ef", "symbols"),
        ("01 05", "fd ff ff ff ff 0f 00", "symbols"),
        ("01 05", "fe ff ff ff ff 0f 00", "not in the atlas"),
        ("01 05", "fc ff ff", "not in the atlas"),
    ],
)
def test_single_faults(rgb: tuple[PageCodec, list[bytes]], header: str, body: str, message: str) -> None:
    codec, _ = rgb
    rest = closed(bytes.fromhex(header), bytes.fromhex(body))
    with pytest.raises(DamagedPageError, match=message):
        codec.decode(sealed(codec, rest))


def test_a_bomb(rgb: tuple[PageCodec, list[bytes]]) -> None:
    codec, _ = rgb
    bomb = zstandard.ZstdCompressor().compress(bytes(1 << 27))
    with pytest.raises(DamagedPageError, match="too long"):
        codec.decode(sealed(codec, b"\x01\x05" + bomb))
    unknown = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10))
    with pytest.raises(DamagedPageError, match="too long"):
        codec.decode(sealed(codec, b"\x01\x05" + unknown))
    with pytest.raises(DamagedPageError):
        codec.decode(sealed(codec, b"\x01\x05"))


def test_threads(rgb: tuple[PageCodec, list[bytes]]) -> None:
    """Each thread has its own zstd contexts and its own page to draw on."""
    codec, encoded = rgb
    pages = pages_of("rgb")
    writer = train_codec(pages[:4], renderer_of("rgb"))
    wrong: list[int] = []

    def work(which: int) -> None:
        for _ in range(40):
            same = np.array_equal(codec.decode_patches(encoded[which], 3), pages[which].patches(3))
            if not same or writer.encode(pages[which]) != encoded[which]:
                wrong.append(which)

    for page in pages:
        page.patches(3)  # drawn once: a renderer serves one thread
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert wrong == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    renderer = renderer_of("rgb")
    path = tmp_path / "set.codec.glyphs"
    with pytest.raises(UserError, match=r"set\.codec\.glyphs: No such file"):
        load_codec(str(path), "glyphs", 1)
    stored(pages_of("rgb"), tmp_path / "set", renderer, pages_of("rgb"))
    good = path.read_bytes()
    tables, atlas = (int.from_bytes(good[at : at + 4], "little") for at in (12, 20))
    assert len(good) == 28 + tables + atlas
    changes = [(b"", "no file of a glyph codec"), (b"PNG" + good[3:], "no file"), (good[:8] + b"\7" + good[9:], "n 7")]
    changes += [(good[:-1], "damaged"), (good + b"\0", "damaged")]
    for offset in (12, 16, 20, 24, 28, 40, 28 + tables // 2, 28 + tables, 28 + tables + atlas // 2, len(good) - 1):
        changes.append(
            (good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :], r"set\.codec\.glyphs is damage")
        )
    for bad, reason in changes:
        path.write_bytes(bad)
        with pytest.raises(UserError, match=reason):
            load_codec(str(path), "glyphs", 1)


def test_files_with_right_checksums_that_are_not_valid(tmp_path: Path) -> None:
    """Sizes that do not add up, sprites out of order, negative widths."""
    stored(pages_of("rgb"), tmp_path / "set", renderer_of("rgb"), pages_of("rgb"))
    path = tmp_path / "set.codec.glyphs"
    good = path.read_bytes()
    tables_bytes = int.from_bytes(good[12:16], "little")
    decompress, compress = zstandard.ZstdDecompressor().decompress, zstandard.ZstdCompressor().compress
    contents = [decompress(good[28 : 28 + tables_bytes]), decompress(good[28 + tables_bytes :])]
    sprites = int.from_bytes(contents[1][:4], "little")
    faults = [(0, 0), (0, 2), (0, 4), (0, 26), (0, 27), (0, 13), (0, 17), (0, 21), (1, 1), (1, 5), (1, 8 + 2)]
    faults += [(1, 8 + 4 * 3 * sprites + 3), (1, 8 + 4 * 3 * sprites + 4 * (sprites // 2))]
    # Glyphs, heights, advances and bearings far outside of what there is.
    faults += [(1, 8 + 4 * field * sprites + byte) for field in (0, 1, 2, 4) for byte in (2, 3)]
    for which, offset in faults:
        parts = [bytearray(content) for content in contents]
        parts[which][offset] ^= 255
        crc = zlib.crc32(parts[0])
        frames = [compress(bytes(part)) for part in parts]
        numbers = (1, len(frames[0]), crc, len(frames[1]), zlib.crc32(parts[1], crc))
        path.write_bytes(good[:8] + b"".join(n.to_bytes(4, "little") for n in numbers) + b"".join(frames))
        with pytest.raises(UserError, match=r"set\.codec\.glyphs is damaged"):
            load_codec(str(path), "glyphs", 1)


def test_what_it_does_not_take(make_page: Callable[..., Page], rgb: tuple[PageCodec, list[bytes]]) -> None:
    codec = train_codec([], renderer_of("rgb"))
    with pytest.raises(ValueError, match="does not know its glyphs"):
        codec.encode(make_page(3))
    with pytest.raises(ValueError, match="patch size 8 for a codec of 16"):
        codec.encode(pages_of("small")[1])
    data = codec.encode(pages_of("rgb")[1])
    with pytest.raises(ValueError, match="when it was opened"):
        codec.decode(data)
    with pytest.raises(ValueError, match="opened from a dataset cannot encode"):
        rgb[0].encode(pages_of("rgb")[1])
    with pytest.raises(ValueError, match="saved by who made it"):
        rgb[0].save("x", codec.take_used(), renderer_of("rgb"))
    with pytest.raises(DamagedPageError, match="another dataset"):
        rgb[0].decode(data)


def write_dataset(prefix: str, renderer: Renderer, pages: list[Page]) -> None:
    codec = train_codec(pages, renderer)
    splits = {"train": SplitEntry(1, len(pages)), "heldout": SplitEntry()}
    splits["train"].patches = sum(page.num_patches for page in pages)
    manifest = Manifest(kind="pixels", splits=splits, rendering=renderer.fingerprint())
    for split in splits:
        with IndexedWriter(content_prefix(prefix, split, "pages"), np.uint8) as writer:
            for page in pages if split == "train" else ():
                writer.add(codec.encode(page))
            if split == "train":
                writer.end_document()
            manifest.add_files(prefix, split, writer.finalize())
    files = codec.save(prefix, codec.take_used(), renderer)
    manifest.codecs = [CodecEntry.of(prefix, codec, files, {"train": len(pages), "heldout": 0})]
    manifest.write(prefix)


def test_a_dataset(tmp_path: Path) -> None:
    prefix = str(tmp_path / "set")
    write_dataset(prefix, renderer_of("rgb"), pages_of("rgb"))
    assert verify(prefix) == []
    store = PageStore(prefix)
    assert store.patch_size == 16
    for index in (8, 0, 3):
        assert np.array_equal(store.patches(index, 3), pages_of("rgb")[index].patches(3))
    with open(prefix + ".train.pages.bin", "r+b") as file:
        file.seek(int(store.pages.pointers[5]) + 9)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))
    problems = verify(prefix)
    assert any("set.train.pages.bin: page 5 is damaged: wrong checksum" in problem for problem in problems)
    assert len(problems) == 2


def test_the_codec_of_other_fonts(tmp_path: Path) -> None:
    """Same pages, same settings, one font less: the message says which."""
    font = find_fonts([], "default")[0]
    other = Renderer(RenderingConfig(fonts=[str(font.path)]))
    write_dataset(str(tmp_path / "a"), renderer_of("rgb"), pages_of("rgb")[:2])
    write_dataset(str(tmp_path / "b"), other, [other.render(text, 40) for text in TEXTS[:2]])
    path = tmp_path / "a.codec.glyphs"
    path.write_bytes((tmp_path / "b.codec.glyphs").read_bytes())
    manifest = json.loads((tmp_path / "a.manifest.json").read_text())
    manifest["codecs"][0]["files"]["codec.glyphs"]["bytes"] = path.stat().st_size
    (tmp_path / "a.manifest.json").write_text(json.dumps(manifest))
    problems = verify(str(tmp_path / "a"))
    expected = (
        f"{path} belongs to other pages: it was made with rendering.fonts[1] none, but {tmp_path}/a.manifest.json "
    )
    assert any(problem.startswith(expected) for problem in problems)
    with pytest.raises(UserError, match="belongs to other pages"):
        PageStore(str(tmp_path / "a")).page(0)


def decoder_of_the_formats_page() -> Callable[[bytes, bytes], list[Any]]:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text()
    names: dict[str, Any] = {}
    exec(text.split("Page codec `glyphs`")[1].split("```python\n")[1].split("```")[0], names)
    decode: Callable[[bytes, bytes], list[Any]] = names["page_of_glyphs"]
    return decode


@pytest.mark.parametrize("name", ["rgb", "binary", "released", "odd"])
def test_the_decoder_on_the_formats_page(name: str, tmp_path: Path) -> None:
    """docs/formats.md tells enough to read a page, in plain Python."""
    decode = decoder_of_the_formats_page()
    pages = pages_of(name)
    sample = pages
    if name == "rgb":  # with a dictionary, and a table that has some of the symbols
        sample = renderer_of(name).pages((Path(__file__).parents[2] / "LICENSE").read_text(), 40)
    codec, encoded = stored(pages, tmp_path / "set", renderer_of(name), sample)
    assert (len(codec._tables.dictionary) > 1000) == (name == "rgb")  # type: ignore[attr-defined]
    file = (tmp_path / "set.codec.glyphs").read_bytes()
    for page, data in zip(pages, encoded, strict=True):
        assert np.array_equal(np.array(decode(file, data), np.uint8), page.columns)


def test_pages_that_no_renderer_makes(tmp_path: Path) -> None:
    """Any symbols anywhere, across the edges of segments too, are drawn as docs/formats.md says."""
    decode = decoder_of_the_formats_page()
    page = pages_of("rgb")[6]
    codec, _ = stored([page], tmp_path / "set", renderer_of("rgb"), [page])
    file = (tmp_path / "set.codec.glyphs").read_bytes()
    count = len(codec._tables.symbols)  # type: ignore[attr-defined]
    assert 10 < count < 208
    rng = random.Random(0)
    colored = 0
    for _ in range(200):
        segments = rng.randrange(1, 4)
        ends = sorted(rng.randrange(1, 6) for _ in range(segments))
        body, counts = bytearray(), [rng.randrange(4) for _ in range(segments)]
        for _ in range(sum(counts)):
            if rng.random() < 0.8:
                move = rng.choice((rng.randrange(12), rng.randrange(-20, 80), -2, 1))
                z = 2 * move if move >= 0 else -2 * move - 1
                body += bytes([kernels.MOVE, z & 127 | 128, z >> 7])
            body.append(rng.randrange(count))
        data = sealed(codec, closed(bytes([segments, *ends, *counts[:-1]]), bytes(body)))
        expected = np.array(decode(file, data), np.uint8)
        colored += expected.ndim == 3
        assert np.array_equal(codec.decode(data).columns, expected)
    assert 40 < colored < 160
    with pytest.raises(DamagedPageError, match="symbols"):
        codec.decode(sealed(codec, closed(b"\1\5", bytes([count]))))


def test_one_codec_class() -> None:
    assert isinstance(train_codec([], renderer_of("rgb")), GlyphCodec)
