"""A run begins from a released checkpoint, and what it trains goes out again."""

import gc
import weakref
from pathlib import Path

import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.loader import load_config
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.importing import from_hf
from megatron_pixel.interop.open import open_any
from megatron_pixel.interop.source import open_released
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.run import Run
from tests.alone import alone
from tests.interop.helpers import SMALL

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def here() -> Mesh:
    with alone() as found:
        yield found


def config(folder: Path, checkpoint: Path, *words: str) -> RunConfig:
    shape = [f"--model.{name}={value}" for name, value in vars(SMALL).items()]
    recipe = ROOT / "megatron_pixel/config/recipes/dualgpt-debug.yaml"
    own = ["--pair.patches=16", "--pair.tokens=16", "--evaluation.rows=2", "--training.steps=2"]
    own += [f"--run.dir={folder}", f"--checkpoint.resume={checkpoint}"]
    return load_config(recipe, [*shape, *own, *words])


def test_a_run_goes_on_from_released_weights_and_is_exported(
    here: Mesh, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    checkpoint, _ = from_hf(open_released(exported), tmp_path / "imported")
    with Run(config(tmp_path / "run", checkpoint), here) as run:
        started = {name: value.detach().clone() for name, value in run._engine.module.named_parameters()}
        assert run.train() is None
        kept = [weakref.ref(part) for part in (run._engine.module, run._engine.optimizer)]
    del run
    gc.collect()
    assert [reference() for reference in kept] == [None, None], "a run that is closed leaves no model behind"
    source = open_any(checkpoint).source
    for name, value in started.items():
        assert torch.equal(value, source.read(name, "fp32")), name
    trained = open_any(tmp_path / "run")
    assert trained.step == 2
    moved = [name for name in started if not torch.equal(trained.source.read(name, "fp32"), started[name])]
    assert len(moved) == len(started)
    to_hf(trained, tmp_path / "out", ExportOptions())
    again = open_released(tmp_path / "out")
    assert all(torch.equal(again.read(name, "fp32"), trained.source.read(name, "fp32")) for name in started)


def test_another_model_is_refused(here: Mesh, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    checkpoint, _ = from_hf(open_released(exported), tmp_path / "imported")
    with pytest.raises(UserError, match=r"model.rope_theta: 1000.0 in the checkpoint, 20000.0 now"):
        Run(config(tmp_path / "run", checkpoint, "--model.rope_theta=20000"), here)
