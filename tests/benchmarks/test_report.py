"""The page of measurements is what the generator makes of the committed results."""

import json
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.report_tables import counted, number, table
from benchmarks.result_file import RESULTS
from megatron_pixel.config.errors import UserError

RUN = {
    "command": "python benchmarks/storage.py",
    "date": "2026-11-22",
    "commit": "0123456789ab",
    "machine": {"cpu": "Some CPU", "cores": 8, "memory_gib": 31.0, "system": "Linux x86_64"},
    "versions": {"python": "3.11.7", "numpy": "2.4.6"},
}
MARKED = "# Title\n\nProse.\n\n<!-- result: fuzz -->\nold\n<!-- end -->\n\nMore prose.\n"
FUZZ = {
    "run": RUN,
    "strings": 100_000,
    "characters": 123_456_789,
    "broken": 0,
    "slowest_in_times_of_plain_text": 12.345,
    "slowest_microseconds_a_character": 0.98765,
    "largest_growth_mib": 256.0,
}


@pytest.mark.parametrize("path", report.PAGES, ids=lambda path: path.stem)
def test_a_page_is_what_the_results_make(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert report.fill(page, report.read_results()) == page, "run python benchmarks/report.py"


def test_every_result_and_every_table_is_on_a_page() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in report.PAGES)
    shown = {name for name in report.TABLES if f"<!-- result: {name} -->" in pages}
    assert shown == set(report.TABLES)
    assert {path.stem for path in RESULTS.glob("*.json")} <= shown


def test_results_name_no_folder_of_the_machine() -> None:
    for path in RESULTS.glob("*.json"):
        run = json.loads(path.read_text(encoding="utf-8"))["run"]
        assert not [word for word in run["command"].split() if word.startswith("/")], path.name


def test_a_table_and_where_it_comes_from() -> None:
    page = report.fill(MARKED, {"fuzz": FUZZ})
    assert page.startswith("# Title\n\nProse.\n")
    assert page.endswith("<!-- end -->\n\nMore prose.\n")
    assert "| 100,000 | 123,456,789 | 0 | 12.3 | 0.988 | 256 MiB |" in page
    assert "old" not in page
    assert "`python benchmarks/storage.py`, 2026-11-22, commit 0123456789ab. Some CPU, 8 cores, 31 GiB" in page
    assert "Python 3.11.7, numpy 2.4.6" in page
    assert report.fill(page, {"fuzz": FUZZ}) == page
    assert report.fill(page, {"fuzz": {**FUZZ, "broken": 3}}) != page


def test_what_is_not_there() -> None:
    assert "there is no `results/fuzz.json`" in report.fill(MARKED, {})
    with pytest.raises(UserError, match="shows fuzzy, which is no table"):
        report.fill(MARKED.replace("fuzz", "fuzzy"), {})
    with pytest.raises(UserError, match=r"results/fuzz\.json lacks 'broken'"):
        report.fill(MARKED, {"fuzz": {key: value for key, value in FUZZ.items() if key != "broken"}})


def test_the_check_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text(MARKED)
    monkeypatch.setattr(report, "PAGES", [page])
    monkeypatch.setattr(report, "read_results", lambda: {"fuzz": FUZZ})
    assert report.main(["--check"]) == 1
    assert page.read_text() == MARKED
    assert report.main([]) == 0
    assert report.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (0, "0"),
        (5, "5"),
        (1.4632, "1.46"),
        (99.95, "100"),
        (123.4, "123"),
        (9704.2, "9,704"),
        (0.00123, "0.00123"),
    ],
)
def test_numbers(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_nouns_are_counted() -> None:
    assert [counted(count, "row") for count in (1, 2, 1024)] == ["1 row", "2 rows", "1,024 rows"]


def test_tables() -> None:
    assert table(["", "a"], [["b", "1"]]) == "|  | a |\n| --- | ---: |\n| b | 1 |"
