"""Plans of datasets, made on the command line."""

from pathlib import Path

import pytest

from tests.data_tools.conftest import RunTool


@pytest.fixture
def pairs(tool: RunTool, corpus: Path, model: Path, font: str, tmp_path: Path) -> str:
    prefix = str(tmp_path / "pairs")
    words = ["--input", corpus, "--output-prefix", prefix, "--tokenizer", model, "--rendering.fonts", font]
    assert tool("preprocess", "pairs", *words, "--heldout-fraction", "0").status == 0
    return prefix


@pytest.mark.processes
def test_a_plan_is_the_same_for_any_number_of_processes(tool: RunTool, pairs: str) -> None:
    done = tool("pack", pairs)
    assert done.status == 0
    assert f"{pairs}: 40 pages in " in done.out
    assert " rows of 1,024, " in done.out
    files = [Path(f"{pairs}.train.packed1024.{ending}") for ending in ("bin", "idx", "json")]
    before = [path.read_bytes() for path in files]
    assert tool("pack", pairs, "--workers", 2).status == 0
    assert [path.read_bytes() for path in files] == before


def test_what_cannot_be_packed(tool: RunTool, pairs: str, tmp_path: Path) -> None:
    done = tool("pack", pairs, "--seq-length", 20)
    assert done.status == 2
    assert "positions: more than --seq-length 20" in done.err
    assert not list(tmp_path.glob("*packed20*")), "nothing is half written"
    assert "no dataset at" in tool("pack", str(tmp_path / "nothing")).err
