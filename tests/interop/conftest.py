"""One small checkpoint in our form and its export, for the tests of this folder and of generation."""

from pathlib import Path

import pytest

from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.open import open_any
from tests.interop.helpers import SMALL, full_tensors, make_tokenizer, write_canonical


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of as many entries as the small model has."""
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    """Folder of a run with one checkpoint in canonical form."""
    folder = tmp_path_factory.mktemp("run")
    write_canonical(folder, SMALL, full_tensors(SMALL), tokenizer)
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """The same in the released layout, in several files."""
    out = tmp_path_factory.mktemp("exported") / "small"
    to_hf(open_any(run), out, ExportOptions(shard_bytes=40_000))
    return out
