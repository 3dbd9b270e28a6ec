import json
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.training.wandb_log import WandbLog, check_wandb
from tests.training.watched_run import FAKE_WANDB


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setenv("FAKE_WANDB_LOG", str(tmp_path / "log"))
    yield tmp_path  # type: ignore[misc]
    sys.modules.pop("wandb", None)


def told(folder: Path) -> list[object]:
    return [json.loads(line) for line in (folder / "log").read_text().splitlines()]


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="package wandb is not installed here: pip install wandb, or leave"):
        check_wandb("project")
    check_wandb(None)


def test_a_run_that_resumes_goes_on_under_its_id(fake: Path) -> None:
    (fake / "wandb_id").write_text("first\n")
    log = WandbLog("p", fake, {"a": {"b": 1}}, print)
    log.scalars(3, [("train/loss", 1.5)])
    log.picture("page", np.zeros((4, 6, 3), np.uint8), 3)
    log.close()
    log.scalars(4, [("train/loss", 1.0)])
    options, *rest = told(fake)
    assert isinstance(options, dict)
    assert (options["id"], options["config"]) == ("first", {"a": {"b": 1}})
    assert rest == [[3, {"train/loss": 1.5}], [3, {"page": [4, 6, 3]}], "finished"]


def test_without_a_network_the_run_is_kept_on_disk(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WANDB_FAILS", "online")
    notes: list[str] = []
    WandbLog("p", fake, {}, notes.append).scalars(1, [("train/loss", 1.0)])
    options, line = told(fake)
    assert isinstance(options, dict)
    assert options["mode"] == "offline"
    assert line == [1, {"train/loss": 1.0}]
    assert len(notes) == 1
    assert "wandb sync" in notes[0]


def test_an_error_of_the_service_is_told_once_and_ends_nothing(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WANDB_FAILS", "log")
    notes: list[str] = []
    log = WandbLog("p", fake, {}, notes.append)
    for step in range(3):
        log.scalars(step, [("train/loss", 1.0)])
    log.close()
    assert notes == ["logging.wandb: ConnectionError: no network; nothing more is sent"]
