"""Plans of datasets, made on the command line."""

import shutil
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import DataConfig, ModelConfig, PairConfig
from megatron_pixel.data import packing_datasets
from megatron_pixel.data.manifest import Manifest
from megatron_pixel.data.packing import read_facts
from megatron_pixel.data.rows import Kind
from megatron_pixel.data.sources import open_sources
from tests.data_tools.conftest import RunTool


@pytest.fixture
def pairs(
    tool: RunTool,
    corpus: Path,
    model: Path,
    font: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A dataset of its own for each test, made once."""
    made = tmp_path_factory.getbasetemp() / "to_be_packed"
    if not made.exists():
        words = ["--input", corpus, "--output-prefix", made / "pairs", "--tokenizer", model, "--rendering.fonts", font]
        assert tool("preprocess", "pairs", *words, "--heldout-fraction", "0").status == 0
    return copied(made / "pairs", tmp_path / "pairs")


def copied(prefix: Path, other: Path) -> str:
    for path in prefix.parent.glob(f"{prefix.name}.*"):
        shutil.copy(path, f"{other}{path.name.removeprefix(prefix.name)}")
    return str(other)


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
    tasks = [(number, number) for number in range(50)]
    assert list(packing_datasets._in_processes(sum, tasks, 2)) == list(range(0, 100, 2)), "in their order"  # type: ignore[arg-type]


def test_a_dataset_that_was_joined_with_another_is_packed_again(tool: RunTool, pairs: str, tmp_path: Path) -> None:
    more, both = copied(Path(pairs), tmp_path / "more"), str(tmp_path / "both")
    assert tool("pack", pairs).status == 0
    assert tool("merge", pairs, more, "--output-prefix", both).status == 0
    for ending in ("bin", "idx", "json"):
        Path(f"{pairs}.train.packed1024.{ending}").rename(f"{both}.train.packed1024.{ending}")
    model = ModelConfig(vocab_size=300)
    data = DataConfig(pairs=[both], mixture="0:0:1", packing="documents")
    with pytest.raises(UserError) as error:
        open_sources([Kind.PAIR], "train", data, model, PairConfig())
    assert str(error.value) == (
        f"{both}.train.packed1024.json was made for other content than the dataset has (40 pages then, 80 now): "
        f"python data_tools/pack.py {both} --seq-length 1024 makes it again"
    )
    assert f"{both}: 80 pages in " in tool("pack", both).out
    [(_, source)] = open_sources([Kind.PAIR], "train", data, model, PairConfig())[Kind.PAIR]
    assert source.note.startswith("pair:both: 80 packed into ")


def test_long_documents_are_packed_in_pages_and_strings_as_they_are_drawn(
    tool: RunTool, corpus: Path, font: str, tmp_path: Path
) -> None:
    """Some documents take several pages of 24 patches; the plan of their strings is that of their pages."""
    for kind in ("pixels", "strings"):
        words = ["--rendering.fonts", font, "--rendering.seq_length", 24, "--heldout-fraction", 0]
        assert tool("preprocess", kind, "--input", corpus, "--output-prefix", tmp_path / kind, *words).status == 0
        assert tool("pack", tmp_path / kind, "--seq-length", 40).status == 0
    plans = [[tmp_path / f"{kind}.train.packed40.{end}" for end in ("bin", "idx")] for kind in ("pixels", "strings")]
    assert [path.read_bytes() for path in plans[0]] == [path.read_bytes() for path in plans[1]]
    facts = read_facts(str(tmp_path / "strings.train.packed40"))
    split = Manifest.read(str(tmp_path / "strings")).splits["train"]
    assert (facts.pages, facts.positions) == (split.sequences, split.patches)
    assert split.sequences > 40, "some documents are long"
    assert "rows" in tool("pack", tmp_path / "strings", "--seq-length", 40, "--data.rendering.font_size", 6).out
    assert read_facts(str(tmp_path / "strings.train.packed40")).positions < facts.positions
    assert "did you mean --data.rendering.dpi" in tool("pack", tmp_path / "strings", "--data.rendering.dpy", 9).err


def test_what_cannot_be_packed(tool: RunTool, pairs: str, tmp_path: Path) -> None:
    done = tool("pack", pairs, "--seq-length", 20)
    assert done.status == 2
    assert "positions: more than --seq-length 20" in done.err
    assert not list(tmp_path.glob("*packed20*")), "nothing is half written"
    assert "no dataset at" in tool("pack", str(tmp_path / "nothing")).err
