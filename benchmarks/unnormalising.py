#!/usr/bin/env python
"""What does it cost that a normalized prediction says neither brightness nor contrast?

    python benchmarks/unnormalising.py runs/demo
    python benchmarks/unnormalising.py runs/demo --json benchmarks/results/unnormalising.json

The predictions of a run's newest checkpoint on its held-out pages, each patch predicted from the true ones before it,
as pixels by several rules: with the mean and deviation of the true patch, which generation does not know; by the rule
of ``generate.py``; by the mean and deviation of the page's average patch; by those of the patch before. Beside them a
page of white. Errors are mean squares of pixels in 0..1; ``ink`` is the mean darkness of the pages, ``contrast`` the
mean deviation within a patch; the true ones come last. Run it from the folder that the run was started in, as its
datasets are named from there.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch import Tensor

from benchmarks import result_file
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.loader import load_config
from megatron_pixel.data.mixture import open_heldout
from megatron_pixel.data.rows import Kind, Modality
from megatron_pixel.generation.model import open_model
from megatron_pixel.generation.pixels import Unnormalizer, prompt_deviation


def predictions(run: Path, pages: int) -> list[tuple[Tensor, np.ndarray]]:
    """Of each held-out page: predictions [n - 1, d] of its patches from the second on, and the page, uint8 [n, d]."""
    config = load_config(run / "config.yaml", [])
    config.evaluation.rows = pages
    decoder = open_model(run).decoder
    if decoder.model.patch_target != "normalised":
        raise UserError(f"{run} predicts raw pixels: there is nothing to estimate")
    reader = open_heldout(config.data, config.model, config.pair, config.training, config.evaluation)
    found = []
    for batch in reader.batches(Kind.PIXEL):
        assert batch.patches is not None
        for modality, patches in zip(batch.modality, batch.patches, strict=True):
            page = patches[modality == Modality.PATCH]
            if len(page) > 2:
                with torch.inference_mode():
                    embedded = decoder.embed_patches(torch.from_numpy(page))[None]
                    hidden = decoder.forward(embedded, torch.arange(len(page))[None])[0]
                    found.append((decoder.head("patch", hidden)[:-1], page))
    if not found:
        raise UserError(f"{run} has no held-out pages")
    return found


def by_rules(predicted: Tensor, page: np.ndarray) -> dict[str, Tensor]:
    """Pixels [n - 1, d] in 0..1 by rule."""
    pixels = torch.from_numpy(page).float() / 255
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    deviation = (variance + 1e-6).sqrt()
    ours = Unnormalizer("normalised", torch.full((len(predicted),), prompt_deviation(page)))
    return {
        "the true patch": predicted * deviation[1:] + mean[1:],
        "generate.py": ours(predicted).float() / 255,
        "the average patch": predicted * deviation.mean() + mean.mean(),
        "the patch before": predicted * deviation[:-1] + mean[:-1],
        "white": torch.ones_like(predicted),
    }


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run that has trained on pages")
    parser.add_argument("--pages", type=int, default=64, help="held-out pages at the most (default: %(default)s)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    with exit_on_user_error():
        pages = predictions(arguments.run, arguments.pages)
    made: dict[str, list[Tensor]] = {}
    for predicted, page in pages:
        for name, pixels in by_rules(predicted, page).items():
            made.setdefault(name, []).append(pixels.clamp(0, 1))
    true = torch.cat([torch.from_numpy(page[1:]).float() / 255 for _, page in pages])
    rules: dict[str, Any] = {}
    for name, parts in made.items():
        pixels = torch.cat(parts)
        rules[name] = {
            "error": (pixels - true).square().mean().item(),
            "ink": (1 - pixels).mean().item(),
            "contrast": pixels.std(-1).mean().item(),
        }
    figures: dict[str, Any] = {"pages": len(pages), "patches": len(true), "rules": rules}
    figures["true"] = {"ink": (1 - true).mean().item(), "contrast": true.std(-1).mean().item()}
    print(f"{len(pages)} pages, {len(true):,} patches\n{'':20}{'error':>9}{'ink':>9}{'contrast':>10}")
    for name, found in rules.items():
        print(f"{name:20}{found['error']:9.4f}{found['ink']:9.3f}{found['contrast']:10.3f}")
    print(f"{'true pages':20}{'':9}{figures['true']['ink']:9.3f}{figures['true']['contrast']:10.3f}")
    result_file.write(arguments.json, figures, ("torch",))


if __name__ == "__main__":
    main()
