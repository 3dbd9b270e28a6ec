import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.manifest import Manifest, existing_files, manifest_digest, refuse_existing, remove_dataset
from megatron_pixel.data.verification import verify

MakeDataset = Callable[..., str]
KINDS = ["text", "pixels", "pairs"]


def edit(prefix: str, **changes: object) -> None:
    path = Path(prefix + ".manifest.json")
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content | {"digest": manifest_digest(content)}))


def flip(path: str, offset: int) -> None:
    content = bytearray(Path(path).read_bytes())
    content[offset] ^= 1
    Path(path).write_bytes(content)


@pytest.mark.parametrize("kind", KINDS)
def test_write_and_read(make_dataset: MakeDataset, kind: str) -> None:
    prefix = make_dataset(
        kind, heldout_fraction=0.25, source={"documents": 5}, command="preprocess", pair={"tokens": 5}
    )
    manifest = Manifest.read(prefix)
    assert manifest.kind == kind
    assert manifest.format_version == 2
    assert manifest.created_by.startswith("megatron_pixel ")
    assert (manifest.heldout_fraction, manifest.source, manifest.command) == (0.25, {"documents": 5}, "preprocess")
    train = manifest.splits["train"]
    assert (train.documents, train.sequences) == (5, 7)
    assert (train.tokens, train.patches) == (0 if kind == "pixels" else 24, 0 if kind == "text" else 24)
    files = {
        "text": {"train.tokens.bin", "train.tokens.idx"},
        "pixels": {"train.pages.bin", "train.pages.idx"},
        "pairs": {"train.tokens.bin", "train.tokens.idx", "train.pages.bin", "train.pages.idx"},
    }
    assert set(train.files) == files[kind]
    tables = set() if kind == "text" else {"codec.columns"}
    heldout = {name.replace("train", "heldout") for name in files[kind]}
    assert set(manifest.all_files()) == files[kind] | heldout | tables
    assert verify(prefix) == []


def test_the_same_dataset_twice_gives_the_same_bytes(make_dataset: MakeDataset) -> None:
    """Whatever order the sections were filled in."""
    first = make_dataset("pairs", "a", source={"bytes": 1, "files": []})
    second = make_dataset("pairs", "b", source={"files": [], "bytes": 1})
    assert Path(first + ".manifest.json").read_bytes() == Path(second + ".manifest.json").read_bytes()


def test_a_dataset_may_be_moved_and_renamed(make_dataset: MakeDataset, tmp_path: Path) -> None:
    prefix = make_dataset("pairs")
    (tmp_path / "elsewhere").mkdir()
    for path in existing_files(prefix):
        shutil.move(path, tmp_path / "elsewhere" / Path(path).name.replace("set", "new", 1))
    assert verify(str(tmp_path / "elsewhere" / "new")) == []


