"""From documents to datasets: cutting, processes, files."""

import itertools
import json
import random
import re
import resource
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import PairConfig, RenderingConfig
from megatron_pixel.data.documents import DocumentReader, ReaderOptions
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.preprocess_chunks import PairChunker, iterate_pages
from megatron_pixel.data.preprocess_documents import Recipe, first_page
from megatron_pixel.data.preprocessing import preprocess
from megatron_pixel.data.split import is_heldout
from megatron_pixel.data.stores import PageStore, PairStore, TokenStore
from megatron_pixel.data.tokenizer import BOS_ID, EOS_ID, Tokenizer, train_tokenizer
from megatron_pixel.data.verification import verify
from megatron_pixel.rendering.fonts import find_fonts
from megatron_pixel.rendering.renderer import Renderer

WORDS = "we hold these truths to be self-evident that all men, women; children? 1776 are created equal".split()


def words(count: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


TEXTS = {
    "words": words(400),
    "one word": "pneumonoultramicroscopic" * 60,
    "spaces": " ".join(["a", " " * 300, "b", "\n\n\n", words(40), " " * 50]),
    "bytes": "漢字かな交じり文、" * 40 + words(30) + "👩‍👩‍👧‍👦🏳️‍🌈" * 20,
    "marks": "e\u0301\u0302" * 150 + " " + words(30),
    "right to left": "אבג 123 דהו, " * 40 + words(20) + " مرحبا بالعالم" * 20,
    "short": "a",
    "blank": " \n",
}


@pytest.fixture(scope="module")
def fonts() -> list[str]:
    # One font instead of the whole chain: building a renderer takes a tenth of the time.
    return [str(find_fonts([], "default")[0].path)]


@pytest.fixture(scope="module")
def renderer(fonts):
    return Renderer(RenderingConfig(fonts=fonts, seq_length=32))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([words(40, seed) for seed in range(100)], path, vocab_size=330, max_sentences=10_000)
    return str(path)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("patches", [8, 32])
def test_pages_are_those_of_the_renderer(renderer, name, patches):
    text = TEXTS[name]
    pages = list(iterate_pages(renderer.render, text, patches))
    expected = renderer.pages(text, patches)
    assert [(page.start, page.end) for page in pages] == [(page.start, page.end) for page in expected]
    for page, other in zip(pages, expected, strict=True):
        np.testing.assert_array_equal(page.columns, other.columns)


def test_pages_of_the_released_preset_lose_nothing(fonts):
    renderer = Renderer(RenderingConfig(fonts=fonts, preset="released", seq_length=32))
    pages = list(iterate_pages(first_page(renderer), TEXTS["words"], 32))
    assert len(pages) > 5
    assert pages[-1].end == len(TEXTS["words"])
    for page, following in itertools.pairwise(pages):
        assert page.end == following.start
        assert page.num_patches <= 32
        assert " " in TEXTS["words"][page.end - 1 : page.end + 1]  # between words, not as if by scissors


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize(("patches", "tokens"), [(32, 1000), (1000, 40), (40, 60), (8, 16)])
def test_pair_chunks_tile_a_document(renderer, model, name, patches, tokens):
    text = TEXTS[name]
    tokenizer = Tokenizer(model)
    chunks = list(PairChunker(renderer.render, tokenizer, PairConfig(patches=patches, tokens=tokens)).chunks(text))
    position = 0
    for number, (page, ids) in enumerate(chunks):
        last = number == len(chunks) - 1
        assert page.start == position
        position = page.end
        part = text[page.start : page.end]
        assert page.num_patches <= patches
        assert len(ids) <= tokens
        assert ids[0] == BOS_ID
        assert (ids == BOS_ID).sum() == 1
        assert (ids == EOS_ID).sum() == last
        assert ids[-1] == EOS_ID or not last
        assert tokenizer.decode(ids) == part
        np.testing.assert_array_equal(page.columns, renderer.render(part, patches).columns)
    assert position == len(text)


@pytest.mark.parametrize(("patches", "tokens", "bound"), [(32, 1000, "patches"), (1000, 40, "tokens")])
def test_a_pair_chunk_is_the_longest_run_of_whole_words(renderer, model, patches, tokens, bound):
    text = TEXTS["words"]
    tokenizer = Tokenizer(model)
    chunks = list(PairChunker(renderer.render, tokenizer, PairConfig(patches=patches, tokens=tokens)).chunks(text))
    assert len(chunks) > 5
    full = Counter[str]()
    for page, _ in chunks[:-1]:
        assert " " in text[page.end - 1 : page.end + 1]
        # One more word, without the white space that may follow it, does not fit.
        following = re.match(r"\s*\S+", text[page.end :])
        assert following is not None
        longer = text[page.start : page.end] + following[0]
        full["patches"] += renderer.render(longer, 2000).num_patches > patches
        full["tokens"] += len(tokenizer.encode(longer)) + 1 > tokens
    assert full[bound] == len(chunks) - 1


def test_room_for_eos_is_kept(renderer, model):
    tokenizer = Tokenizer(model)
    text = words(30)
    count = len(tokenizer.encode(text)) + 1  # with BOS
    for tokens, expected in ((count, 2), (count + 1, 1)):
        chunks = list(PairChunker(renderer.render, tokenizer, PairConfig(patches=900, tokens=tokens)).chunks(text))
        assert len(chunks) == expected
        assert chunks[-1][1][-1] == EOS_ID
        assert max(len(ids) for _, ids in chunks) <= tokens


@pytest.mark.parametrize("unit", ["a", "\u0301", "\u200b", "word "])
def test_the_work_on_a_long_document_is_linear(renderer, model, unit):
    tokenizer = Tokenizer(model)
    looked = {"pages": 0, "pairs": 0}

    def counting(name: str):
        def render(text, max_patches):
            looked[name] += len(text)
            return renderer.render(text, max_patches)

        return render

    def work(length: int) -> dict[str, int]:
        looked.update(pages=0, pairs=0)
        text = (unit * length)[:length]
        pages = list(iterate_pages(counting("pages"), text, 16))
        pairs = list(PairChunker(counting("pairs"), tokenizer, PairConfig(patches=16, tokens=64)).chunks(text))
        assert pages[-1].end == pairs[-1][0].end == length
        return dict(looked)

    short, long = work(5_000), work(20_000)
    for name, characters in long.items():
        assert characters < 5 * short[name]


def test_a_cap_that_holds_no_character_is_refused(renderer, model, tmp_path):
    recipe = Recipe("pairs", 0.0, RenderingConfig(), model, PairConfig(patches=4, tokens=64))
    with pytest.raises(UserError, match=r"--pair\.patches 4 is too small"):
        preprocess(reader_of(tmp_path, ["a"]), recipe, str(tmp_path / "p"))


# Datasets.


def reader_of(folder: Path, texts: list[str], **options) -> DocumentReader:
    path = folder / "input.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DocumentReader([str(path)], ReaderOptions(**options))


@pytest.fixture(scope="module")
def recipes(fonts, model) -> dict[str, Recipe]:
    rendering = RenderingConfig(fonts=fonts, seq_length=32)
    return {
        "text": Recipe("text", 0.3, tokenizer=model),
        "pixels": Recipe("pixels", 0.3, rendering=rendering),
        "pairs": Recipe("pairs", 0.3, rendering=rendering, tokenizer=model, pair=PairConfig(patches=24, tokens=48)),
    }


DOCUMENTS = [words(5 + 7 * (number % 9), seed=number) for number in range(30)] + [TEXTS["bytes"], TEXTS["marks"]]
HELDOUT = [text for text in DOCUMENTS if is_heldout(text, 0.3)]
TRAIN = [text for text in DOCUMENTS if not is_heldout(text, 0.3)]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, recipes) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("datasets")
    for kind, recipe in recipes.items():
        preprocess(reader_of(folder, [*DOCUMENTS, " "]), recipe, str(folder / kind))
    return {kind: str(folder / kind) for kind in recipes}


