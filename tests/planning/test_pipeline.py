"""DeepSpeed's schedule, and the seconds it takes; runs are compared in test_measured.py."""

import logging

import pytest

from megatron_pixel.planning.pipeline import Passes, bubble_ticks, schedule, simulate, ticks

NAMES = {
    "ForwardPass": "forward",
    "BackwardPass": "backward",
    "SendActivation": "send activation",
    "RecvActivation": "receive activation",
    "SendGrad": "send gradient",
    "RecvGrad": "receive gradient",
}
SIZES = [(1, 3), (2, 1), (2, 5), (3, 2), (4, 1), (4, 9), (5, 3), (8, 20)]
"""Ranks and micro-batches."""


@pytest.mark.parametrize(("ranks", "count"), SIZES)
def test_the_schedule_is_deepspeeds(ranks: int, count: int) -> None:
    logging.disable(logging.WARNING)
    from deepspeed.runtime.pipe.schedule import TrainSchedule

    for rank in range(ranks):
        theirs = [
            (tick, NAMES[type(command).__name__])
            for tick, commands in enumerate(TrainSchedule(count, ranks, rank))
            for command in commands
            if type(command).__name__ in NAMES
        ]
        assert [found[:2] for found in schedule(ranks, count, rank)] == theirs


@pytest.mark.parametrize(("ranks", "count"), SIZES)
def test_every_rank_waits_in_as_many_ticks(ranks: int, count: int) -> None:
    for rank in range(ranks):
        passes = [found for found in schedule(ranks, count, rank) if found.kind in ("forward", "backward")]
        assert sorted(found.micro_batch for found in passes) == sorted([*range(count), *range(count)])
        assert ticks(ranks, count) - len({found.tick for found in passes}) == bubble_ticks(ranks)
        held = most = 0
        for found in passes:
            held += 1 if found.kind == "forward" else -1
            most = max(most, held)
        assert most == min(ranks - rank, count)


@pytest.mark.parametrize(("ranks", "count"), SIZES)
def test_equal_passes_take_what_the_formula_says(ranks: int, count: int) -> None:
    found = simulate([Passes([1.0] * count, [2.0] * count)] * ranks)
    assert found.seconds == pytest.approx(3 * (count + ranks - 1))
    assert found.busy == [3.0 * count] * ranks


def test_two_ranks_by_hand() -> None:
    """Two micro-batches; the second rank is slower, and everything waits for it."""
    first, second = Passes([1.0, 1.0], [1.0, 1.0]), Passes([2.0, 2.0], [3.0, 3.0])
    # F0 of the first until 1, then F0 B0 F1 B1 of the second until 11, then B1 of the first.
    assert simulate([first, second]).seconds == pytest.approx(12.0)
    # Sent: hidden states of 0, before the second can start; of 1 and the gradients of 0, side by side with nothing, as
    # the second rank hands them over between its passes; the gradients of 1.
    assert simulate([first, second], activation=0.5).seconds == pytest.approx(12.0 + 2 * 0.5)
    assert simulate([first, second], gradient=0.5).seconds == pytest.approx(12.0 + 2 * 0.5)


def test_a_slow_micro_batch_is_waited_for_once() -> None:
    """In each rank it takes 6 s instead of 3 s; the others meet it one after the other."""
    passes = [Passes([1.0, 1.0, 2.0, 1.0], [2.0, 2.0, 4.0, 2.0])] * 2
    assert 3 * 5 + 3 < simulate(passes).seconds <= 3 * 5 + 2 * 3
