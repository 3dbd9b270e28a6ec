"""The guard against regressions: what it judges, what it fails, what it tells."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.compare_rules import EXCEPTIONS, PEERS, direction, leaves
from benchmarks.result_file import RESULTS
from megatron_pixel.config.errors import UserError

RESULT = {
    "run": {
        "benchmark": "rendering",
        "command": "python benchmarks/rendering.py --json old.json",
        "date": "2026-11-22",
        "commit": "0123456789ab",
        "machine": {"cpu": "Some CPU", "cores": 2},
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
    },
    "documents": 200,
    "english": {"documents_per_second": 1000.0, "ratio_to_pango": 5.0, "microseconds": {"blit": 40.0}},
    "bytes_per_page": 800.0,
    "wrong_pixels": 0,
    "equal_bytes": True,
}


def changed(**figures: Any) -> dict[str, Any]:
    """The result with other figures; a name with two underscores leads inside."""
    result = copy.deepcopy(RESULT)
    for name, value in figures.items():
        *outer, last = name.split("__")
        place: Any = result
        for key in outer:
            place = place[key]
        place[last] = value
    return result


def run(tmp_path: Path, new: dict[str, Any], *words: str, old: dict[str, Any] | None = None) -> int:
    files = []
    for name, result in (("old", old or RESULT), ("new", new)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(result))
    return compare.main([*map(str, files), *words])


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_committed_result_compares_with_itself(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main([str(path), str(path)]) == 0
    assert "0 lost more than 5%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("english.documents_per_second", "higher"),
        ("english.ratio_to_pango", "higher"),
        ("text.ratio_to_hf", "higher"),
        ("mfu", "higher"),
        ("gpu.text.tflops", "higher"),
        ("runs.1 worker.megabytes_per_second", "higher"),
        ("scaling.2 workers", "higher"),
        ("english.encode_speed_to_rendering", "higher"),
        ("stored.rows_per_core_second", "higher"),
        ("ours_over_transformers", "higher"),
        ("same_tokens_as_transformers", "higher"),
        ("ascii.equal_documents", "higher"),
        ("stored.gpus_per_core", "higher"),
        ("english.microseconds.blit", "lower"),
        ("stored.microseconds_a_row.the rest of the row", "lower"),
        ("runs.1 worker.rss_each_megabytes.1", "lower"),
        ("to_hf.peak_over_largest_tensor", "lower"),
        ("english.formats.PNG, gray.bytes_per_page", "lower"),
        ("extrapolation.core_hours", "lower"),
        ("broken", "lower"),
        ("rounds_with_other_bytes", "lower"),
        ("rules.white.error", "lower"),
        ("text.step_ms", "lower"),
        ("english.pango_documents_per_second", None),
        ("processor_seconds.transformers", None),
        ("bf16.text.others.compiled.ratio_to_ours", None),
        ("bf16.text.share_of_ceiling", "higher"),
        ("text.hf.tokens_per_second", None),
        ("documents", None),
        ("english.patches_per_document", None),
        ("model.layers", None),
        ("memory.1.input_megabytes", None),
        ("strings_by_kind.emoji", None),
        ("seed", None),
    ],
)
def test_which_way_is_better(name: str, expected: str | None) -> None:
    assert direction(name.split(".")) == expected


def test_no_rate_of_a_committed_result_goes_unjudged() -> None:
    words = ("second", "ratio", "megabytes", "bytes_per")
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text(encoding="utf-8"))
        for names, _ in leaves({key: value for key, value in result.items() if key != "run"}):
            told_only = EXCEPTIONS.get(names[-1], "") is None or any(re.search(PEERS, name) for name in names)
            if any(word in names[-1] for word in words) and not told_only:
                assert direction(names) is not None, (path.name, names)


@pytest.mark.parametrize(
    ("figures", "status"),
    [
        ({"english__documents_per_second": 951.0}, 0),
        ({"english__documents_per_second": 949.0}, 1),
        ({"english__documents_per_second": 2000.0}, 0),
        ({"english__microseconds": {"blit": 42.0}}, 0),
        ({"english__microseconds": {"blit": 43.0}}, 1),
        ({"bytes_per_page": 700.0}, 0),
        ({"bytes_per_page": 900.0}, 1),
        ({"wrong_pixels": 1}, 1),
        ({"equal_bytes": False}, 1),
        ({"documents": 10}, 0),
        ({"english__ratio_to_pango": 0.0}, 1),
    ],
    ids=str,
)
def test_a_loss_fails(tmp_path: Path, figures: dict[str, Any], status: int) -> None:
    assert run(tmp_path, changed(**figures)) == status


def test_how_much_may_be_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slower = changed(english__documents_per_second=900.0)
    assert run(tmp_path, slower) == 1
    out = capsys.readouterr().out
    assert "english.documents_per_second  higher  1000  900  0.900  LOST" in out
    assert "english.ratio_to_pango" not in out
    assert "6 figures judged, 5 of them the same, 1 lost more than 5%" in out
    assert run(tmp_path, slower, "--loss", "11%") == 0
    assert run(tmp_path, slower, "--loss", "0.09") == 1
    assert run(tmp_path, slower, "--only", "*ratio*", "--all") == 0
    assert "english.ratio_to_pango" in capsys.readouterr().out
    for loss in ("much", "5", "-1%", "nan"):
        with pytest.raises(UserError, match="--loss"):
            run(tmp_path, slower, f"--loss={loss}")


def test_what_only_one_file_has_and_how_the_runs_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = changed(run__machine={"cpu": "Other CPU", "cores": 2, "gpu": "H200"}, run__date="2027-01-01", new_rate=3)
    new["run"]["command"] = "python benchmarks/rendering.py --json new.json"
    del new["bytes_per_page"]
    assert run(tmp_path, new) == 0
    out = capsys.readouterr().out
    assert "warning: the runs differ\n  machine.cpu: Some CPU -> Other CPU\n  machine.gpu: - -> H200\n" in out
    assert "only in the old file\n  bytes_per_page\n" in out
    assert "only in the new file\n  new_rate\n" in out
    assert "command" not in out
    assert "date" not in out


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="results of rendering and of storage"):
        run(tmp_path, changed(run__benchmark="storage"))
    with pytest.raises(UserError, match="--only: no figure of both files is called 'x'"):
        run(tmp_path, RESULT, "--only", "x")
    with pytest.raises(UserError, match="no figure of both files can be judged"):
        run(tmp_path, {"run": RESULT["run"]})
    with pytest.raises(UserError, match=r"old\.json is no result of a benchmark"):
        run(tmp_path, RESULT, old={"figures": 1})
    (tmp_path / "torn.json").write_text('{\n"run": {')
    with pytest.raises(UserError, match=r"torn\.json:2 is no JSON"):
        compare.read(tmp_path / "torn.json")
    with pytest.raises(UserError, match=r"none\.json cannot be read: No such file"):
        compare.read(tmp_path / "none.json")
