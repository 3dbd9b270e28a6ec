"""Damage in the data shows at the start of a run, as far as ``guards.check_data`` asks for it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import DataConfig, GuardsConfig, ModelConfig, RenderingConfig, RunConfig
from megatron_pixel.data.documents import DocumentReader
from megatron_pixel.data.indexed import IndexedReader
from megatron_pixel.data.mixture import open_training
from megatron_pixel.data.packing_datasets import pack_dataset
from megatron_pixel.data.preprocess_documents import Recipe
from megatron_pixel.data.preprocessing import preprocess
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.start import check_data

ROWS = 16
"""Pages of the dataset: two ranks read eight each."""
DAMAGED = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checked")
    documents = folder / "documents.jsonl"
    documents.write_text("".join(json.dumps({"text": f"Story {i} is told."}) + "\n" for i in range(ROWS)))
    rendering = RenderingConfig(mode="gray", seq_length=32)
    preprocess(DocumentReader([str(documents)]), Recipe("pixels", 0.0, rendering=rendering), str(folder / "pages"))
    return folder


def check(folder: Path, how: Any, here: Mesh, rank: int = 0, ranks: int = 1, packing: Any = "none") -> None:
    model = ModelConfig(vocab_size=32, seq_length=32, patch_size=16, num_channels=1)
    data = DataConfig(pixels=[str(folder / "pages")], mixture="0:1:0", packing=packing)
    config = RunConfig(model=model, data=data, guards=GuardsConfig(check_data=how))
    config.training.global_batch_rows = config.training.micro_batch_rows = 4
    reader = open_training(config.data, config.model, config.pair, config.training, 1)
    assert (reader.num_rows(next(iter(reader.mixture.rows_per_step))) == ROWS) == (packing == "none")
    mesh: Any = SimpleNamespace(rank=rank, world_size=ranks)
    check_data(config, reader, mesh)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy in which a page is damaged."""
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    pages = tmp_path / "pages.train.pages.bin"
    content = bytearray(pages.read_bytes())
    content[int(IndexedReader(f"{tmp_path}/pages.train.pages").pointers[DAMAGED]) + 19] ^= 1
    pages.write_bytes(content)
    return tmp_path


def test_a_wrong_bit_in_a_packing_plan_is_named(whole: Path, tmp_path: Path, one_process: Mesh) -> None:
    for path in whole.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    pack_dataset(str(tmp_path / "pages"), 32)
    check(tmp_path, "hashes", one_process, packing="documents")
    plan = tmp_path / "pages.train.packed32.bin"
    content = bytearray(plan.read_bytes())
    content[0] ^= 1  # two pages in the places of each other, or one twice
    plan.write_bytes(content)
    check(tmp_path, "hashes", one_process)
    check(tmp_path, "rows", one_process, packing="documents")
    with pytest.raises(UserError, match=f"{plan}: the content differs from what was written"):
        check(tmp_path, "hashes", one_process, packing="documents")


@pytest.mark.parametrize("how", ["rows", "hashes", "none"])
def test_what_is_whole_passes(whole: Path, one_process: Mesh, how: str) -> None:
    check(whole, how, one_process)


def test_a_damaged_page_is_named_by_whoever_reads_it(folder: Path, one_process: Mesh) -> None:
    check(folder, "none", one_process)
    check(folder, "rows", one_process, rank=0, ranks=2)
    named = rf"row {DAMAGED} of pixel:pages: \S+pages.train.pages.bin: page {DAMAGED} is damaged"
    with pytest.raises(UserError, match=named):
        check(folder, "rows", one_process, rank=1, ranks=2)


def test_hashes_find_what_no_row_of_the_sample_shows(folder: Path, one_process: Mesh) -> None:
    check(folder, "rows", one_process)  # one rank reads every other page
    said = []
    for rank in range(3):
        try:
            check(folder, "hashes", one_process, rank, 3)
        except UserError as error:
            said.append(str(error))
    (message,) = said  # each file is read by one rank
    assert f"{folder}/pages.train.pages.bin" in message
    assert message.endswith(f"; python data_tools/verify.py {folder}/pages tells the rest")
