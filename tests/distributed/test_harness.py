import os
import time
from pathlib import Path

import pytest

from tests.distributed.harness import RanksFailedError, run_program, run_ranks, sign_of_life


def describe(word: str) -> tuple[int, int, str]:
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), word


def fail_on_rank_1() -> None:
    if os.environ["RANK"] == "1":
        raise RuntimeError("this rank is the culprit")
    time.sleep(60)


def hang_in_a_function_of_this_name() -> None:
    print("so far so good", flush=True)
    time.sleep(60)


def test_results_come_in_the_order_of_ranks() -> None:
    assert run_ranks(describe, 3, ("hello",)) == [(0, 3, "hello"), (1, 3, "hello"), (2, 3, "hello")]


def test_a_failing_rank_ends_the_others_and_is_shown() -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailedError, match=r"rank 1 of 2 failed(?s:.*)this rank is the culprit"):
        run_ranks(fail_on_rank_1, 2)
    assert time.monotonic() - start < 60


def test_a_hang_ends_with_the_stack_of_every_rank() -> None:
    start = time.monotonic()
    with pytest.raises(RanksFailedError, match=r"1 s were up") as error:
        run_ranks(hang_in_a_function_of_this_name, 2, timeout=1)
    assert time.monotonic() - start < 60
    for part in str(error.value).split("--- rank ")[1:]:
        assert "so far so good" in part
        assert "in hang_in_a_function_of_this_name" in part


def live_on() -> float:
    start = time.monotonic()
    for _ in range(8):
        time.sleep(0.5)
        sign_of_life()
    return time.monotonic() - start


def test_a_stopped_rank_and_those_who_wait_for_it_show_where_they_are() -> None:
    with pytest.raises(RanksFailedError, match=r"8 s were up") as error:
        run_ranks("tests/distributed/stopped.py::meet_and_stop", 2, timeout=8)
    waiting, stopped = str(error.value).split("--- rank ")[1:]
    assert "in barrier" in waiting
    assert "in meet_and_stop" in waiting
    assert "in stop_and_never_return" in stopped
    assert "in barrier" not in stopped


def test_signs_of_life_stretch_the_time() -> None:
    assert min(run_ranks(live_on, 2, timeout=3)) > 3.5


def test_programs_are_started_by_rank(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text("import os, sys; print('rank', os.environ['RANK'], sys.argv[1], os.environ['EXTRA'])")
    outputs = run_program([program, "argument"], 2, timeout=30, env={"EXTRA": "more"})
    assert [output.stdout for output in outputs] == ["rank 0 argument more\n", "rank 1 argument more\n"]
    program.write_text("import sys; sys.exit('no good')")
    with pytest.raises(RanksFailedError, match="exit status 1\nno good"):
        run_program([program], 2, timeout=30)
