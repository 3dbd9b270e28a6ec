"""Kills of ranks under the supervisor: the campaign of benchmarks/faults.py, small."""

import json
from pathlib import Path

import pytest

from benchmarks import faults
from megatron_pixel.training import sessions

FORM = "tensor 2"
SEED = 1
"""The first kill that it draws is that of rank 1 while a checkpoint is being written."""


SHORTER = ["--training.steps=10", "--training.global_batch_rows=10", "--checkpoint.every=3"]


def test_a_kill_in_a_save_costs_no_row_and_changes_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faults, "SETTINGS", [*faults.SETTINGS, *SHORTER])
    words = ["--kills", "1", "--forms", FORM, "--seed", str(SEED), "--folder", str(tmp_path / "work")]
    assert faults.main([*words, "--json", str(tmp_path / "faults.json")]) == 0
    found = json.loads((tmp_path / "faults.json").read_text())
    assert found["kills"] == 1, "a kill counts when the supervisor has named the rank and its process"
    assert 0 < found["longest_seconds_to_end"] < 30
    form = found["forms"][FORM]
    assert (form["ranks"], form["runs"], form["saving"], form["restarts"]) == (2, 1, 1, 1)
    assert [form[fault] for fault in faults.FAULTS] == [0, 0, 0, 0]
    assert "1 while saving; equal; 1 of 1 kills" in capsys.readouterr().out
    before = (tmp_path / "work" / "campaign.json").stat().st_mtime_ns
    assert faults.main(words) == 0, "what is done stands in the folder"
    assert (tmp_path / "work" / "campaign.json").stat().st_mtime_ns == before


def test_the_comparison_can_fail(tmp_path: Path) -> None:
    lines = [{"step": step, "loss": 1.0 / step, "rows_digest": step * 7, "seconds": 0.1} for step in range(1, 5)]
    expected = [{key: value for key, value in line.items() if key != "seconds"} for line in lines]
    digests = [7, 14, 21, 28]

    def compare(found: list[dict[str, float]]) -> list[int]:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
        result = faults.compare(tmp_path, expected, digests)
        return [result[fault] for fault in faults.FAULTS]

    sessions.note(tmp_path, "start", {})
    assert compare(lines) == [0, 0, 0, 0]
    assert compare(lines[:3]) == [1, 0, 0, 1]
    assert compare([*lines, lines[3]]) == [0, 1, 0, 1]
    assert compare([*lines[:3], lines[3] | {"rows_digest": 1}]) == [0, 0, 1, 1]
    assert compare([*lines[:3], lines[3] | {"loss": 0.25000001}]) == [0, 0, 0, 1]
    assert compare([*lines[:3], lines[3] | {"seconds": 9.0}]) == [0, 0, 0, 0]
