"""Tables of results that are made up: which runs make a row, and what its cells say."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.reporting.figures import draw_figures
from megatron_pixel.reporting.ours import Group, Ours
from megatron_pixel.reporting.published import GLUE, LANGUAGES
from megatron_pixel.reporting.results import write_tables
from megatron_pixel.reporting.statistics import Difference, Estimate, t95
from megatron_pixel.reporting.tables import paper_tables, settings_tables, study_tables


def result(task: str, system: str, modality: str, scores: dict[str, float], **changes: Any) -> dict[str, Any]:
    metric = {"cola": "mcc", "qqp": "f1"}.get(task, "accuracy")
    return {
        "task": task,
        "metric": metric,
        "setting": "translate-train-all" if task == "xnli" else None,
        "modality": modality,
        "system": system,
        "pretraining": {"step": 100, "positions": 1000},
        "weights": "pretrained",
        "render_mode": None if modality == "text" else "rgb",
        "fonts": [],
        "seed": 1,
        "score": sum(scores.values()) / len(scores),
        "scores": {split: {metric: value} for split, value in scores.items()},
        "majority": dict.fromkeys(scores, 0.5),
        "settings": {"lr": 1e-4, "batch": 64},
        **changes,
    }


def test_rows_are_means_over_seeds_at_the_best_settings() -> None:
    runs = [
        result("sst2", "pixelgpt", "pixel", {"validation": value}, seed=seed)
        for seed, value in enumerate((0.90, 0.92, 0.94))
    ]
    runs.append(result("sst2", "pixelgpt", "pixel", {"validation": 0.91}, settings={"lr": 1e-5, "batch": 64}))
    runs.append(result("mnli", "pixelgpt", "pixel", {"validation-matched": 0.7, "validation-mismatched": 0.6}))
    table = next(table for table in paper_tables(Ours(runs)) if table.key == "table-1")
    rows = [row for row in table.rows if row[1] != "paper"]
    assert len(rows) == 1
    cells = dict(zip(table.columns, rows[0], strict=True))
    assert cells["SST-2"] == "92.0 ± 2.0"
    assert cells["MNLI-m/mm"] == "70.0 / 60.0"
    assert (cells["QQP"], cells["average"]) == ("-", "-")
    assert cells["numbers of"] == "ours, 3 seed(s)"
    paper = next(row for row in table.rows if row[0] == "PixelGPT" and row[1] == "paper")
    assert paper[table.columns.index("SST-2")] == "90.1"


def test_test_splits_are_reported_and_settings_chosen_without_them() -> None:
    ours = Ours(
        [
            result("xnli", "dualgpt", "pair", {"validation-en": 0.5, "test-en": 0.9}, score=0.5),
            result("xnli", "dualgpt", "pair", {"validation-en": 0.6, "test-en": 0.4}, score=0.6, settings={"lr": 1}),
        ]
    )
    table = next(table for table in paper_tables(ours) if table.key == "table-16")
    row = next(row for row in table.rows if row[1].startswith("ours"))
    assert row[table.columns.index("en")] == "40.0"
    newer = result("xnli", "dualgpt", "pair", {"validation-en": 0.1}, pretraining={"step": 200})
    groups = [Group.of(run) for run in [*ours.results, newer]]
    assert [group.step for group in ours.newest(groups)] == [200]


def test_a_study_shows_gains_with_intervals() -> None:
    runs = [result("custom", "textgpt", "text", {"validation": v}, seed=i) for i, v in enumerate((0.70, 0.72, 0.74))]
    runs += [
        result("custom", "dualgpt", "text", {"validation": v}, seed=i, weights="random")
        for i, v in enumerate((0.60, 0.61, 0.62))
    ]
    table = study_tables(Ours(runs))[0]
    gain = next(row["gain"] for row in table.figures if row.get("gain"))
    # Welch by hand: deviations 2 and 1, three runs each.
    freedom = (4 / 3 + 1 / 3) ** 2 / ((4 / 3) ** 2 / 2 + (1 / 3) ** 2 / 2)
    assert gain["value"] == pytest.approx(11.0)
    assert gain["half_width"] == pytest.approx(t95(freedom) * math.sqrt(5 / 3))
    assert gain["is_shown"]
    assert table.rows[0][0] == "majority class"


def test_statistics() -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0])
    assert (estimate.mean, estimate.deviation, estimate.count) == (2.0, 1.0, 3)
    assert estimate.half_width == pytest.approx(4.303 / math.sqrt(3))
    assert Difference.of(estimate, Estimate.of([2.0])).half_width is None
    assert [t95(1), t95(30), round(t95(120), 2)] == [12.706, 2.042, 1.98]


def test_every_figure_of_the_paper_is_drawn(tmp_path: Path) -> None:
    runs = [
        result(
            task, "pixelgpt", "pixel", {"validation": 0.5 + step / 1000}, pretraining={"step": step, "positions": step}
        )
        for task in GLUE
        for step in (10, 20)
    ]
    xnli = {f"test-{language}": 0.5 for language in LANGUAGES}
    for step, mode in ((10, "rgb"), (20, "rgb"), (20, "gray")):
        facts = {"step": step, "positions": step}
        runs.append(result("xnli", "pixelgpt", "pixel", xnli, render_mode=mode, pretraining=facts))
    runs.append(result("cola", "pixelgpt", "pixel", {"validation": 0.4}, settings={"lr": 1e-4, "batch": 512}))
    runs[-1]["pretraining"] = {"step": 20, "positions": 20}
    runs.append(result("rte", "pixelgpt", "pixel", {"validation": 0.4}, fonts=["NotoSerif.ttf"]))
    for mode, said in (("rgb", "hate"), ("gray", "non-hate")):
        folder = tmp_path / mode
        folder.mkdir()
        line = {"id": "1", "texts": ["I love 🐀"], "prediction": said, "label": "hate"}
        (folder / "predictions-test.jsonl").write_text(json.dumps(line) + "\n")
        runs.append(result("hatemojibuild", "pixelgpt", "pixel", {"test": 0.6}, render_mode=mode, folder=str(folder)))
    drawn = draw_figures(Ours(runs), tmp_path)
    assert [path.stem for path, _ in drawn] == [f"figure-{number}" for number in (3, 4, 5, 6, 7, 9, 10)]
    assert all(path.stat().st_size > 5000 for path, _ in drawn)
    assert not draw_figures(Ours([]), tmp_path)


def test_everything_is_written(tmp_path: Path) -> None:
    for number, mode in enumerate(("rgb", "gray")):
        run = result("xnli", "pixelgpt", "pixel", {f"test-{c}": 0.5 for c in ("en", "de")}, render_mode=mode)
        for seed in range(2):
            folder = tmp_path / "runs" / f"{number}-{seed}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(run))
    said: list[str] = []
    write_tables(tmp_path / "runs", tmp_path / "out", everything=False, show=said.append)
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "Table 17" in text
    assert "Table 1:" not in text
    assert (tmp_path / "out" / "figure-9.png").is_file()
    content = json.loads((tmp_path / "out" / "tables.json").read_text())
    ours = [row for row in content["table-17"]["rows"] if row["numbers_of"] == "ours"]
    assert ours[0]["scores"]["en"] == [{"mean": 50.0, "deviation": 0.0, "count": 2}]
    assert not any(row[1].startswith("ours") for table in settings_tables(Ours([])) for row in table.rows)
    with pytest.raises(UserError, match="no finished fine-tuning run"):
        write_tables(tmp_path / "out", tmp_path / "out", everything=False)
