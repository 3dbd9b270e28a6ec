"""Guards in every kind of layout: tensor, pipeline and data parallelism, ZeRO 1 to 3, fp32 and bf16."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_pixel import reproduce
from megatron_pixel.data.mixture import open_training
from megatron_pixel.data.rows import rows_digest
from megatron_pixel.training import exit_codes
from megatron_pixel.training.schedule import learning_rate
from tests.distributed.guarded import LAYOUTS, LIMIT, SLEEPER, STOPPED, WATCHED, WORDS
from tests.distributed.harness import run_ranks
from tests.distributed.test_resume import TIMES
from tests.distributed.tiny_run import Line, tiny

Found = tuple[Path, list[dict[str, dict[str, Any]]]]
UNEQUAL = (*TIMES, "time", "evaluation_seconds", "data_seconds", "forward_seconds", "backward_seconds")
UNEQUAL += ("optimizer_seconds", "pipeline_seconds", "mfu")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("guards")
    return root, run_ranks("tests/distributed/guarded.py::everything", 4, (str(root),), stores=len(LAYOUTS))


def digests(count: int) -> list[int]:
    """What the rows of each batch add up to, by the sampler's formula."""
    config = tiny("x", *WORDS)
    reader = open_training(config.data, config.model, config.pair, config.training, 1)
    batches = range(reader.num_micro_batches(1))
    return [sum(rows_digest(reader.micro_batch(n, i, 0, 1).rows) for i in batches) for n in range(count)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_ranks_skip_alike_and_schedule_and_sampler_go_on(found: Found, layout: str) -> None:
    results = [ranks[layout]["skipped"] for ranks in found[1]]
    for result in results:
        assert result["same"][:4] == [True, True, False, False], "steps 2 and 3 leave the weights, 4 and 5 change them"
        assert result["skipped"] == 2
    steps: list[Line] = results[0]["lines"][:5]
    assert [line["skipped_steps"] for line in steps] == [0, 1, 2, 2, 2]
    assert [line["loss"] is None for line in steps] == [False, False, False, False, False]
    config = tiny("x", *WORDS, "--training.steps=6")
    assert [line["lr"] for line in steps] == [learning_rate(step, 6, config.optimizer) for step in range(1, 6)]
    assert [line["rows_digest"] for line in steps] == digests(5)
    assert "step 2 skipped: gradients are not finite" in results[0]["log"]
    assert "step 3 skipped: gradients are not finite" in results[0]["log"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_that_skips_too_often_stops_with_a_dump_that_reproduces_it(
    found: Found, layout: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [ranks[layout]["stopped"] for ranks in found[1]]
    assert all(result["status"] == exit_codes.GUARD for result in results)
    message = results[0]["error"]
    assert re.search(r"step 3: 2 steps in a row had to be skipped.* rows of the last: .*:synthetic \d+", message), (
        message
    )
    command = re.search(r"python megatron_pixel/reproduce\.py (\S+/dumps/step-00000003)", results[0]["log"])
    assert command is not None, results[0]["log"]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", command[1], "--rows", "4"])
    reproduce.main()
    out = capsys.readouterr().out
    assert "reproduced: 4 of 4 rows break the numbers on one process, too" in out, out
    assert re.search(r"pixel:synthetic \d+ .* nan", out) or re.search(r"text:synthetic \d+ .* nan", out), out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_a_spike_the_run_goes_back_and_passes_over_the_rows(found: Found, layout: str) -> None:
    result = found[1][0][layout]["rewound"]
    rewound, without = ([bare(line) for line in result[name]] for name in ("rewound", "without"))
    assert [line["step"] for line in rewound] == [1, 2, 3, 4, 5, 6, 7]
    assert rewound == without
    assert [line["rows_digest"] for line in rewound] == [d for n, d in enumerate(digests(8)) if n != 4]
    assert "step 5: the loss is 1e+06, a spike since step 5" in result["log"]
    assert "back to step 4 from 5, the rows of steps 5 to 5 are passed over (rewind 1 of 3)" in result["log"]


def bare(line: Line) -> Line:
    return {key: value for key, value in line.items() if key not in UNEQUAL}


@pytest.mark.parametrize("layout", WATCHED)
def test_a_hang_is_told_with_the_stacks_and_who_did_not_come(found: Found, layout: str) -> None:
    results = [ranks[layout]["hung"] for ranks in found[1]]
    assert all(result["ends"] == [exit_codes.HANG] for result in results)
    assert ", in hook\n" in results[SLEEPER]["stacks"]
    assert all("thread MainThread:" in result["stacks"] for result in results)
    summary = results[0]["summary"]
    seconds = re.match(r"watchdog: no progress for (\d+) s at step 3; stacks are in \S+", summary)
    assert seconds is not None, summary
    assert LIMIT <= int(seconds[1]) <= 3 * LIMIT
    named = rf"^  \w+.* of ranks [\d, ]+: ranks? [\d, ]+ waiting; not there: .*\b{SLEEPER}\b"
    # ZeRO 3 asks for weights ahead and waits for them later, where nothing tells for which ranks.
    waiting = named if layout != "data 4, ZeRO 3" else rf"{named}|^  an asynchronous operation: ranks 0, 2, 3 waiting"
    assert re.search(waiting, summary, re.MULTILINE), summary
    was = "its process was stopped in: " if layout == STOPPED else ""
    asleep = rf"^  rank {SLEEPER} on \S+ \(process \d+\): {was}forward pass .*, in no collective"
    assert re.search(asleep, summary, re.MULTILINE), summary


@pytest.mark.parametrize("layout", WATCHED)
def test_a_slow_rank_is_named(found: Found, layout: str) -> None:
    result = found[1][0][layout]["hung"]
    assert [entry["rank"] for entry in result["ranks"][0]["ranks"]] == [0, 1, 2, 3]
    assert all(entry["host"] and entry["seconds"] > 0 for entry in result["ranks"][0]["ranks"])
    assert re.search(rf"slow rank: {SLEEPER} on \S+ takes 1 s for the probe", result["log"]), result["log"]
    if layout == "data 4, ZeRO 2":
        assert re.search(rf"slow rank: {SLEEPER} on \S+ takes .* s a step for its forward passes", result["log"])


def test_folders_that_cannot_be_used_are_refused_on_all_ranks(found: Found) -> None:
    for ranks in found[1]:
        said = ranks["data 4, ZeRO 2"]["folders"]
        assert re.search(r"run\.dir: \S+: rank 0 on \S+ cannot write there: Not a directory", said["file/run"])
        assert f"rank {SLEEPER} on" in said["taken"]
        assert f"is in use by process {found[1][0]['data 4, ZeRO 2']['folders']['pid']} on" in said["used"]
