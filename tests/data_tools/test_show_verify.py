"""show.py and verify.py on datasets that preprocess.py wrote."""

import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from megatron_pixel.data.stores import TokenStore
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.drawing import GROUND
from megatron_pixel.rendering.fonts import find_fonts


@pytest.fixture
def datasets(tool, corpus, model, font, tmp_path_factory) -> Path:
    folder = tmp_path_factory.getbasetemp() / "shown"
    if not folder.exists():
        rendering = ["--rendering.fonts", font, "--rendering.seq_length", 32]
        for kind, words in (
            ("text", ["--tokenizer", model]),
            ("pixels", rendering),
            ("pairs", ["--tokenizer", model, *rendering, "--pair.patches", 32, "--pair.tokens", 64]),
        ):
            words = ["--heldout-fraction", 0.2, *words]
            assert tool("preprocess", kind, "--input", corpus, "--output-prefix", folder / kind, *words).status == 0
        for kind, length in (("pixels", 48), ("pairs", 96)):
            assert tool("pack", folder / kind, "--seq-length", length).status == 0
    return folder


def ink(path: Path) -> int:
    """Pixels of a picture that are dark."""
    return int((np.asarray(Image.open(path).convert("L")) < 100).sum())


def test_a_page(tool, datasets, tmp_path):
    picture = tmp_path / "new" / "page.png"
    result = tool("show", datasets / "pixels", "--index", 3, "--output", picture)
    assert result.status == 0, result.err
    assert "pixels dataset" in result.out
    assert "train 3" in result.out
    assert ink(picture) > 16 * 16
    assert np.asarray(Image.open(picture).convert("RGB"))[0, 0].tolist() == list(GROUND)


def test_a_pair_and_its_text(tool, datasets, model, font, tmp_path):
    words = [datasets / "pairs", "--index", 2, "--split", "heldout", "--rendering.fonts", font]
    result = tool("show", *words, "--output", tmp_path / "page.png")
    assert result.status == 0, result.err
    assert "--tokenizer decodes them" in result.out
    result = tool("show", *words, "--output", tmp_path / "pair.png", "--tokenizer", model)
    assert result.status == 0, result.err
    assert "⟨s⟩" in result.out
    assert ink(tmp_path / "pair.png") > 1.5 * ink(tmp_path / "page.png")  # the same text twice


def test_a_row_of_tokens(tool, datasets, model, font, tmp_path):
    words = [datasets / "text", "--tokenizer", model, "--rendering.fonts", font]
    result = tool("show", *words, "--index", 1, "--row-length", 50, "--output", tmp_path / "row.png")
    assert result.status == 0, result.err
    row = TokenStore(str(datasets / "text")).read(50, 100)
    text = result.out.split("50 tokens: ")[1]
    assert text.startswith(Tokenizer(model).decode(row[:3]))
    assert ink(tmp_path / "row.png") > 256


def test_a_text(tool, font, tmp_path, monkeypatch):
    words = ["--output", tmp_path / "a.png", "--rendering.fonts", font, "--rendering.seq_length", 16]
    result = tool("show", "--text", "some words of text " * 5, *words)
    assert result.status == 0, result.err
    assert "page 1 of 3" in result.out
    monkeypatch.setattr("sys.stdin", io.StringIO("some words of text " * 5))
    result = tool("show", "--text", "-", *words[:1], tmp_path / "b.png", *words[2:])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_contact_sheet(tool, datasets, model, font, tmp_path):
    def sheet(name: str, *words: object) -> tuple[str, np.ndarray]:
        result = tool("show", datasets / name, "--output", tmp_path / "sheet.png", *words, "--rendering.fonts", font)
        assert result.status == 0, result.err
        return result.out, np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)

    out, first = sheet("pixels", "--sheet", 6)
    assert "chosen at random (seed 0)" in out
    assert np.array_equal(sheet("pixels", "--sheet", 6)[1], first)
    assert not np.array_equal(sheet("pixels", "--sheet", 6, "--seed", 1)[1], first)
    assert sheet("pixels", "--sheet", 6, "--columns", 2)[1].shape[1] < first.shape[1]
    out, _ = sheet("pixels", "--sheet", 3, "--first", 1, "--split", "heldout", "--scale", 2)
    assert "from 1 on" in out
    _, pairs = sheet("pairs", "--sheet", 2)
    _, read = sheet("pairs", "--sheet", 2, "--tokenizer", model)
    blue = [(picture[..., 2] - picture[..., 0] > 60).sum() for picture in (pairs, read)]
    assert blue[0] == 0 < blue[1]  # the text of the tokens
    sheet("text", "--sheet", 2, "--tokenizer", model, "--row-length", 20)


