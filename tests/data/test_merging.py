import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.manifest import CONTENTS, Manifest, content_prefix
from megatron_pixel.data.merging import Merge
from megatron_pixel.data.stores import PageStore, PairStore
from megatron_pixel.data.verification import verify

MakeDataset = Callable[..., str]
KINDS = ["text", "pixels", "pairs", "strings"]
FONTS = [{"name": "Noto.ttf", "index": 0, "height": 1.0, "sha256": "ab" * 32}]


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_is_the_parts_one_after_the_other(make_dataset: MakeDataset, tmp_path: Path, kind: str) -> None:
    parts = [make_dataset(kind, name, source={"files": [name], "bytes": 5, "skipped": {name: 1}}) for name in "abc"]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    output = str(tmp_path / "all")
    copied: list[int] = []
    merge = Merge(parts, output, command="merge a b c")
    manifest = merge.run(copied.append)
    assert sum(copied) == merge.total_bytes > 0
    assert {path: path.read_bytes() for path in before} == before
    assert verify(output) == []

    train = Manifest.read(output).splits["train"]
    ones = [Manifest.read(part).splits["train"] for part in parts]
    for name in ("documents", "sequences", "tokens", "patches", "token_targets", "patch_targets"):
        assert getattr(train, name) == sum(getattr(one, name) for one in ones)
    assert manifest.source == {"files": ["a", "b", "c"], "bytes": 15, "skipped": {"a": 1, "b": 1, "c": 1}}
    assert (manifest.kind, manifest.command) == (kind, "merge a b c")
    for split in ("train", "heldout"):
        for content in CONTENTS[kind]:
            joined = IndexedReader(content_prefix(output, split, content))
            readers = [IndexedReader(content_prefix(part, split, content)) for part in parts]
            sequences = [reader[i].tolist() for reader in readers for i in range(len(reader))]
            assert [joined[i].tolist() for i in range(len(joined))] == sequences
            lengths = [np.diff(reader.document_bounds) for reader in readers]
            assert np.diff(joined.document_bounds).tolist() == np.concatenate(lengths).tolist()


def test_every_page_is_read_with_the_codec_that_wrote_it(make_dataset: MakeDataset, tmp_path: Path) -> None:
    """Parts that share a codec, parts that do not, and parts that are joined themselves."""
    samples = {"a": 1, "b": 1, "c": 3, "d": 1}
    parts = [make_dataset("pairs", name, sample) for name, sample in samples.items()]
    Merge(parts, str(tmp_path / "all")).run()
    Merge([parts[2], str(tmp_path / "all")], str(tmp_path / "more")).run()
    codecs = Manifest.read(str(tmp_path / "all")).codecs
    assert [(*codec.files, codec.sequences["train"]) for codec in codecs] == [
        ("codec.columns", 14),
        ("codec.2.columns", 7),
        ("codec.columns", 7),
    ]
    codecs = Manifest.read(str(tmp_path / "more")).codecs
    assert [(*codec.files, codec.sequences["train"]) for codec in codecs] == [
        ("codec.columns", 7),
        ("codec.2.columns", 14),
        ("codec.columns", 7),
        ("codec.2.columns", 7),
    ]
    for name, count in (("all", 4), ("more", 5)):
        assert verify(str(tmp_path / name)) == []
        store, one = PairStore(str(tmp_path / name)), PairStore(parts[0])
        assert len(store) == 7 * count
        for index in (0, 6, 7, 13, 14, 20, 21, 27):
            page, tokens = store.pair(index)
            assert np.array_equal(page.columns, one.page(index % 7).columns)
            assert tokens.tolist() == one.tokens[index % 7].tolist()
            assert np.array_equal(store.patches(index, 3), one.patches(index % 7, 3))
    (tmp_path / "all.codec.2.columns").unlink()
    with pytest.raises(UserError, match=r"all\.codec\.2\.columns belongs to the dataset but cannot be opened"):
        PairStore(str(tmp_path / "all"))


