"""The Python interface, and the script that shows it."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_pixel.api import load
from megatron_pixel.config.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_the_tour_runs(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["api_tour.py", str(run)])
    runpy.run_path(str(ROOT / "examples" / "api_tour.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "embeddings (3, 32) (3, 32)" in shown
    assert "perplexity" in shown
    assert "uint8" in shown


def test_embeddings_are_those_of_the_last_position_and_of_all(run: Path) -> None:
    model = load(run)
    states = model._hidden("the congress", "text")
    torch.testing.assert_close(model.embed(["the congress"])[0], states[-1])
    torch.testing.assert_close(model.embed(["the congress"], pooling="mean")[0], states.mean(0))
    assert model.embed([]).shape == (0, 32)
    assert model.embed(["the congress"], modality="pixel").shape == (1, 32)
    assert model.logits("the", modality="pixel").shape[1] == 192


def test_a_page_is_its_prompt_and_what_follows(run: Path) -> None:
    model = load(run)
    page = model.draw("we", max_patches=3)
    prompt = model.parts.pixel_prompt("we").patches.reshape(-1, 8, 8, 3)
    assert np.array_equal(page[: len(prompt)], prompt)
    assert len(page) == len(prompt) + 3


def test_a_released_folder_opens_as_a_run_does(run: Path, exported: Path) -> None:
    ours, theirs = load(run), load(exported)
    torch.testing.assert_close(ours.embed(["the congress"]), theirs.embed(["the congress"]))
    assert ours.generate("the congress", 5) == theirs.generate("the congress", 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.embed(["the congress " * 30]), "the text has .* positions; the model reads 32: shorten it"),
        (lambda m: m.embed(["the congress " * 30], "pixel"), "does not fit on a page of 32 patches"),
        (lambda m: m.parts.decoder.head("score", torch.zeros(32)), "this model has no score head; it has token, patch"),
    ],
)
def test_what_cannot_be(call: object, message: str, run: Path) -> None:
    with pytest.raises(UserError, match=message):
        call(load(run))  # type: ignore[operator]


def test_settings_that_cannot_be(run: Path) -> None:
    with pytest.raises(UserError, match="--dtype fp8 is none of"):
        load(run, dtype="fp8")
