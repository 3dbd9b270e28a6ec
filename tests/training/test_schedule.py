import math

import pytest
import torch
from deepspeed.runtime.lr_schedules import WarmupDecayLR

from megatron_pixel.config.schema import OptimizerConfig
from megatron_pixel.training.schedule import learning_rate


def rates(steps: int, **settings: object) -> list[float]:
    config = OptimizerConfig(**settings)  # type: ignore[arg-type]
    return [learning_rate(step, steps, config) for step in range(1, steps + 1)]


def test_linear_by_hand() -> None:
    assert rates(8, lr=1.0, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]
    assert rates(6, lr=1.0, min_lr=0.2, warmup_steps=2) == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_cosine_by_hand() -> None:
    half = math.sqrt(0.5) / 2
    expected = [1.0, 0.5 + half, 0.5, 0.5 - half, 0.0]
    assert rates(5, lr=1.0, warmup_steps=1, schedule="cosine") == pytest.approx(expected, abs=1e-12)
    assert rates(5, lr=1.0, min_lr=0.5, warmup_steps=1, schedule="cosine") == pytest.approx(
        [0.5 + value / 2 for value in expected]
    )


def test_without_warm_up_and_without_decay() -> None:
    assert rates(4, lr=1.0, warmup_steps=0) == [0.75, 0.5, 0.25, 0.0]
    assert rates(4, lr=1.0, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0]


def test_a_step_beyond_the_last_stays_at_the_floor() -> None:
    assert learning_rate(11, 10, OptimizerConfig(lr=1.0, min_lr=0.1, warmup_steps=2)) == 0.1


@pytest.mark.parametrize(("warmup", "steps"), [(3, 12), (2, 4), (5, 40)])
def test_linear_equals_deepspeeds_warmup_decay(warmup: int, steps: int) -> None:
    """The same formula; DeepSpeed's counts from 0, so that its first step learns nothing."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    deepspeed_schedule = WarmupDecayLR(optimizer, steps, 0.0, 5e-4, warmup, warmup_type="linear")
    theirs = []
    for _ in range(steps + 1):
        deepspeed_schedule.step()
        theirs.append(deepspeed_schedule.get_last_lr()[0])
    assert rates(steps, lr=5e-4, warmup_steps=warmup) == pytest.approx(theirs[1:], abs=1e-12)