@pytest.mark.parametrize(("split", "expected"), [("train", TRAIN), ("heldout", HELDOUT)])
def test_text_datasets_hold_the_documents(datasets, model, split, expected):
    tokenizer = Tokenizer(model)
    store = TokenStore(datasets["text"], split)
    bounds = store.documents
    assert len(expected) > 3
    found = [store.read(start, stop) for start, stop in itertools.pairwise(bounds)]
    assert [tokenizer.decode(tokens) for tokens in found] == expected
    assert {(int(tokens[0]), int(tokens[-1])) for tokens in found} == {(BOS_ID, EOS_ID)}


@pytest.mark.parametrize(("split", "expected"), [("train", TRAIN), ("heldout", HELDOUT)])
def test_pixel_datasets_hold_the_pages(datasets, renderer, split, expected):
    store = PageStore(datasets["pixels"], split)
    pages = [page for text in expected for page in renderer.pages(text)]
    assert len(store) == len(pages)
    for index, page in enumerate(pages):
        np.testing.assert_array_equal(store.page(index).columns, page.columns)
    counts = [len(renderer.pages(text)) for text in expected]
    assert np.diff(store.pages.document_bounds).tolist() == counts


@pytest.mark.parametrize(("split", "expected"), [("train", TRAIN), ("heldout", HELDOUT)])
def test_pair_datasets_align_pages_and_tokens(datasets, renderer, model, split, expected):
    tokenizer = Tokenizer(model)
    store = PairStore(datasets["pairs"], split)
    np.testing.assert_array_equal(store.pages.document_bounds, store.tokens.document_bounds)
    bounds = store.tokens.document_bounds.tolist()
    for text, start, stop in zip(expected, bounds, bounds[1:], strict=False):
        parts = []
        for index in range(start, stop):
            page, tokens = store.pair(index)
            parts.append(tokenizer.decode(tokens))
            np.testing.assert_array_equal(page.columns, renderer.render(parts[-1]).columns)
            assert (tokens[-1] == EOS_ID) == (index == stop - 1)
        assert "".join(parts) == text


