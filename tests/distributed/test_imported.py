"""A released checkpoint begins a run in any layout, and what each layout trains goes out alike."""

import os
from pathlib import Path

import pytest
import torch

from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.importing import from_hf
from megatron_pixel.interop.open import open_any
from megatron_pixel.interop.source import open_released
from megatron_pixel.parallel.mesh import mesh
from megatron_pixel.parallel.quiet import silence_libraries
from tests.distributed.harness import FOREIGN, STORES, run_ranks, use_store
from tests.distributed.tiny_run import tiny, train
from tests.interop.helpers import full_tensors, write_canonical

LAYOUTS = {
    "tp2": ("--parallel.tensor=2",),
    "zero3": ("--deepspeed_config=ds_configs/zero3.json",),
}
WORDS = """
    --model.layers=2 --training.steps=1 --optimizer.warmup_steps=1 --training.micro_batch_rows=2 --evaluation.rows=0
    --optimizer.eps=1e-4
""".split()


def work(root: str, checkpoint: str, layouts: dict[str, tuple[str, ...]]) -> dict[str, list[float | None]]:
    """The loss of the first step in each layout."""
    silence_libraries()
    losses = {}
    for number, (name, words) in enumerate(layouts.items()):
        if STORES in os.environ:  # not where the test itself is the one process
            use_store(number)
        config = tiny(f"{root}/{name}", *WORDS, *words, f"--checkpoint.resume={checkpoint}")
        with mesh(config.parallel) as here:
            losses[name] = [line["loss"] for line in train(config, here)]
    return losses


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("imported")


def test_every_layout_begins_from_a_released_checkpoint(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(FOREIGN)]:
        monkeypatch.delenv(name)
    model = tiny(root, *WORDS).model
    full = full_tensors(model, seed=7)
    write_canonical(root / "first", model, full)
    to_hf(open_any(root / "first"), root / "released", ExportOptions())
    checkpoint, _ = from_hf(open_released(root / "released"), root / "ours")
    alone = work(str(root), str(checkpoint), {"one": ()})["one"]
    spread = run_ranks(work, 2, (str(root), str(checkpoint), LAYOUTS), timeout=180, stores=len(LAYOUTS))[0]
    truth = open_any(root / "one").source
    for name in LAYOUTS:
        assert spread[name] == pytest.approx(alone, rel=1e-5), name
        to_hf(open_any(root / name), root / f"{name}-out", ExportOptions())
        found = open_released(root / f"{name}-out")
        for parameter in truth.shapes:
            ours, theirs = truth.read(parameter, "fp32"), found.read(parameter, "fp32")
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5, msg=f"{name}: {parameter}")
            assert not torch.equal(ours, full["fp32"][parameter]), parameter
