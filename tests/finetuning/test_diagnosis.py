"""The program that says why little pretraining does not help."""

import json
from pathlib import Path

import pytest
import torch

from examples.finetuning_diagnosis import logistic_regression, outcomes, page


def test_logistic_regression_is_the_least_of_its_loss() -> None:
    torch.manual_seed(0)
    has = (torch.rand(40, 5) < 0.4).float()
    labels = ((has[:, 0] + torch.rand(40)) > 0.9).float()
    weights, constant = logistic_regression(has, labels, 0.01)
    errors = torch.sigmoid(has @ weights + constant) - labels
    # The gradient of the penalized loss is zero; the constant is free.
    assert torch.allclose(has.T @ errors / 40 + 2 * 0.01 * weights, torch.zeros(5), atol=1e-4)
    assert abs(float(errors.mean())) < 1e-4


def test_runs_of_the_same_settings_are_a_line(tmp_path: Path) -> None:
    for seed, (weights, score) in enumerate((("random", 0.6), ("random", 0.7), ("pretrained", 0.5))):
        run = tmp_path / f"run-{seed}"
        run.mkdir()
        result = {"steps": 20, "settings": {"lr": 1e-3}, "weights": weights, "score": score}
        (run / "result.json").write_text(json.dumps(result))
        losses = [{"step": step, "loss": 9.0 if step <= 10 else 0.25} for step in range(1, 21)]
        (run / "metrics.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in [*losses, {"eval_score": score}])
        )
    pretrained, random = outcomes(tmp_path)
    assert (pretrained["weights"], pretrained["seeds"], pretrained["deviation"]) == ("pretrained", 1, None)
    assert random["score"] == pytest.approx(65)
    assert random["deviation"] == pytest.approx(50**0.5)
    assert random["last_loss"] == 0.25
    state = {
        "cosines": [1.0, 0.9, 0.8],
        "norms": [0.3, 4.0, 5.0],
        "frequencies": [0.1, 0.5, 0.75],
        "gradient": 2.0,
        "of_patch_bias": None,
    }
    figures = {
        "words": 70.0,
        "majority": 49.2,
        "probes": {"text": {"pretrained": [0.6, 0.5], "random": [0.5, 0.7]}},
        "states": [{"modality": "text", "weights": "random", **state}],
        "text": [pretrained, random],
        "by_heart": [],
    }
    written = page(figures, 800)
    assert "| 20 | 0.001 | random | 65.0 ± 7.1 (2) | 0.25 |" in written
    assert "| textgpt, text | random | 50.0 | 70.0 |" in written
    assert "| textgpt, text | random | 1.00 (0.3) | 0.90 (4.0) | 0.80 (5.0) | 2.0 | - |" in written
    assert "| textgpt, text | 0.10 | 0.50 | 0.75 |" in written