def test_wrong_requests(tool, datasets, model, corpus, font, tmp_path):
    def refused(*words: object) -> str:
        result = tool("show", *words)
        assert result.status == 2
        return result.err

    assert "--index 100000: the train split has" in refused(datasets / "pixels", "--index", 100000)
    assert "--index -1" in refused(datasets / "pairs", "--index", -1)
    assert "no dataset at" in refused(tmp_path / "nothing")
    assert "nothing to draw" in refused(datasets / "text", "--output", tmp_path / "x.png")
    assert "nothing to draw" in refused(datasets / "text", "--sheet", 2, "--output", tmp_path / "x.png")
    assert "--first 999999: the train split has" in refused(datasets / "pixels", "--sheet", 2, "--first", 999999)
    assert "--first belongs to --sheet" in refused(datasets / "pixels", "--first", 2)
    assert "120 million" in refused(datasets / "pixels", "--sheet", 2, "--scale", 5000, "--output", tmp_path / "x.png")
    assert "either the prefix of a dataset or --text" in refused("--output", tmp_path / "x.png")
    other = tmp_path / "other.model"
    assert tool("tokenizer", "train", "--input", corpus, "--output", other, "--vocab-size", 285).status == 0
    assert "is not the tokenizer of this dataset" in refused(datasets / "text", "--tokenizer", other)
    (tmp_path / "file").write_text("")
    words = ["--text", "a", "--rendering.fonts", font]
    assert "cannot write" in refused(*words, "--output", tmp_path / "file" / "x.png")


@pytest.mark.parametrize("kind", ["text", "pixels", "pairs"])
def test_a_sound_dataset(tool, datasets, kind):
    result = tool("verify", datasets / kind)
    assert result.status == 0
    assert "DAMAGED" not in result.out
    lines = [line for line in result.out.splitlines() if line.endswith("sound")]
    files = [path for path in datasets.iterdir() if path.name.startswith(f"{kind}.")]
    assert len(lines) == len(files)
    assert " MB/s" in result.out
    assert tool("verify", "--quick", datasets / kind).status == 0


def damaged(datasets: Path, folder: Path, name: str, change) -> Path:
    for path in datasets.iterdir():
        shutil.copy(path, folder)
    path = folder / name
    path.write_bytes(change(path.read_bytes()))
    return path


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_one_wrong_bit_in_any_file_is_found_and_the_file_named(tool, datasets, tmp_path):
    kinds = ("text", "pixels", "pairs")
    for path in datasets.iterdir():
        shutil.copy(path, tmp_path)
    for path in sorted(tmp_path.iterdir()):
        before = path.read_bytes()
        if not before:
            continue
        path.write_bytes(flip(before))
        result = tool("verify", *(tmp_path / kind for kind in kinds))
        assert result.status == 1, path.name
        damages = [line for line in result.out.splitlines() if "DAMAGED" in line]
        assert any(path.name in line for line in damages)
        kind = path.name.split(".")[0]
        assert not any(f"{tmp_path / other}" in line for other in kinds if other != kind for line in damages)
        if path.name.endswith("pages.bin"):
            assert any("page " in line and str(path) in line for line in damages)
        path.write_bytes(before)