@pytest.mark.parametrize("kind", ["text", "pixels", "pairs"])
def test_counts_of_the_manifest(datasets, kind):
    manifest = Manifest.read(datasets[kind])
    assert verify(datasets[kind]) == []
    assert manifest.source["documents"] == len(DOCUMENTS)
    assert manifest.source["skipped"] == {"empty document": 1}
    assert manifest.heldout_fraction == 0.3
    for split, texts in (("train", TRAIN), ("heldout", HELDOUT)):
        entry = manifest.splits[split]
        assert entry.documents == len(texts)
        if kind == "text":
            assert entry.tokens == TokenStore(datasets[kind], split).num_tokens
            assert (entry.patches, entry.patch_targets, entry.token_targets) == (0, 0, 0)
            continue
        store = (PageStore if kind == "pixels" else PairStore)(datasets[kind], split)
        assert entry.sequences == len(store)
        patches = [store.page(index).num_patches for index in range(len(store))]
        assert (entry.patches, entry.patch_targets) == (sum(patches), sum(patches) - len(patches))
        if kind == "pairs":
            sizes = store.tokens.sizes
            assert (entry.tokens, entry.token_targets) == (sizes.sum(), sizes.sum() - len(sizes))


def files_of(prefix: str) -> dict[str, bytes]:
    path = Path(prefix)
    return {
        file.name.removeprefix(path.name): file.read_bytes()
        for file in path.parent.iterdir()
        if file.name.startswith(path.name + ".")
    }


