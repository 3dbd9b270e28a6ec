"""``show.py --checkpoint``: what a model predicts for a page, and what its patches look at, beside a plain oracle."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.drawing import prediction_sheet, unnormalise
from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.open import open_any
from megatron_pixel.model_pictures import attention_sheet
from megatron_pixel.rendering.renderer import Renderer
from tests.interop.helpers import SMALL, full_tensors, write_canonical
from tests.interop.plain import Plain

TEXT = "the congress met"
LAYER = 1


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shown") / "run"
    write_canonical(folder, SMALL, full_tensors(SMALL))
    return folder


def predictions_and_attention(run: Path, page: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the pixel head says after each patch, and the attention of the first layer, mean over its heads."""
    to_hf(open_any(run), run.parent / "released", ExportOptions())
    plain = Plain(run.parent / "released")
    embedded = plain.patches(torch.from_numpy(page).permute(3, 1, 0, 2).flatten(2).float() / 255)
    n, heads, width = len(page), SMALL.heads, SMALL.hidden // SMALL.heads
    positions = torch.arange(n)
    states = plain.hidden(embedded, positions, torch.ones(n, dtype=torch.bool))
    normed = plain._norm(embedded, "model.layers.0.input_layernorm.weight")
    query, key = (normed @ plain.weights[f"model.layers.0.self_attn.{part}_proj.weight"].T for part in "qk")
    total = torch.zeros(n, n)
    for head in range(heads):
        group = head * SMALL.kv_heads // heads
        q, k = (
            plain._turned(rows[:, i * width : (i + 1) * width], positions) for rows, i in ((query, head), (key, group))
        )
        hidden = torch.ones(n, n, dtype=torch.bool).triu(1)
        total += (q @ k.T / width**0.5).masked_fill(hidden, -torch.inf).softmax(-1)
    return plain.head("lm_pixel_head", states).numpy(), (total / heads).numpy()


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGB")).astype(int)


def test_predictions_and_attention_are_those_of_the_model(tool, run, font, tmp_path):
    output = tmp_path / "page.png"
    words = ["--rendering.patch_size", 8, "--rendering.font_size", 4, "--rendering.fonts", font, "--output", output]
    result = tool("show", "--text", TEXT, "--checkpoint", run, "--attention", LAYER, *words)
    assert result.status == 0, result.err
    config = RenderingConfig(patch_size=8, font_size=4, fonts=[str(font)])
    page = Renderer(config).pages(TEXT)[0].patches(3)
    predicted, attention = predictions_and_attention(run, page)

    values = page.reshape(len(page), -1).astype(np.float64) / 255
    targets = (values - values.mean(1, keepdims=True)) / np.sqrt(values.var(1, ddof=1, keepdims=True) + 1e-6)
    errors = np.append(np.nan, np.square(predicted[:-1] - targets[1:]).mean(1))
    told = re.search(rf"{len(page)} patches, mean error ([\d.]+)", result.out)
    assert told is not None, result.out
    assert float(told[1]) == pytest.approx(errors[1:].mean(), rel=1e-3)

    shown = np.zeros_like(page)
    shown[1:] = unnormalise(predicted[:-1], page[1:]).clip(0, 255).round()
    title = f"{run}, step 3: text 0"
    expected = pixels(prediction_sheet(page, shown, errors.astype(np.float32), title, patches_per_row=48))
    found = pixels(Image.open(output))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.1
    expected = pixels(attention_sheet(page, attention, f"{title}, attention of layer {LAYER}"))
    found = pixels(Image.open(tmp_path / "page.attention.png"))
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 0.5


def test_requests_that_cannot_be(tool, run, font, tmp_path):
    def refused(*words: object) -> str:
        result = tool("show", "--text", TEXT, "--rendering.fonts", font, *words)
        assert result.status == 2
        return result.err

    output = ("--output", tmp_path / "x.png")
    small = ("--rendering.patch_size", 8, "--rendering.font_size", 4)
    assert "the model has layers 1 to 2" in refused("--checkpoint", run, "--attention", 3, *output, *small)
    assert "the model reads 8-pixel patches" in refused("--checkpoint", run, *output)
    assert "--attention needs the --checkpoint" in refused("--attention", 1, *output)
    assert "it needs --output" in refused("--checkpoint", run)
    assert "is no checkpoint" in refused("--checkpoint", tmp_path, *output)
    assert not (tmp_path / "x.png").exists()
