import json
import shutil
from collections.abc import Iterable
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
    TrainingConfig,
)
from megatron_pixel.data.documents import DocumentReader
from megatron_pixel.data.mixture import open_heldout, open_training
from megatron_pixel.data.preprocess_documents import Converter, Recipe
from megatron_pixel.data.preprocessing import preprocess
from megatron_pixel.data.rows import Kind, MicroBatch, Modality, TargetCounts, stack_rows
from megatron_pixel.data.sources import PairSource, PixelSource, TextSource, open_sources
from megatron_pixel.data.split import is_heldout
from megatron_pixel.data.stores import PageStore, PairStore, TokenStore
from megatron_pixel.data.tokenizer import Tokenizer, train_tokenizer

FRACTION = 0.3
VOCAB_SIZE = 320
MODEL = ModelConfig(vocab_size=VOCAB_SIZE, seq_length=64, patch_size=16, num_channels=1)
PAIR = PairConfig(patches=32, tokens=32)
TEXTS = [f"Story {i} is told by {', '.join(f'speaker {i}/{j}' for j in range(i % 13 + 1))}." for i in range(60)]
HELDOUT = {text for text in TEXTS if is_heldout(text, FRACTION)}
TRAIN = set(TEXTS) - HELDOUT


class Corpus:
    """One text, preprocessed in every way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.documents = folder / "documents.jsonl"
        self.documents.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        self.tokenizer = str(folder / "tokenizer.model")
        train_tokenizer(TEXTS, self.tokenizer, VOCAB_SIZE, 1000)
        rendering = RenderingConfig(mode="gray", seq_length=64)
        self.recipes = {
            Kind.TEXT: Recipe("text", FRACTION, tokenizer=self.tokenizer),
            Kind.PIXEL: Recipe("pixels", FRACTION, rendering=rendering),
            Kind.PAIR: Recipe("pairs", FRACTION, rendering=rendering, tokenizer=self.tokenizer, pair=PAIR),
        }
        for kind, recipe in self.recipes.items():
            preprocess(DocumentReader([str(self.documents)]), recipe, self.prefix(kind))

    def prefix(self, kind: Kind) -> str:
        return str(self.folder / self.recipes[kind].kind)

    def data(self, mixture: str = "1:1:1") -> DataConfig:
        return DataConfig(
            text=[self.prefix(Kind.TEXT)],
            pixels=[self.prefix(Kind.PIXEL)],
            pairs=[self.prefix(Kind.PAIR)],
            mixture=mixture,
        )

    def copy(self, kind: Kind, folder: Path, name: str, **changes: object) -> str:
        """A dataset under another name and with another manifest."""
        prefix = str(folder / name)
        old = self.prefix(kind)
        for path in self.folder.glob(f"{Path(old).name}.*"):
            shutil.copy(path, prefix + str(path).removeprefix(old))
        manifest = Path(f"{prefix}.manifest.json")
        content = json.loads(manifest.read_text())
        for key, value in changes.items():
            content[key] = content[key] | value if isinstance(value, dict) else value
        manifest.write_text(json.dumps(content))
        return prefix


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


def text_documents(corpus: Corpus, rows: list[tuple[int, np.ndarray]]) -> set[str]:
    """Texts of the documents in rows of a token stream, given as (row index, tokens); rows side by side are joined."""
    tokenizer = Tokenizer(corpus.tokenizer)
    stream = np.concatenate([tokens for _, tokens in sorted(rows, key=lambda row: row[0])])
    assert stream[0] == tokenizer.bos_id
    documents = np.split(stream, np.flatnonzero(stream == tokenizer.bos_id)[1:])
    assert all(document[-1] == tokenizer.eos_id for document in documents)
    return {tokenizer.decode(document[1:-1]) for document in documents}


def shown_documents(corpus: Corpus, batches: list[MicroBatch], kind: Kind) -> set[str]:
    """Texts of the documents that pixel or pair rows show, found by their pages and tokens."""
    converter = Converter(corpus.recipes[kind])
    known: dict[tuple[bytes, bytes], str] = {}
    for text in TEXTS:
        for page, tokens in converter.chunks(text):
            written = b"" if tokens is None else tokens.astype(np.int64).tobytes()
            assert known.setdefault((page.patches(1).tobytes(), written), text) == text
    seen = set()
    for batch in batches:
        for row in range(len(batch.rows)):
            patches = batch.patches[row][batch.modality[row] == Modality.PATCH]
            tokens = batch.tokens[row][batch.modality[row] == Modality.TOKEN]
            if len(patches):
                seen.add(known[patches.tobytes(), tokens.tobytes()])
    return seen


def documents_of(corpus: Corpus, batches: list[MicroBatch], kind: Kind) -> set[str]:
    if kind != Kind.TEXT:
        return shown_documents(corpus, batches, kind)
    rows = {
        origin[1]: batch.tokens[row][batch.modality[row] == Modality.TOKEN]
        for batch in batches
        for row, origin in enumerate(batch.rows)
    }
    return text_documents(corpus, [(index, tokens) for index, tokens in rows.items() if len(tokens)])


def test_no_heldout_document_is_ever_trained_on(corpus):
    assert len(HELDOUT) > 5
    assert len(TRAIN) > 20
    training = TrainingConfig(global_batch_rows=6, micro_batch_rows=1)
    reader = open_training(corpus.data(), MODEL, PAIR, training, dp_size=2)
    sources = open_sources(Kind, "train", corpus.data(), MODEL, PAIR)
    steps = max(source.num_rows for [(_, source)] in sources.values()) // 2 + 1
    read: dict[Kind, list[MicroBatch]] = {kind: [] for kind in Kind}
    for step in range(steps):
        for index in range(reader.num_micro_batches(2)):
            for rank in range(2):
                batch = reader.micro_batch(step, index, rank, 2)
                read[batch.kind].append(batch)
    heldout = open_heldout(corpus.data(), MODEL, PAIR, training, EvaluationConfig(rows=10_000))
    for kind in Kind:
        trained_on = documents_of(corpus, read[kind], kind)
        assert not trained_on & HELDOUT
        # An epoch leaves nothing out either, and evaluation reads the rest, all of it.
        assert trained_on == TRAIN
        assert documents_of(corpus, list(heldout.batches(kind)), kind) == HELDOUT


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("seq_length", [16, 64, 100_000])
def test_text_rows_are_the_stream(corpus, split, seq_length):
    model = ModelConfig(vocab_size=VOCAB_SIZE, seq_length=seq_length)
    source = TextSource(corpus.prefix(Kind.TEXT), split, model, "text:x")
    store = TokenStore(corpus.prefix(Kind.TEXT), split)
    rows = [source.row(index) for index in range(source.num_rows)]
    assert [row.origin for row in rows] == [("text:x", index) for index in range(len(rows))]
    tokens = np.concatenate([row.tokens[row.modality == Modality.TOKEN] for row in rows])
    np.testing.assert_array_equal(tokens, store.read(0, store.num_tokens))
    assert all((row.modality == Modality.TOKEN).all() for row in rows[:-1])
    bos = Tokenizer(corpus.tokenizer).bos_id
    for row in rows:
        begins = np.flatnonzero((row.tokens == bos) & (row.modality == Modality.TOKEN))
        segments = row.segment_ids[row.modality == Modality.TOKEN]
        np.testing.assert_array_equal(np.flatnonzero(np.diff(segments)) + 1, begins[begins > 0])
        np.testing.assert_array_equal(np.unique(segments), np.arange(segments[-1] + 1))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_rows_are_the_pages(corpus, channels):
    model = ModelConfig(seq_length=64, num_channels=channels)
    source = PixelSource(corpus.prefix(Kind.PIXEL), "train", model, "pixel:x")
    store = PageStore(corpus.prefix(Kind.PIXEL), "train")
    assert source.num_rows == len(store) > 20
    for index in range(source.num_rows):
        row, page = source.row(index), store.page(index)
        np.testing.assert_array_equal(
            row.patches[row.modality == Modality.PATCH], page.patches(channels).reshape(page.num_patches, -1)
        )
        assert row.origin == ("pixel:x", index)


@pytest.mark.parametrize("layout", ["compact", "released"])
def test_pair_rows_are_the_pairs(corpus, layout):
    pair = PairConfig(layout=layout, patches=32, tokens=32)
    source = PairSource(corpus.prefix(Kind.PAIR), "train", MODEL, pair, "pair:x")
    store = PairStore(corpus.prefix(Kind.PAIR), "train")
    assert source.num_rows == len(store) > 40
    for index in range(source.num_rows):
        row = source.row(index)
        page, tokens = store.pair(index)
        np.testing.assert_array_equal(row.tokens[row.modality == Modality.TOKEN], tokens)
        np.testing.assert_array_equal(
            row.patches[row.modality == Modality.PATCH], page.patches(1).reshape(page.num_patches, -1)
        )
        first_token = int(np.argmax(row.modality == Modality.TOKEN))
        assert first_token == (page.num_patches if layout == "compact" else 32)


def test_target_counts_agree_with_the_manifest(corpus):
    for kind in (Kind.PIXEL, Kind.PAIR):
        for split in ("train", "heldout"):
            [(_, source)] = open_sources([kind], split, corpus.data(), MODEL, PAIR)[kind]
            rows = [source.row(index) for index in range(source.num_rows)]
            entry = source.manifest.splits[split]
            expected = TargetCounts(entry.token_targets, entry.patch_targets)
            assert stack_rows(kind, rows).count_targets() == expected


def test_blocks_are_about_a_megabyte(corpus):
    for kind in Kind:
        [(_, source)] = open_sources([kind], "train", corpus.data(), MODEL, PAIR)[kind]
        size = sum(path.stat().st_size for path in corpus.folder.glob(f"{corpus.recipes[kind].kind}.train.*.bin"))
        assert source.rows_per_block * size / source.num_rows == pytest.approx(1 << 20, rel=0.01)


def test_names_survive_a_move_and_stay_apart(corpus, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = corpus.copy(Kind.TEXT, tmp_path / "a", "wiki")
    second = corpus.copy(Kind.TEXT, tmp_path / "b", "wiki")
    other = corpus.copy(Kind.TEXT, tmp_path, "news")

    def names(*entries: str) -> list[tuple[float, str]]:
        opened = open_sources([Kind.TEXT], "train", DataConfig(text=list(entries)), MODEL, PAIR)
        return [(weight, source.name) for weight, source in opened[Kind.TEXT]]

    assert names(first) == names(second) == [(1.0, "text:wiki")]
    assert names(f"0.25:{first}", other) == [(0.25, "text:wiki"), (1.0, "text:news")]
    assert names(first, second) == [(1.0, f"text:{first}"), (1.0, f"text:{second}")]
    data = DataConfig(text=[first, first], mixture="1:0:0")
    with pytest.raises(UserError, match="twice"):
        open_training(data, MODEL, PAIR, TrainingConfig(global_batch_rows=8, micro_batch_rows=2), 1)


def test_a_dataset_made_again_from_other_text_is_noticed(corpus, tmp_path):
    def consumed(prefix: str) -> dict[str, int]:
        data = DataConfig(text=[prefix], mixture="1:0:0")
        return open_training(data, MODEL, PAIR, TrainingConfig(global_batch_rows=8, micro_batch_rows=2), 1).consumed(2)

    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(corpus.documents.read_text().splitlines(keepends=True)[:-10]))
    again = str(tmp_path / "text")
    preprocess(DocumentReader([str(fewer)]), corpus.recipes[Kind.TEXT], again)
    (tmp_path / "moved").mkdir()
    moved = corpus.copy(Kind.TEXT, tmp_path / "moved", "text")
    assert consumed(moved) == consumed(corpus.prefix(Kind.TEXT)) != consumed(again)
    assert list(consumed(again).values()) == [16]


def refused(kinds: Iterable[Kind], data: DataConfig, model=MODEL, pair=PAIR) -> str:
    with pytest.raises(UserError) as error:
        open_sources(kinds, "train", data, model, pair)
    return str(error.value)


def test_a_dataset_that_does_not_fit_the_model_is_refused(corpus, tmp_path):
    data = corpus.data()
    for kind, model, told in [
        (
            Kind.TEXT,
            ModelConfig(vocab_size=321, seq_length=64),
            ["tokenizer.model", " 320 ", "model.vocab_size is 321"],
        ),
        (
            Kind.PAIR,
            ModelConfig(vocab_size=319, seq_length=64),
            ["tokenizer.model", " 320 ", "model.vocab_size is 319"],
        ),
        (Kind.PIXEL, ModelConfig(seq_length=64, patch_size=32), ["16 pixels", "model.patch_size is 32"]),
        (Kind.PIXEL, ModelConfig(seq_length=63), ["64 patches of a page", "model.seq_length is 63"]),
        (Kind.PAIR, ModelConfig(vocab_size=320, seq_length=63), ["32", "63"]),
    ]:
        message = refused([kind], data, model)
        assert all(part in message for part in told), message
        if kind != Kind.PAIR:
            assert f"{corpus.prefix(kind)}.manifest.json" in message
    for pair, told in [
        (PairConfig(patches=31, tokens=32), ["32 patches of a pair", "pair.patches is 31"]),
        (PairConfig(patches=32, tokens=31), ["32 tokens of a pair", "pair.tokens is 31"]),
    ]:
        message = refused([Kind.PAIR], data, pair=pair)
        assert all(part in message for part in [*told, f"{corpus.prefix(Kind.PAIR)}.manifest.json"]), message
    colored = corpus.copy(Kind.PIXEL, tmp_path, "colored", rendering={"mode": "rgb"})
    message = refused([Kind.PIXEL], DataConfig(pixels=[colored]))
    assert all(part in message for part in [f"{colored}.manifest.json", "mode rgb", "model.num_channels is 1"])


def test_a_dataset_of_another_kind_or_none_is_refused(corpus, tmp_path):
    message = refused([Kind.TEXT], DataConfig(text=[corpus.prefix(Kind.PAIR)]))
    assert corpus.prefix(Kind.PAIR) in message
    assert "data.pairs" in message
    assert "nowhere.manifest.json" in refused([Kind.TEXT], DataConfig(text=[str(tmp_path / "nowhere")]))


def test_datasets_that_do_not_fit_each_other_are_refused(corpus, tmp_path):
    other = corpus.copy(Kind.PAIR, tmp_path, "other", tokenizer={"sha256": "f" * 64, "file": "second.model"})
    data = corpus.data()
    data.pairs = [other]
    message = refused(list(Kind), data)
    for part in ("text.manifest.json", "other.manifest.json", "tokenizer.model", "second.model", "ffffffffffff"):
        assert part in message
    leaking = corpus.copy(Kind.PIXEL, tmp_path, "leaking", heldout_fraction=0.01)
    data = corpus.data()
    data.pixels = [leaking]
    message = refused(list(Kind), data)
    for part in ("text.manifest.json", "leaking.manifest.json", "0.3", "0.01", "--heldout-fraction"):
        assert part in message


def test_a_damaged_page_is_named_by_row_and_file(corpus, tmp_path):
    prefix = corpus.copy(Kind.PIXEL, tmp_path, "damaged")
    file = Path(f"{prefix}.train.pages.bin")
    file.write_bytes(bytes(byte ^ 255 for byte in file.read_bytes()))
    data = DataConfig(pixels=[prefix], mixture="0:1:0")
    reader = open_training(data, MODEL, PAIR, TrainingConfig(global_batch_rows=1, micro_batch_rows=1), 1)
    with pytest.raises(UserError, match=r"row \d+ of pixel:damaged: .*damaged\.train\.pages\.bin: page \d+ is damaged"):
        reader.micro_batch(0, 0, 0, 1)