def test_a_plan_of_other_pages_is_of_no_use_but_no_damage(tool, datasets, tmp_path):
    for path in datasets.glob("pixels.*"):
        shutil.copy(path, tmp_path)
    for ending in ("bin", "idx", "json"):
        shutil.copy(datasets / f"pairs.train.packed96.{ending}", tmp_path / f"pixels.train.packed48.{ending}")
    plan = tmp_path / "pixels.train.packed96.json"
    plan.write_text(json.dumps({"version": 1}))
    result = tool("verify", tmp_path / "pixels")
    assert result.status == 0
    outdated = [line for line in result.out.splitlines() if "OUTDATED" in line]
    again = f"python data_tools/pack.py {tmp_path / 'pixels'} --seq-length"
    assert len(outdated) == 2
    assert "packed48.json was made for other content than the dataset has (" in outdated[0]
    assert outdated[0].endswith(f"{again} 48 makes it again")
    assert outdated[1] == f"  OUTDATED {plan} is of version 1, and this program reads 2: {again} 96 makes it again"
    plan.unlink()
    (tmp_path / "pixels.train.packed48.bin").unlink()
    assert "OUTDATED" in tool("verify", tmp_path / "pixels").out


def test_processes_find_the_same(tool, datasets, tmp_path):
    damaged(datasets, tmp_path, "pixels.train.pages.bin", flip)
    alone, shared = (tool("verify", tmp_path / "pixels", "--workers", count) for count in (1, 2))
    without_rate = [[line for line in result.out.splitlines() if " MB/s" not in line] for result in (alone, shared)]
    assert without_rate[0] == without_rate[1]
    assert shared.status == 1


@pytest.mark.parametrize("name", ["pixels.train.pages.bin", "text.train.tokens.idx"])
def test_a_short_file_and_a_missing_one(tool, datasets, tmp_path, name):
    path = damaged(datasets, tmp_path, name, lambda data: data[:-5])
    kind = name.split(".")[0]
    result = tool("verify", tmp_path / kind)
    assert result.status == 1
    assert f"{path} has" in result.out
    assert "5 bytes too few" in result.out
    assert result.out.count("sound") > 2  # the other files were examined all the same
    if name.endswith("pages.bin"):
        assert re.search(r"page \d+ is cut off, and all after it are missing: 1 of \d+", result.out)
    path.unlink()
    result = tool("verify", tmp_path / kind)
    assert result.status == 1
    assert str(path) in result.out


def test_no_dataset(tool, tmp_path):
    result = tool("verify", tmp_path / "nothing")
    assert result.status == 2
    assert "no dataset at" in result.err


def test_fonts_of_this_machine(tool, datasets, font):
    result = tool("verify", datasets / "pixels", "--fonts", font)
    assert result.status == 0, result.out
    other = str(find_fonts([], "default")[1].path)
    result = tool("verify", datasets / "pixels", "--fonts", other)
    assert result.status == 1
    assert f"DIFFERS  font {Path(font).name}" in result.out
    assert "not among the fonts here" in result.out
    assert "not what would be rendered here" in result.out


def test_pages_against_their_text(tool, datasets, corpus, font, tmp_path):
    words = ["--input", corpus, "--heldout-fraction", 0.2, "--rendering.fonts", font, "--rendering.seq_length", 32]
    assert tool("preprocess", "strings", "--output-prefix", tmp_path / "strings", *words).status == 0
    words = ["--against", tmp_path / "strings", "--fonts", font]
    result = tool("verify", datasets / "pixels", *words)
    assert result.status == 0, result.out + result.err
    count = sum(
        split["sequences"] for split in json.loads((datasets / "pixels.manifest.json").read_text())["splits"].values()
    )
    assert f"{count} pages rendered again" in result.out
    assert "5 pages rendered again" in tool("verify", datasets / "pixels", *words, "--sample", 5).out
    # Other text on the first page: same number of pages, other pixels.
    path = tmp_path / "strings.train.strings.bin"
    path.write_bytes(path.read_bytes().replace(b"years", b"yaers", 1))
    result = tool("verify", datasets / "pixels", *words)
    assert result.status == 1
    assert re.search(r"DIFFERS  .*pixels\.train\.pages\.bin: page \d+ differs in \d patches", result.out)
    result = tool("verify", datasets / "pairs", *words)
    assert result.status == 2
    assert "compares a pixel dataset with a strings dataset" in result.err
