"""What a step on a GPU waits for: nothing before its figures, but for DeepSpeed's look at the gradient norm."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_pixel.training.loop import Trainer
from tests.gpu.runs import KINDS, PRECISIONS, SHORT, train, words_of
from tests.gpu.waits import MESSAGE, waits_of_the_device
from tests.training.test_waits import AFTER

gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
ALLOWED = AFTER | {"losses.sum_over_ranks", "utils.is_invalid_grad_norm"}
"""The wait for the figures of a step, what asks after it, and DeepSpeed's question whether the norm is a number."""


def waits_of_a_step(folder: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Who waits in the third step; the first two make what is made once."""
    found: Counter[str] = Counter()
    original = Trainer.step

    def step(trainer: Trainer, number: int, batches: Sequence[Any]) -> Any:
        if number != 3:
            return original(trainer, number, batches)
        with waits_of_the_device() as its:
            end = original(trainer, number, batches)
        found.update(its)
        return end

    monkeypatch.setattr(Trainer, "step", step)
    train(folder, words)
    return found


@gpu
@needs_cuda
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_waits_for_its_figures_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, precision: str
) -> None:
    found = waits_of_a_step(tmp_path, words_of(kind, precision), monkeypatch)
    assert found["losses.sum_over_ranks"] == 1, "torch tells of no waits here, or the figures come another way"
    assert not {name: count for name, count in found.items() if name not in ALLOWED}


@gpu
@needs_cuda
def test_packed_rows_wait_for_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many documents a row holds is known on the host; where they begin is not asked for."""
    found = waits_of_a_step(tmp_path, [*words_of("mix", "bf16"), "--data.packing=documents"], monkeypatch)
    assert not {name: count for name, count in found.items() if name not in ALLOWED}


def test_waits_are_told_from_other_warnings(monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder) -> None:
    """Runs anywhere: torch's warnings are made up."""
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with waits_of_the_device() as found:
        for _ in range(2):
            warnings.warn(f"{MESSAGE} (Triggered internally)", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert found == {"outside": 2}
    assert modes == ["warn", "default"]
    assert [str(warning.message) for warning in recwarn] == ["something else"]


def test_the_third_step_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs anywhere: each sum over ranks counts as a wait, as it would be on a GPU."""
    from megatron_pixel.training import observation

    original = observation.sum_over_ranks

    def summed(parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        warnings.warn(MESSAGE, stacklevel=1)
        return original(parts)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    monkeypatch.setattr(observation, "sum_over_ranks", summed)
    words = [*SHORT, "--data.mixture=1:0:0", "--training.global_batch_rows=1", "--training.precision=fp32"]
    assert waits_of_a_step(tmp_path, words, monkeypatch) == {"observation.Observer.collect": 1}
