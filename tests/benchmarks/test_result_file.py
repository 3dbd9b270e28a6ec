import argparse
import json
import os
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import result_file


def test_a_result_says_what_ran_when_and_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = result_file.ROOT / "benchmarks" / "storage.py"
    scratch = str(tmp_path / "deep" / "storage.json")
    monkeypatch.setattr(sys, "argv", [str(program), "--pages", "20", "--json", scratch, f"--work={tmp_path}/w"])
    result_file.write(Path(scratch), {"english": {"rate": 1 / 3, "pages": np.int64(123456789)}}, ["PyYAML"])
    result = json.loads(Path(scratch).read_text())
    assert result["english"] == {"rate": 0.33333, "pages": 123456789}
    run = result["run"]
    assert run["benchmark"] == "storage"
    assert run["command"] == "python benchmarks/storage.py --pages 20 --json storage.json --work=w"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run["date"])
    assert run["commit"] is None or re.fullmatch(r"[0-9a-f]{12}\+?", run["commit"])
    assert run["machine"]["cores"] >= 1
    assert run["machine"]["memory_gib"] > 0
    assert run["versions"]["python"] == platform.python_version()
    assert run["versions"]["numpy"] == np.__version__
    assert "PyYAML" in run["versions"]
    text = Path(scratch).read_text()
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)
    assert str(tmp_path) not in text
    assert os.listdir(tmp_path / "deep") == ["storage.json"]


def test_no_path_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    result_file.add_json_argument(parser)
    result_file.write(parser.parse_args([]).json, {"a": 1})
    assert os.listdir(tmp_path) == []
    assert parser.parse_args(["--json", "x.json"]).json == Path("x.json")


def test_figures_that_are_no_numbers_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        result_file.write(tmp_path / "a.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("value", "kept"), [(1234.5678, 1234.6), (123456.7, 123457), (0.00012345678, 0.00012346), (True, True), (7, 7)]
)
def test_floats_keep_five_digits(value: float, kept: float):
    assert result_file._rounded([{"a": value}]) == [{"a": kept}]
