import io
import re
from typing import Any

import pytest

from megatron_pixel.training.progress import Progress, duration, quantity

RECORD: dict[str, Any] = {
    "step": 1,
    "loss": 3.21436,
    "loss_token_text": 2.5,
    "loss_token_pair": None,
    "loss_patch_pixel": 0.71436,
    "loss_patch_pair": None,
    "lr": 5e-4,
    "grad_norm": 1.234,
    "tokens_per_second": 12345.0,
    "patches_per_second": 0.0,
    "seconds": 2.0,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_durations_and_quantities() -> None:
    assert [duration(s) for s in (0, 59.6, 3723, 93784)] == ["00:00:00", "00:01:00", "01:02:03", "1d 02:03:04"]
    assert [quantity(v) for v in (0.5, 999, 12345, 3.5e8, 2e9)] == ["0.5", "999", "12.3k", "350M", "2G"]


def test_a_plain_line_now_and_then_and_at_the_end() -> None:
    stream, log = io.StringIO(), io.StringIO()
    progress = Progress(100, last=5, every=2, stream=stream, log=log)
    for step in range(1, 6):
        progress.step({**RECORD, "step": step})
    lines = stream.getvalue().splitlines()
    assert lines[0] == (
        "step   2/100    2%  loss 3.2144  (text 2.5000, pixel 0.7144)  lr 5.00e-04  norm 1.23  2 s/step  12.3k tok/s  "
        "ETA 00:00:06"
    )
    assert [line.split("    ")[0] for line in lines] == ["step   2/100", "step   4/100", "step   5/100"]
    assert [re.sub(r"^\S+  ", "", line) for line in log.getvalue().splitlines()] == lines


def test_the_estimate_follows_the_pace() -> None:
    stream = io.StringIO()
    progress = Progress(1000, last=1000, every=1, stream=stream)
    progress.step({**RECORD, "step": 1, "seconds": 100.0})
    for step in range(2, 400):
        progress.step({**RECORD, "step": step, "seconds": 1.0})
    assert stream.getvalue().splitlines()[-1].endswith("ETA 00:10:01")


def test_what_happens_between_steps_is_part_of_the_estimate() -> None:
    stream, now = io.StringIO(), 0.0
    progress = Progress(100, last=100, every=1, stream=stream, clock=lambda: now)
    for step in range(1, 11):
        now = 4.0 * step  # every step of 2 seconds comes 4 after the one before
        progress.step({**RECORD, "step": step})
    assert stream.getvalue().splitlines()[-1].endswith(f"ETA {duration(90 * 4)}")


def test_waiting_for_data_and_skipped_steps_are_told() -> None:
    stream = io.StringIO()
    progress = Progress(100, last=9, every=1, stream=stream)
    progress.step({**RECORD, "data_seconds": 0.02, "skipped_steps": 0, "mfu": 0.412, "memory_gb": 37.25})
    progress.step({**RECORD, "step": 2, "data_seconds": 0.5, "skipped_steps": 3})
    first, second = stream.getvalue().splitlines()
    assert "MFU 41.2%  37.2 GB" in first
    assert "waits" not in first
    assert "skipped" not in first
    assert "waits for data 25%  skipped 3" in second


@pytest.mark.parametrize(
    ("columns", "there", "gone"), [(110, "norm", "lr"), (50, "loss", "norm"), (20, "step", "norm")]
)
def test_a_narrow_terminal_keeps_what_matters(
    monkeypatch: pytest.MonkeyPatch, columns: int, there: str, gone: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    Progress(100, last=3, every=10, stream=stream).step(RECORD)
    line = stream.getvalue().strip("\r")
    assert len(line) < columns
    assert there in line
    assert gone not in line


def test_a_terminal_sees_one_line_rewritten() -> None:
    stream, log = Terminal(), io.StringIO()
    progress = Progress(100, last=3, every=10, stream=stream, log=log)
    progress.step(RECORD)
    progress.step({**RECORD, "step": 2, "grad_norm": None})
    progress.note("saved")
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().endswith("\nsaved\n")
    assert log.getvalue().endswith("  saved\n")
    assert log.getvalue().count("\n") == 1
    first, second = stream.getvalue().split("\n")[0].split("\r")[1:]
    assert len(first) <= len(second), "leftovers of a longer line would stay on the screen"


def test_a_loss_that_is_no_number_is_told() -> None:
    stream = io.StringIO()
    Progress(100, last=3, every=1, stream=stream).step({**RECORD, "loss": None})
    assert "loss not finite" in stream.getvalue()
