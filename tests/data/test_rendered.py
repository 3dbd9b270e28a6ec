"""Rows drawn when they are read, against stored rows and against the renderer itself."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    PairConfig,
    RenderingConfig,
    RenderingOverrides,
    TrainingConfig,
)
from megatron_pixel.data.documents import DocumentReader
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.loader import PrefetchLoader
from megatron_pixel.data.mixture import open_heldout, open_training
from megatron_pixel.data.packing_datasets import pack_dataset
from megatron_pixel.data.preprocess_documents import Recipe
from megatron_pixel.data.preprocessing import preprocess
from megatron_pixel.data.rendered import StringPages, effective_config
from megatron_pixel.data.rows import Kind, Modality, Row
from megatron_pixel.data.sources import PixelSource, RenderedSource, open_sources
from megatron_pixel.data.stores import StringStore
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.renderer import Renderer

LENGTH = 24
TEXTS = [
    "All human beings are born free and equal in dignity and rights. " * 30,
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi. " * 6,
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι. Все люди рождаются свободными и равными. " * 5,
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. " * 8,
    "כל בני האדם נולדו בני חורין, 123 and (equal) rights; " * 8,
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है। " * 5,
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ" * 6,
    "すべての人間は、生れながらにして自由である。人人生而自由，모든 인간은 자유롭다. " * 6,
    "😀 👩‍👩‍👧‍👦 🇫🇷 1️⃣ 👋🏽 a ❤️ b ⚡ " * 12,
    "pneumonoultramicroscopic" * 40,
    "e\u0301\u0302\u0303" * 100 + "\u200dzero\u200bwidth\u00ad " * 20,
    "line one\r\nline two\tof\x00many\u2028שלום\n" * 15,
    "a",
    " ",
    *(f"Short document number {number}." for number in range(12)),
]
FRACTION = 0.3


@pytest.fixture(scope="module")
def first_font() -> str:
    return str(find_fonts([], "default")[0].path)


class Dataset:
    """The same text as pages and as strings."""

    def __init__(self, folder: Path, rendering: RenderingConfig) -> None:
        self.folder, self.rendering = folder, rendering
        source = folder / "documents.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        for kind in ("pixels", "strings"):
            preprocess(DocumentReader([str(source)]), Recipe(kind, FRACTION, rendering), str(folder / kind))  # type: ignore[arg-type]
        self.pixels, self.strings = str(folder / "pixels"), str(folder / "strings")

    def model(self, channels: int = 3, **settings: int) -> ModelConfig:
        return ModelConfig(**{"seq_length": LENGTH, "num_channels": channels} | settings)  # type: ignore[arg-type]

    def changed(self, folder: Path, **rendering: object) -> str:
        """The strings dataset with another fingerprint in its manifest."""
        prefix = str(folder / "changed")
        for path in self.folder.glob("strings.*"):
            content = path.read_bytes()
            if path.name.endswith("manifest.json"):
                manifest = json.loads(content)
                manifest["rendering"] |= rendering
                content = json.dumps(manifest).encode()
            Path(prefix + path.name.removeprefix("strings")).write_bytes(content)
        return prefix


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(tmp_path_factory.mktemp("rgb"), RenderingConfig(seq_length=LENGTH))


def test_packed_rows_of_strings_are_those_of_pages(dataset: Dataset) -> None:
    """Drawn into their places of a row, and only with the settings that they were measured with."""
    model = dataset.model(seq_length=40)
    for prefix in (dataset.pixels, dataset.strings):
        pack_dataset(prefix, 40)
    sources = []
    for prefix in (dataset.pixels, dataset.strings):
        data = DataConfig(pixels=[prefix], mixture="0:1:0", packing="documents")
        sources += [source for _, source in open_sources([Kind.PIXEL], "train", data, model, PairConfig())[Kind.PIXEL]]
    stored, drawn = sources
    assert stored.num_rows == drawn.num_rows > 10
    for index in range(stored.num_rows):
        for name in ("patches", "modality", "position_ids", "segment_ids"):
            np.testing.assert_array_equal(getattr(drawn.row(index), name), getattr(stored.row(index), name))
    data.rendering.font_size = 7.0
    with pytest.raises(UserError) as error:
        open_sources([Kind.PIXEL], "train", data, model, PairConfig())
    path = f"{dataset.strings}.train.packed40.json"
    command = f"python data_tools/pack.py {dataset.strings} --seq-length 40 --data.rendering.font_size 7.0"
    told = "was made for pages drawn with rendering.font_size 8.0, and they are drawn with 7.0"
    assert str(error.value) == f"{path} {told}: {command} makes it again"
    pack_dataset(dataset.strings, 40, rendering=data.rendering)
    [(_, smaller)] = open_sources([Kind.PIXEL], "train", data, model, PairConfig())[Kind.PIXEL]
    assert 0 < smaller.num_rows < drawn.num_rows
    assert "is rendered with font_size 7.0 instead of 8.0" in smaller.note
    smaller.row(smaller.num_rows - 1)


def rendered(prefix: str, model: ModelConfig, split: str = "train", **overrides: object) -> RenderedSource:
    return RenderedSource(prefix, split, model, RenderingOverrides(**overrides), "pixel:x")  # type: ignore[arg-type]


def same(row: Row, other: Row) -> None:
    assert row.origin == other.origin
    for name in ("patches", "tokens", "modality", "position_ids", "segment_ids"):
        np.testing.assert_array_equal(getattr(row, name), getattr(other, name))


def assert_rows_are_stored_ones(dataset: Dataset, model: ModelConfig) -> None:
    total = 0
    for split in ("train", "heldout"):
        stored = PixelSource(dataset.pixels, split, model, "pixel:x")
        drawn = rendered(dataset.strings, model, split)
        assert drawn.note == ""
        assert drawn.num_rows == stored.num_rows > 3
        for index in range(stored.num_rows):
            same(drawn.row(index), stored.row(index))
        total += stored.num_rows
        bounds = [
            IndexedReader(f"{dataset.folder}/{name}.{split}.{content}").document_bounds
            for name, content in (("pixels", "pages"), ("strings", "strings"))
        ]
        np.testing.assert_array_equal(*bounds)
        assert StringStore(dataset.strings, split).manifest.splits[split].patches == (
            stored.manifest.splits[split].patches
        )
    assert total > 100


def test_rows_are_the_stored_ones_in_every_language_and_color(dataset: Dataset) -> None:
    assert_rows_are_stored_ones(dataset, dataset.model())
    colors = rendered(dataset.strings, dataset.model()).row
    with_color = [np.ptp(colors(index).patches.reshape(-1, 3), axis=1).any() for index in range(94)]
    assert 2 < sum(with_color) < 60


@pytest.mark.parametrize("settings", [{"mode": "gray"}, {"mode": "binary"}, {"preset": "released"}], ids=str)
def test_rows_are_the_stored_ones_with_other_settings(
    tmp_path: Path, first_font: str, settings: dict[str, str]
) -> None:
    config = RenderingConfig(seq_length=LENGTH, fonts=[first_font], font_size=9, binary_threshold=200, **settings)  # type: ignore[arg-type]
    dataset = Dataset(tmp_path, config)
    assert_rows_are_stored_ones(dataset, dataset.model())
    if "mode" in settings:
        assert_rows_are_stored_ones(dataset, dataset.model(channels=1))


def pieces(prefix: str, split: str = "train") -> list[tuple[str, int, int]]:
    """Document, first character and character after the last one of every row."""
    store = StringStore(prefix, split)
    found = []
    for first, stop in zip(store.reader.document_bounds, store.reader.document_bounds[1:], strict=False):
        document = "".join(store.piece(index) for index in range(first, stop))
        assert document in TEXTS
        start = 0
        for index in range(first, stop):
            found.append((document, start, start + len(store.piece(index))))
            start = found[-1][2]
    return found


@pytest.mark.parametrize(
    "overrides",
    [{"font_size": 11.0}, {"font_size": 2.5}, {"seq_length": 10}, {"dpi": 60, "mode": "gray"}, {"preset": "released"}],
    ids=str,
)
def test_with_other_settings_a_row_starts_alike_and_shows_what_follows(
    dataset: Dataset, first_font: str, overrides: dict[str, object]
) -> None:
    if "preset" in overrides:
        overrides = overrides | {"fonts": [first_font]}
    model = dataset.model()
    source = rendered(dataset.strings, model, **overrides)
    renderer = Renderer(RenderingConfig(**asdict(dataset.rendering) | overrides))  # type: ignore[arg-type]
    places = pieces(dataset.strings)
    assert len(places) == source.num_rows
    characters = missing = repeated = 0
    for index, (document, start, end) in enumerate(places):
        expected = next(renderer.iter_pages(document[start:]))
        row = source.row(index)
        assert row.patches is not None
        np.testing.assert_array_equal(
            row.patches[row.modality == Modality.PATCH], expected.patches(3).reshape(expected.num_patches, -1)
        )
        characters += end - start
        missing += max(0, end - start - expected.end)
        repeated += max(0, expected.end - (end - start))
    share = StringPages(StringStore(dataset.strings), RenderingOverrides(**overrides)).sample(rows=10**6)  # type: ignore[arg-type]
    assert share.rows == len(places)
    assert share.missing == pytest.approx(missing / characters)
    assert share.repeated == pytest.approx(repeated / characters)
    assert max(share.missing, share.repeated) > 0.03
    assert "pixel:x is rendered with " in source.note
    assert "of its text does not fit on the rows" in source.note
    assert "(sample of 64 rows)" in source.note
    for name, value in overrides.items():
        assert name == "mode" or f"{name} {value} instead of" in source.note or name == "fonts"


def test_mode_changes_pixels_but_not_where_pages_end(dataset: Dataset) -> None:
    source = rendered(dataset.strings, dataset.model(channels=1), mode="gray")
    stored = PixelSource(dataset.pixels, "train", dataset.model(), "pixel:x")
    assert source.note == ""
    for index in range(0, source.num_rows, 7):
        assert (source.row(index).modality == stored.row(index).modality).all()


def test_the_font_grows_with_the_patches_unless_its_size_is_given(dataset: Dataset) -> None:
    recorded = StringStore(dataset.strings).manifest.rendering or {}
    assert effective_config(recorded, RenderingOverrides(patch_size=32)).font_size == 16
    assert effective_config(recorded, RenderingOverrides(patch_size=32, font_size=9)).font_size == 9
    unchanged = effective_config(recorded, RenderingOverrides())
    assert asdict(unchanged) == asdict(dataset.rendering) | {"font_size": 8.0}
    source = rendered(dataset.strings, dataset.model(patch_size=32), patch_size=32)
    assert source.row(0).patches.shape == (LENGTH, 32 * 32 * 3)


def test_overrides_name_every_rendering_setting() -> None:
    assert asdict(RenderingOverrides()).keys() == asdict(RenderingConfig()).keys()
    assert not any(asdict(RenderingOverrides()).values())


def test_missing_and_other_fonts(dataset: Dataset, tmp_path: Path, first_font: str) -> None:
    fonts = (StringStore(dataset.strings).manifest.rendering or {})["fonts"]
    other = [{**fonts[0], "sha256": "f" * 64}, *fonts[1:]]
    prefix = dataset.changed(tmp_path, fonts=other)
    with pytest.raises(UserError) as error:
        rendered(prefix, dataset.model())
    for part in (f"{prefix}.manifest.json", fonts[0]["name"], "ffffffffffff", first_font, "--data.rendering.fonts"):
        assert part in str(error.value)
    # Named by the user, any font will do: rows are drawn with it, and the change is told.
    source = rendered(prefix, dataset.model(), fonts=[first_font])
    assert f"fonts {Path(first_font).name}" in source.note
    # A font may have another name or place: its content counts. A part of the installed chain is found in it.
    renamed = [{**font, "name": "other.ttf"} for font in fonts[:2]]
    assert rendered(dataset.changed(tmp_path, fonts=renamed), dataset.model()).note == ""
    with pytest.raises(UserError, match=r"manifest\.json: .*nowhere\.ttf is not a file.*data\.rendering"):
        rendered(dataset.strings, dataset.model(), fonts=["nowhere.ttf"])


def test_the_identity_follows_settings_fonts_and_versions(dataset: Dataset, tmp_path: Path, first_font: str) -> None:
    model = dataset.model()
    identities = [
        rendered(dataset.strings, model).identity,
        rendered(dataset.strings, model, font_size=9.0).identity,
        rendered(dataset.strings, model, mode="gray").identity,
        rendered(dataset.strings, model, fonts=[first_font]).identity,
        rendered(dataset.strings, model, "heldout").identity,
        PixelSource(dataset.pixels, "train", model, "pixel:x").identity,
    ]
    assert len(set(identities)) == len(identities)
    assert identities[0] == rendered(dataset.strings, model, font_size=8.0).identity
    # A dataset made by another version is laid out anew, and says so.
    older = rendered(dataset.changed(tmp_path, renderer_version=0), model)
    assert "renderer_version" in older.note


def refusal(prefix: str, model: ModelConfig, **overrides: object) -> str:
    with pytest.raises(UserError) as error:
        open_sources(
            [Kind.PIXEL],
            "train",
            DataConfig(pixels=[prefix], rendering=RenderingOverrides(**overrides)),  # type: ignore[arg-type]
            model,
            PairConfig(),
        )
    return str(error.value)


def test_what_does_not_fit_is_refused_with_the_way_out(dataset: Dataset) -> None:
    strings, manifest = dataset.strings, f"{dataset.strings}.manifest.json"
    for model, told in [
        (dataset.model(patch_size=32), ["patches of 16 pixels", "--data.rendering.patch_size 32"]),
        (dataset.model(channels=1), ["mode rgb", "--data.rendering.mode gray"]),
        (dataset.model(seq_length=20), ["up to 24 patches", "--data.rendering.seq_length 20"]),
    ]:
        message = refusal(strings, model)
        assert all(part in message for part in [manifest, *told]), message
    message = refusal(dataset.pixels, dataset.model(), font_size=9.0, mode="gray")
    for part in ("data.rendering.font_size", "data.rendering.mode", "preprocess.py strings"):
        assert part in message


def test_several_threads_read_one_source(dataset: Dataset) -> None:
    source = rendered(dataset.strings, dataset.model())
    expected = [source.row(index) for index in range(24)]

    def read(first: int) -> None:
        for _ in range(3):
            for index in range(first, 24):
                same(source.row(index), expected[index])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(read, range(3)))


def test_workers_and_evaluation_read_what_is_stored(dataset: Dataset) -> None:
    training = TrainingConfig(global_batch_rows=8, micro_batch_rows=2)
    data = DataConfig(pixels=[dataset.strings], mixture="0:1:0")
    stored = DataConfig(pixels=[dataset.pixels], mixture="0:1:0")
    reader = open_training(data, dataset.model(), PairConfig(), training, 1)
    pixels = PixelSource(dataset.pixels, "train", dataset.model(), "pixel:strings")
    with PrefetchLoader(reader, range(6), 0, 1, depth=2, workers=1) as loader:
        for step, batches in loader:
            for index, batch in enumerate(batches):
                assert batch.rows == reader.micro_batch(step, index, 0, 1).rows
                for i, (_, row) in enumerate(batch.rows):
                    same(batch.row(i), pixels.row(row))
    heldout = [
        open_heldout(config, dataset.model(), PairConfig(), training, EvaluationConfig(rows=30))
        for config in (data, stored)
    ]
    compared = 0
    for drawn, kept in zip(*(reader.batches(Kind.PIXEL) for reader in heldout), strict=True):
        np.testing.assert_array_equal(drawn.patches, kept.patches)
        compared += len(drawn.rows)
    assert compared >= 8


def test_a_damaged_piece_is_named_by_row_and_file(dataset: Dataset, tmp_path: Path) -> None:
    prefix = dataset.changed(tmp_path)
    file = Path(f"{prefix}.train.strings.bin")
    file.write_bytes(bytes(byte | 0x80 for byte in file.read_bytes()))
    reader = open_training(
        DataConfig(pixels=[prefix], mixture="0:1:0"),
        dataset.model(),
        PairConfig(),
        TrainingConfig(global_batch_rows=1, micro_batch_rows=1),
        1,
    )
    with pytest.raises(UserError, match=r"row \d+ of pixel:changed: .*changed\.train\.strings\.bin: piece \d+ is"):
        reader.micro_batch(0, 0, 0, 1)
