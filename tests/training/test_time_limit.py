from pathlib import Path

import pytest

from megatron_pixel.training.time_limit import FACTOR, FILE, MARGIN, TimeLimit


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limit(folder: Path, clock: Clock, **variables: str) -> TimeLimit:
    environ = {f"MEGATRON_PIXEL_{name}": value for name, value in variables.items()}
    return TimeLimit(environ, folder, clock, clock)


def steps(measured: TimeLimit, clock: Clock, *seconds: float) -> None:
    for each in seconds:
        clock.now += each
        measured.stepped()


def test_the_run_stops_while_two_steps_and_saves_still_fit(tmp_path: Path) -> None:
    clock = Clock()
    measured = limit(tmp_path, clock, END_TIME="2000")
    steps(measured, clock, 500, 20)  # the first step warms up
    clock.now += 30
    measured.saved(30, 30)
    assert measured.needed == FACTOR * (20 + 30)
    clock.now = 2000 - measured.needed - MARGIN
    assert not measured.reached()
    clock.now += 0.1
    assert measured.reached()


def test_a_save_does_not_count_as_a_step_and_one_behind_the_training_counts_whole(tmp_path: Path) -> None:
    clock = Clock()
    measured = limit(tmp_path, clock, END_TIME="9999")
    steps(measured, clock, 1, 1)
    clock.now += 5
    measured.saved(5, 60)
    steps(measured, clock, 1)
    assert measured.needed == pytest.approx(FACTOR * (1 + 60))


def test_a_slow_step_is_forgotten_by_and_by(tmp_path: Path) -> None:
    clock = Clock()
    measured = limit(tmp_path, clock)
    steps(measured, clock, 1, 100, *[1] * 80)
    assert measured.needed == pytest.approx(FACTOR * 1)


def test_without_an_end_of_time_nothing_is_reached_and_nothing_is_kept(tmp_path: Path) -> None:
    clock = Clock()
    measured = limit(tmp_path, clock)
    steps(measured, clock, 1, 1e6)
    measured.saved(10, 10)
    assert not measured.reached()
    assert measured.complaint() is None
    assert not (tmp_path / FILE).exists()
    assert not limit(tmp_path, clock, END_TIME="soon").reached()


def test_a_lead_below_twice_step_and_save_is_told_once_and_at_the_next_start(tmp_path: Path) -> None:
    clock = Clock()
    first = limit(tmp_path, clock, END_TIME="99999", LEAD="60")
    steps(first, clock, 1, 10)
    assert first.complaint() is None
    clock.now += 25
    first.saved(25, 25)
    told = first.complaint()
    assert told is not None
    assert "warns 60 s before" in told
    assert "a step (10.0 s) and a save (25.0 s) want twice their time, 70 s; the run will stop by its own clock" in told
    assert "--signal=B:USR1@120" in told
    assert first.complaint() is None
    again = limit(tmp_path, clock, LEAD="60")
    assert "may be killed before that" in (again.complaint() or "")
    assert limit(tmp_path, clock, LEAD="120").complaint() is None


def test_a_broken_file_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_text("[1")
    assert limit(tmp_path, Clock()).needed == 0
