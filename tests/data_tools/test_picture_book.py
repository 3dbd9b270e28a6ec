import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from megatron_pixel.config.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
XNLI = "English Arabic Bulgarian German Greek French Hindi Russian Spanish Swahili Thai Turkish Urdu Vietnamese Chinese"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("picture_book", ROOT / "data_tools" / "picture_book.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_book_has_the_languages_of_xnli(tool: ModuleType):
    shown = {sample.caption for picture in tool.BOOK.values() for sample in picture.samples}
    assert {*XNLI.split(), "Japanese", "Korean"} <= shown


def test_draws_what_is_asked_for(tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tool.main(["--output", str(tmp_path), "--only", "pair", "--rendering.mode", "gray"])
    assert [path.name for path in tmp_path.iterdir()] == ["pair.png"]
    assert "pair.png" in capsys.readouterr().out
    pixels = np.asarray(Image.open(tmp_path / "pair.png").convert("RGB"))
    # Two pairs and one of a single text: six black patches of 32 x 32 pixels at least.
    assert (pixels == 0).all(axis=2).sum() > 6 * 32 * 32


def test_unknown_names_are_refused(tool: ModuleType, tmp_path: Path):
    with pytest.raises(UserError, match=r"no picture is called nothing; the book has latin,"):
        tool.main(["--output", str(tmp_path), "--only", "nothing"])
    with pytest.raises(UserError, match="patch_siz"):
        tool.main(["--output", str(tmp_path), "--rendering.patch_siz", "16"])
    assert list(tmp_path.iterdir()) == []


def test_documentation_shows_the_whole_book(tool: ModuleType):
    drawn = {f"{name}.png" for name in tool.BOOK}
    shown = re.findall(r"\(pictures/(.*?)\)", (ROOT / "docs" / "rendering.md").read_text(encoding="utf-8"))
    assert sorted({*shown} - {"clipping.png"}) == sorted(drawn)  # which benchmarks/clipping.py draws
    assert all((PICTURES / name).stat().st_size < 80_000 for name in drawn)