def test_parts_of_format_version_1(make_dataset: MakeDataset, tmp_path: Path) -> None:
    parts = [make_dataset("pixels", name, sample) for name, sample in (("a", 1), ("b", 2))]
    for part in parts:
        path = Path(part + ".manifest.json")
        content = json.loads(path.read_text())
        (codec,) = content.pop("codecs")
        del codec["sequences"]
        path.write_text(json.dumps(content | {"codec": codec, "format_version": 1}))
    Merge(parts, str(tmp_path / "all")).run()
    assert verify(str(tmp_path / "all")) == []
    assert np.array_equal(PageStore(str(tmp_path / "all")).patches(9, 3), PageStore(parts[1]).patches(2, 3))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"heldout_fraction": 0.25}, {"heldout_fraction": 0.5}, "its heldout_fraction is 0.5, the other's is 0.25"),
        ({"pair": {"tokens": 5}}, {"pair": {"tokens": 6}}, "its pair.tokens is 6, the other's is 5"),
        ({"tokenizer": {"sha256": "a"}}, {"tokenizer": {"sha256": "b"}}, "its tokenizer.sha256 is b, the other's is a"),
        ({"tokenizer": {"sha256": "a"}}, {}, "its tokenizer is none, the other's is {'sha256': 'a'}"),
        ({"rendering": {"dpi": 120}}, {"rendering": {"dpi": 90}}, "its rendering.dpi is 90, the other's is 120"),
        (
            {"rendering": {"fonts": FONTS}},
            {"rendering": {"fonts": [FONTS[0] | {"sha256": "cd" * 32}]}},
            r"its rendering.fonts\[0\] is Noto.ttf \(sha256 cdcdcdcdcdcd...\), the other's is Noto.ttf \(sha256 abab",
        ),
        ({"rendering": {"fonts": FONTS}}, {"rendering": {"fonts": FONTS * 2}}, r"its rendering.fonts\[1\] is Noto.ttf"),
    ],
)
def test_other_settings_are_refused(
    make_dataset: MakeDataset, tmp_path: Path, first: dict[str, object], second: dict[str, object], message: str
) -> None:
    parts = [make_dataset("pairs", "a", **first), make_dataset("pairs", "b", **second)]
    with pytest.raises(UserError, match=rf"{tmp_path}/b cannot be joined to {tmp_path}/a: {message}"):
        Merge(parts, str(tmp_path / "all"))


def test_other_kinds_are_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    parts = [make_dataset(kind, kind) for kind in ("pixels", "strings")]
    with pytest.raises(UserError, match="its kind is strings, the other's is pixels"):
        Merge(parts, str(tmp_path / "all"))


def test_the_same_tokenizer_under_another_name(make_dataset: MakeDataset, tmp_path: Path) -> None:
    sections = [{"sha256": "a", "vocab_size": 1000, "file": file} for file in ("one.model", "two.model")]
    parts = [make_dataset("text", name, tokenizer=section) for name, section in zip("ab", sections, strict=True)]
    Merge(parts, str(tmp_path / "all")).run()
    assert verify(str(tmp_path / "all")) == []


def test_damage_does_not_spread(make_dataset: MakeDataset, tmp_path: Path) -> None:
    for name in ("b.train.pages.bin", "b.codec.columns"):
        parts = [make_dataset("pixels", "a"), make_dataset("pixels", "b", 2)]
        path = tmp_path / name
        content = bytearray(path.read_bytes())
        content[-5] ^= 1
        path.write_bytes(content)
        before = sorted(os.listdir(tmp_path))
        merge = Merge(parts, str(tmp_path / "all"))
        with pytest.raises(UserError, match=f"{name} is damaged: its content differs"):
            merge.run()
        assert sorted(os.listdir(tmp_path)) == before


def test_stopped_on_the_way(make_dataset: MakeDataset, tmp_path: Path) -> None:
    parts = [make_dataset("pairs", name) for name in "ab"]
    make_dataset("pairs", "all", heldout_fraction=0.5)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    copied: list[int] = []

    def stop(count: int) -> None:
        copied.append(count)
        if len(copied) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Merge(parts, str(tmp_path / "all"), overwrite=True).run(stop)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_names(make_dataset: MakeDataset, tmp_path: Path) -> None:
    parts = [make_dataset("text", name) for name in "ab"]
    output = make_dataset("text", "all")
    with pytest.raises(UserError, match=r"all\.manifest\.json exists"):
        Merge(parts, output)
    with pytest.raises(UserError, match="a is named twice"):
        Merge([*parts, str(tmp_path / "x" / ".." / "a")], str(tmp_path / "new"))
    with pytest.raises(UserError, match="b is a part and the output"):
        Merge(parts, parts[1], overwrite=True)
    with pytest.raises(UserError, match="no dataset at"):
        Merge([parts[0], str(tmp_path / "none")], str(tmp_path / "new"))
    Merge(parts, output, overwrite=True).run()
    assert Manifest.read(output).splits["train"].sequences == 14
    assert verify(output) == []
    for path in tmp_path.glob("all.*"):
        shutil.move(path, tmp_path / path.name.replace("all", "moved"))
    assert verify(str(tmp_path / "moved")) == []