def test_neither_processes_nor_parts_show(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_pixel.data.preprocessing._FEW_BYTES", 0)
    for workers, part_bytes in ((1, None), (2, 700)):
        prefix = tmp_path / f"with-{workers}"
        reader = reader_of(tmp_path, [*DOCUMENTS, " "])
        preprocess(reader, recipes["pairs"], str(prefix), workers, part_bytes=part_bytes)
    one, two = files_of(str(tmp_path / "with-1")), files_of(str(tmp_path / "with-2"))
    assert len(one) == 10  # two contents of two splits, the codec, the manifest
    assert one == two


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_record_is_told_and_may_be_skipped_later(tmp_path, recipes, workers, monkeypatch):
    monkeypatch.setattr("megatron_pixel.data.preprocessing._FEW_BYTES", 0)
    prefix = tmp_path / "p"
    reader = reader_of(tmp_path, DOCUMENTS)
    with Path(reader.paths[0]).open("a") as file:
        file.write("{broken\n")
    message = rf"input.jsonl:{len(DOCUMENTS) + 1}: broken JSON(.|\n)*parts are kept in .*p\.work; the same command"
    with pytest.raises(UserError, match=message):
        preprocess(DocumentReader(reader.paths), recipes["text"], str(prefix), workers, part_bytes=2000)
    assert [path.name for path in tmp_path.glob("p.*")] == ["p.work"]
    assert list((tmp_path / "p.work").glob("part-*.json"))
    skipping = DocumentReader(reader.paths, ReaderOptions(on_bad_record="skip"))
    report = preprocess(skipping, recipes["text"], str(prefix), part_bytes=2000)
    assert report.found.documents > 0
    assert report.skipped == {"broken JSON": 1}
    assert report.total.documents == len(DOCUMENTS)
    assert not (tmp_path / "p.work").exists()


def test_a_run_that_got_nowhere_leaves_nothing(tmp_path, recipes):
    reader = reader_of(tmp_path, DOCUMENTS)
    with Path(reader.paths[0]).open("a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=rf"input.jsonl:{len(DOCUMENTS) + 1}: broken JSON"):
        preprocess(DocumentReader(reader.paths), recipes["text"], str(tmp_path / "p"))
    assert list(tmp_path.glob("p.*")) == []


def test_no_documents_at_all(tmp_path, recipes):
    with pytest.raises(UserError, match=r"no documents in .*input\.jsonl, 2 x empty document; nothing was written"):
        preprocess(reader_of(tmp_path, ["", " "]), recipes["pixels"], str(tmp_path / "p"))
    assert files_of(str(tmp_path / "p")) == {}


def test_an_output_that_exists(tmp_path, recipes):
    prefix = str(tmp_path / "p")
    preprocess(reader_of(tmp_path, DOCUMENTS), recipes["text"], prefix)
    before = files_of(prefix)
    with pytest.raises(UserError, match=r"p\.manifest\.json exists"):
        preprocess(reader_of(tmp_path, DOCUMENTS[:3]), recipes["text"], prefix)
    with pytest.raises(UserError, match="no documents"):  # fails after it began: the old dataset stays
        preprocess(reader_of(tmp_path, [" "]), recipes["text"], prefix, overwrite=True)
    assert files_of(prefix) == before
    preprocess(reader_of(tmp_path, DOCUMENTS[:3]), recipes["pixels"], prefix, overwrite=True)
    assert Manifest.read(prefix).source["documents"] == 3
    assert not any("tokens" in name for name in files_of(prefix))


def test_a_full_disk(tmp_path, recipes):
    prefix = str(tmp_path / "p")
    reader = reader_of(tmp_path, DOCUMENTS)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # writes beyond it fail as on a full disk
    try:
        with pytest.raises(UserError, match=r"cannot write .*part-000000\.train\.tokens\.bin.*nothing was kept"):
            preprocess(reader, recipes["text"], prefix)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files_of(prefix) == {}


def test_a_page_of_color_comes_back(tmp_path, recipes):
    recipe = replace(recipes["pixels"], rendering=RenderingConfig(seq_length=32))
    text = "a rainbow 🏳️‍🌈 and حروف"
    preprocess(reader_of(tmp_path, [text]), replace(recipe, heldout_fraction=0.0), str(tmp_path / "p"))
    page = PageStore(str(tmp_path / "p")).page(0)
    assert page.has_color
    np.testing.assert_array_equal(page.columns, Renderer(RenderingConfig()).render(text, 32).columns)
