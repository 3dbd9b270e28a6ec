"""How often a step waits for the device: a count of what would, whatever the device is."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.loop import Trainer
from tests.distributed.tiny_run import tiny, train

METHODS = ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
"""Of a tensor, that hand its values to the host."""
HOST = ("batch.Header.read", "objectives.losses")
"""Functions that read the header of a micro-batch, which stays on the host."""
AFTER = {
    "losses.StepCounts._known",
    "losses.LossTotals.read",
    "gradients.StageGradients.norms",
    "observation.Observer.record",
    "slow_ranks.SlowRanks.add",
}
"""Functions that ask after the step's one wait: for what is on the host by then, or on a device that is idle."""


def caller() -> str:
    """The function of this project, or of DeepSpeed, that asks."""
    frame = sys._getframe(2)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if "megatron_pixel" in path.parts or "deepspeed" in path.parts:
            return f"{path.stem}.{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "outside"


def waits(folder: Path, here: Mesh, monkeypatch: pytest.MonkeyPatch, *words: str) -> Counter[str]:
    """Who asks for values in the third step."""
    found: Counter[str] = Counter()
    watching = False
    original = Trainer.step

    def counted(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
            nonlocal watching
            if watching:
                watching = False  # what it calls itself does not count
                found[caller()] += 1
                try:
                    return method(tensor, *arguments, **options)
                finally:
                    watching = True
            return method(tensor, *arguments, **options)

        return call

    def step(trainer: Trainer, number: int, batches: Sequence[Any]) -> Any:
        nonlocal watching
        watching = number == 3
        try:
            return original(trainer, number, batches)
        finally:
            watching = False

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        for name in METHODS:
            patch.setattr(torch.Tensor, name, counted(getattr(torch.Tensor, name)))
        train(tiny(folder, "--training.steps=3", "--evaluation.rows=0", *words), here)
    return found


def test_a_step_waits_as_often_whatever_its_micro_batches(
    one_process: Mesh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for all figures; what else is asked for after that is there. DeepSpeed asks whether a gradient is finite."""
    few = waits(tmp_path / "few", one_process, monkeypatch, "--training.micro_batch_rows=2")
    many = waits(tmp_path / "many", one_process, monkeypatch, "--training.micro_batch_rows=1")
    for name in HOST:
        assert 2 * few.pop(name) == many.pop(name), "the header of each micro-batch, which stays on the host"
    assert few == many
    ours = {name: count for name, count in few.items() if name not in AFTER and not name.startswith("utils.")}
    assert ours == {"losses.sum_over_ranks": 1}
    assert few["utils.is_invalid_grad_norm"] <= 3
