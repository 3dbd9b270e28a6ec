"""The data tools, run inside the test process where a new one is not the point."""

import importlib.util
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from megatron_pixel.config.errors import exit_on_user_error

ROOT = Path(__file__).resolve().parents[2]
WORDS = "four score and seven years ago our fathers brought forth on this continent a new nation".split()


class Outcome(NamedTuple):
    """How a program ended."""

    status: int
    out: str
    err: str


RunTool = Callable[..., Outcome]


def _load(name: str) -> ModuleType:
    # tokenizer.py and the others are programs in a folder, not modules of a package.
    spec = importlib.util.spec_from_file_location(f"data_tools_{name}", ROOT / "data_tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tool(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunTool:
    """Runs ``data_tools/NAME.py`` with words; returns status and output."""

    def run(name: str, *words: object) -> Outcome:
        monkeypatch.setattr(sys, "path", list(sys.path))
        status = 0
        try:
            with exit_on_user_error():
                status = _load(name).main([str(word) for word in words]) or 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Outcome(status, out, err)

    return run


def text(count: int, seed: int) -> str:
    """So many words."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 documents as JSON lines."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text(10 + number, number)}) + "\n" for number in range(40)))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of 300 pieces."""
    from megatron_pixel.data.tokenizer import train_tokenizer

    path = tmp_path_factory.mktemp("model") / "tokenizer.model"
    train_tokenizer([text(30, number) for number in range(100)], path, vocab_size=300, max_sentences=1000)
    return path


@pytest.fixture(scope="session")
def font() -> str:
    """One font file: a renderer with it is built sooner than with the whole chain."""
    from megatron_pixel.rendering.fonts import find_fonts

    return str(find_fonts([], "default")[0].path)
