import pytest

from megatron_pixel.config.schema import CheckpointConfig, EvaluationConfig
from megatron_pixel.training.loop import Milestones


@pytest.mark.parametrize(
    ("every", "rows", "expected"), [(4, 1, [4, 8, 10]), (0, 1, [10]), (5, 1, [5, 10]), (4, 0, []), (20, 1, [10])]
)
def test_when_the_held_out_rows_are_read(every: int, rows: int, expected: list[int]) -> None:
    milestones = Milestones(10, EvaluationConfig(every=every, rows=rows), CheckpointConfig())
    assert [step for step in range(1, 11) if milestones.evaluates(step)] == expected


@pytest.mark.parametrize(
    ("every", "spared", "expected"), [(4, [], [4, 8, 10]), (0, [3], [3, 10]), (5, [5, 7], [5, 7, 10])]
)
def test_when_a_checkpoint_is_due(every: int, spared: list[int], expected: list[int]) -> None:
    milestones = Milestones(10, EvaluationConfig(), CheckpointConfig(every=every, milestones=spared))
    assert [step for step in range(1, 11) if milestones.saves(step)] == expected
