"""The loop that writes pages: un-normalized by the stated rule, each patch seen by the next, and where it ends."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from megatron_pixel.config.errors import UserError
from megatron_pixel.generation import ocr
from megatron_pixel.generation.decoder import Decoder
from megatron_pixel.generation.model import Model, open_model
from megatron_pixel.generation.pages import Stopping, write_patches
from megatron_pixel.generation.pictures import page_picture, save_pages
from megatron_pixel.generation.pixels import DEVIATION, Unnormalizer, prompt_deviation
from megatron_pixel.generation.prompts import Prompt


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return open_model(run)


def test_the_rule_makes_ground_white_and_takes_its_contrast_from_the_prompt() -> None:
    prediction = torch.linspace(-2, 1, 100)[None]
    pixels = Unnormalizer("normalised", torch.tensor([0.25]))(prediction)[0].float() / 255
    expected = (1 + 0.25 * (prediction[0] - prediction[0].quantile(0.85))).clamp(0, 1)
    torch.testing.assert_close(pixels, expected, atol=0.5 / 255 + 1e-6, rtol=0)
    assert (pixels == 1).sum() == 16  # those at the ground and above it; of 100, the 85th percentile lies between two
    nothing = Unnormalizer("normalised", torch.tensor([0.3]))(torch.zeros(1, 192))
    assert (nothing == 255).all()


def test_a_text_patch_comes_back_nearly_as_it_was(model: Model) -> None:
    """Normalized by its own mean and deviation, un-normalized by the rule: what is lost is small for text."""
    page = model.page("the congress of the united", 32)[:-1]
    pixels = torch.from_numpy(page).float() / 255
    variance, mean = torch.var_mean(pixels, -1, keepdim=True)
    normalized = (pixels - mean) / (variance + 1e-6).sqrt()
    deviation = torch.full((len(page),), prompt_deviation(page))
    back = Unnormalizer("normalised", deviation)(normalized).float() / 255
    assert (back - pixels).abs().mean() < 0.1 < (1 - pixels).abs().mean()


def test_contrast_of_a_prompt() -> None:
    half = np.zeros((1, 192), np.uint8)
    half[:, ::2] = 255
    blank = np.full((3, 192), 255, np.uint8)
    assert prompt_deviation(np.concatenate([half, blank])) == pytest.approx(half.std(ddof=1) / 255)
    assert prompt_deviation(blank) == DEVIATION
    assert prompt_deviation(np.empty((0, 192), np.uint8)) == DEVIATION


def test_a_raw_prediction_is_taken_as_it_is() -> None:
    pixels = Unnormalizer("raw", torch.tensor([0.0]))(torch.tensor([[-0.2, 0.0, 0.5, 1.0, 3.0]]))
    assert pixels.tolist() == [[0, 0, 128, 255, 255]]


def test_every_patch_is_seen_by_those_after_it(model: Model) -> None:
    prompt = model.pixel_prompt("the congress")
    assert prompt.patches.any(axis=1).all()  # the black end patch is not there
    written = write_patches(model.decoder, [prompt], Stopping(5, blank_patches=0))[0].patches
    deviation = torch.tensor([prompt_deviation(prompt.patches)])
    page = prompt.patches
    for patch in written:
        row = Prompt(page)
        hidden = model.decoder.forward(row.embedded(model.decoder)[None], row.position_ids()[None])
        expected = Unnormalizer("normalised", deviation)(model.decoder.head("patch", hidden[:, -1]))[0]
        assert (expected.int() - torch.from_numpy(patch).int()).abs().max() <= 1
        page = np.concatenate([page, patch[None]])


def test_a_batch_gives_what_each_prompt_gives_alone(model: Model) -> None:
    prompts = [model.pixel_prompt(text) for text in ("we", "the congress of")]
    together = write_patches(model.decoder, prompts, Stopping(4, 0))
    for prompt, row in zip(prompts, together, strict=True):
        alone = write_patches(model.decoder, [prompt], Stopping(4, 0))[0]
        assert np.abs(row.patches.astype(int) - alone.patches.astype(int)).max() <= 1


class Scripted(Decoder):
    """A decoder whose pixel head says what a script says, patch after patch."""

    def __init__(self, decoder: Decoder, script: torch.Tensor, target: str) -> None:
        self.__dict__ |= vars(decoder)
        self.model = replace(decoder.model, patch_target=target)
        self._script = iter(script)

    def head(self, name: str, hidden: torch.Tensor) -> torch.Tensor:
        return next(self._script)


def test_a_normalized_page_ends_after_blank_predictions(model: Model) -> None:
    sizes = torch.tensor([[1, 1], [0.1, 1], [1, 0.1], [0.1, 0.1], [0.1, 0.1], [0.1, 0.1], [1, 0.1], [1, 1]])
    script = torch.randn(8, 2, 192, generator=torch.Generator().manual_seed(0)).sign() * sizes[..., None]
    prompts = [model.pixel_prompt("we"), model.pixel_prompt("we")]
    pages = write_patches(Scripted(model.decoder, script, "normalised"), prompts, Stopping(8, 3))
    assert [(len(page.patches), page.ended_by) for page in pages] == [(3, "blank patches"), (2, "blank patches")]
    pages = write_patches(Scripted(model.decoder, script, "normalised"), prompts, Stopping(8, 0))
    assert [(len(page.patches), page.ended_by) for page in pages] == [(8, "length"), (8, "length")]


def test_a_raw_page_ends_at_a_black_patch(model: Model) -> None:
    script = torch.full((6, 2, 192), 0.9)
    script[2, 0] = 0.05
    script[4, 1] = 0.05
    prompts = [model.pixel_prompt("we"), model.pixel_prompt("we")]
    pages = write_patches(Scripted(model.decoder, script, "raw"), prompts, Stopping(6))
    assert [(len(page.patches), page.ended_by) for page in pages] == [(3, "black patch"), (5, "black patch")]
    assert pages[0].patches[-1].max() < 20


def test_a_prompt_too_long_for_the_context(model: Model) -> None:
    with pytest.raises(UserError, match=r"the prompt does not fit on a page of 32 patches: \d+ of its \d+ characters"):
        model.pixel_prompt("the congress of the united states " * 4)
    with pytest.raises(UserError, match="--blank-patches -1: must be 0 or more"):
        write_patches(model.decoder, [model.pixel_prompt("we")], Stopping(3, -1))


def test_pictures_show_prompt_and_continuation(tmp_path: Path) -> None:
    patches = np.full((7, 8, 8, 3), 200, np.uint8)
    picture = np.asarray(page_picture(patches, 3, patches_per_row=4, scale=1))
    assert picture.shape == (2 * 14, 32, 3)
    accent = (picture == (214, 84, 30)).all(-1)
    assert accent[:14].any(0).tolist() == [False] * 24 + [True] * 8  # patch 3 of the first row
    assert accent[14:].any(0).tolist() == [True] * 24 + [False] * 8
    for name, frames in (("a.png", 1), ("a.gif", 3), ("a.webp", 3), ("a.apng", 3)):
        patches[3:] = np.arange(4, dtype=np.uint8)[:, None, None, None] * 40
        save_pages([(patches, 3)], tmp_path / name, every=2, scale=1)
        with Image.open(tmp_path / name) as image:
            assert getattr(image, "n_frames", 1) == frames
            image.seek(frames - 1)
            assert np.asarray(image.convert("RGB"))[3, 50].tolist() == [120, 120, 120]
    with pytest.raises(UserError, match=r"pictures end in \.png"):
        save_pages([(patches, 3)], tmp_path / "a.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.apng", "a.gif", "a.png", "a.webp"]


def test_reading_a_page_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rapidocr_onnxruntime", None)
    with pytest.raises(UserError, match="pip install rapidocr-onnxruntime"):
        ocr.read_page(np.zeros((1, 8, 8, 3), np.uint8))


def test_reading_a_page_with_the_package() -> None:
    pytest.importorskip("rapidocr_onnxruntime", reason="rapidocr-onnxruntime is not installed")
    from megatron_pixel.config.schema import RenderingConfig
    from megatron_pixel.rendering.renderer import Renderer

    page = Renderer(RenderingConfig()).render("The Congress of the United States").patches(3)
    assert "congress" in ocr.read_page(page).lower().replace(" ", "")