def test_manifests_that_cannot_be_read(make_dataset: MakeDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no dataset at .*none: .*none\.manifest\.json does not exist"):
        Manifest.read(str(tmp_path / "none"))
    prefix = make_dataset("text")
    edit(prefix, format_version=3, created_by="megatron_pixel 9.0")
    with pytest.raises(UserError, match=r"format 3 was written by a newer program \(megatron_pixel 9.0\)"):
        Manifest.read(prefix)
    edit(prefix, format_version=2, surprise=1)
    with pytest.raises(UserError, match=r"damaged: .*surprise"):
        Manifest.read(prefix)
    path = Path(prefix + ".manifest.json")
    for content, reason in [("{", "damaged"), ("[]", "no format_version"), ('{"format_version": 1}', "damaged")]:
        path.write_text(content)
        with pytest.raises(UserError, match=reason):
            Manifest.read(prefix)
    path.write_bytes(b"\xff")
    with pytest.raises(UserError, match="damaged"):
        Manifest.read(prefix)


def test_files_that_disagree_with_the_manifest(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pairs")
    for name in Manifest.read(prefix).all_files():
        path = Path(f"{prefix}.{name}")
        content = path.read_bytes()
        path.write_bytes(content + b"x")
        with pytest.raises(UserError, match=f"{name} has {len(content) + 1} bytes, its manifest says {len(content)}"):
            Manifest.read(prefix)
        path.unlink()
        with pytest.raises(UserError, match=f"{name} belongs to the dataset but cannot be opened"):
            Manifest.read(prefix)
        path.write_bytes(content)
    Manifest.read(prefix)


@pytest.mark.parametrize(("count", "content"), [("documents", "pages"), ("sequences", "pages"), ("tokens", "tokens")])
def test_counts_that_disagree_with_the_index(make_dataset: MakeDataset, count: str, content: str) -> None:
    prefix = make_dataset("pairs")
    splits = json.loads(Path(prefix + ".manifest.json").read_text())["splits"]
    splits["train"][count] += 1
    edit(prefix, splits=splits)
    with pytest.raises(UserError, match=rf"train\.{content}\.idx holds [\d,]+ {count}, its manifest says"):
        Manifest.read(prefix)


def test_verify_names_the_damaged_page(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pixels")
    flip(prefix + ".train.pages.bin", int(IndexedReader(prefix + ".train.pages").pointers[1]) + 20)
    problems = verify(prefix)
    assert problems[0] == f"{prefix}.train.pages.bin: the content differs from what was written (sha256)"
    assert len(problems) == 2
    assert f"{prefix}.train.pages.bin: page 1 is damaged: wrong checksum" in problems[1]
    assert verify(prefix, full=False) == []


def test_verify_counts_patches(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pixels")
    splits = json.loads(Path(prefix + ".manifest.json").read_text())["splits"]
    splits["train"]["patches"] += 1
    edit(prefix, splits=splits)
    assert verify(prefix) == [f"{prefix}.train.pages.bin holds 24 patches, its manifest says 25"]


def test_verify_reads_the_whole_index(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("text")
    flip(prefix + ".train.tokens.idx", 34 + 7 * 4 + 2 * 8)
    assert verify(prefix, full=False) == [
        f"{prefix}.train.tokens.idx: sequence 2 is not where the lengths before it put it"
    ]
    flip(prefix + ".train.tokens.idx", 34 + 7 * 4 + 2 * 8)
    for offset in (0, 9):  # the first bound, and the second byte of the second
        flip(prefix + ".train.tokens.idx", 34 + 7 * 12 + offset)
        assert verify(prefix, full=False) == [f"{prefix}.train.tokens.idx: the document bounds do not rise from 0"]
        flip(prefix + ".train.tokens.idx", 34 + 7 * 12 + offset)
    assert verify(prefix) == []


def test_verify_looks_for_tokens_outside_the_vocabulary(make_dataset: MakeDataset) -> None:
    assert verify(make_dataset("text", "a", tokenizer={"vocab_size": 604})) == []
    prefix = make_dataset("text", "b", tokenizer={"vocab_size": 603})
    assert verify(prefix) == [f"{prefix}.train.tokens.bin: token 23 is 603, the vocabulary has 603 entries"]


def test_verify_with_a_damaged_table(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pixels")
    flip(prefix + ".codec.columns", 40)
    problems = verify(prefix)
    assert f"{prefix}.codec.columns: the content differs from what was written (sha256)" in problems
    assert any("codec.columns is damaged" in problem for problem in problems)


def test_existing_output_is_refused(make_dataset: MakeDataset, tmp_path: Path) -> None:
    prefix = make_dataset("pairs")
    neighbor = make_dataset("pairs", "set.train2")
    (tmp_path / "set.notes.txt").write_text("mine")
    refuse_existing(str(tmp_path / "free"))
    refuse_existing(str(tmp_path / "no folder yet" / "free"))
    with pytest.raises(UserError, match=r"set\.manifest\.json exists: a dataset is at this prefix"):
        refuse_existing(prefix)
    Path(prefix + ".manifest.json").unlink()
    with pytest.raises(UserError, match=r"set\.codec\.columns exists: part of an unfinished dataset"):
        refuse_existing(prefix)
    refuse_existing(prefix, overwrite=True)
    assert existing_files(prefix) == []
    assert (tmp_path / "set.notes.txt").exists()
    assert verify(neighbor) == []
    with pytest.raises(UserError, match="names a folder"):
        refuse_existing(str(tmp_path) + "/")


def test_a_removal_cut_short_leaves_nothing_that_opens(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pairs")
    assert existing_files(prefix)[0] == prefix + ".manifest.json"
    remove_dataset(prefix)
    assert existing_files(prefix) == []


def test_a_manifest_of_version_1_opens(make_dataset: MakeDataset) -> None:
    """It had one codec for all pages."""
    prefix = make_dataset("pairs")
    path = Path(prefix + ".manifest.json")
    content = json.loads(path.read_text())
    (codec,) = content.pop("codecs")
    del codec["sequences"], content["digest"]
    path.write_text(json.dumps(content | {"codec": codec, "format_version": 1}))
    manifest = Manifest.read(prefix)
    assert [(entry.name, entry.sequences) for entry in manifest.codecs] == [("columns", {"train": 7, "heldout": 0})]
    assert verify(prefix) == []
    prefix = make_dataset("text", "text")
    path = Path(prefix + ".manifest.json")
    content = json.loads(path.read_text())
    assert content.pop("codecs") == []
    del content["digest"]
    path.write_text(json.dumps(content | {"codec": None, "format_version": 1}))
    assert Manifest.read(prefix).codecs == []
    assert verify(prefix) == []


def test_codecs_that_do_not_cover_the_pages(make_dataset: MakeDataset) -> None:
    prefix = make_dataset("pixels")
    (codec,) = json.loads(Path(prefix + ".manifest.json").read_text())["codecs"]
    for codecs, message in [
        ([codec | {"sequences": {"train": 6}}], "codecs for 6 of 7 pages of train"),
        ([], "codecs for 0 of 7 pages of train"),
        ([codec | {"files": {}}], "a codec has one file"),
        ([codec | {"files": codec["files"] | {"codec.b": {"bytes": 1, "sha256": ""}}}], "a codec has one file"),
    ]:
        edit(prefix, codecs=codecs)
        with pytest.raises(UserError, match=message):
            Manifest.read(prefix)


def test_the_codec_of_another_dataset(make_dataset: MakeDataset) -> None:
    """A sound file of the right size with other columns in it."""
    prefix = make_dataset("pixels")
    path = Path(prefix + ".codec.columns")
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    content[24:28] = zlib.crc32(content[28:]).to_bytes(4, "little")
    path.write_bytes(content)
    (first, *others) = verify(prefix)
    assert first == f"{path}: the content differs from what was written (sha256)"
    assert others == [
        f"{path} is not the file that this dataset was made with (sha256); copy it from where the dataset is sound, or "
        f"make the dataset again"
    ]
