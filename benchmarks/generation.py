#!/usr/bin/env python
"""How fast is generation: with its key-value cache, without it, and against ``transformers``?

    python benchmarks/generation.py
    python benchmarks/generation.py --json benchmarks/results/generation.json

One model with random weights; a prompt of 16 positions, written on to 512. ``uncached`` reads the whole row anew for
every position. ``transformers`` is ``LlamaForCausalLM.generate`` on the same weights, exported as plain Llama: greedy,
with its own cache; its tokens are compared with ours. Everything runs on one thread, in turns, and times are processor
time, so that other work on the machine hits all of them alike. Figures are medians.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor

from benchmarks import result_file
from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.generation.decoder import Decoder
from megatron_pixel.generation.pages import Stopping, write_patches
from megatron_pixel.generation.pixels import Unnormalizer, prompt_deviation
from megatron_pixel.generation.prompts import Prompt
from megatron_pixel.generation.sampling import Sampling
from megatron_pixel.generation.tokens import write_tokens
from megatron_pixel.interop.config_json import config_json
from megatron_pixel.interop.names import parameters
from megatron_pixel.interop.safetensors import FileWriter, Planned

PROMPT = 16


def weights_of(model: ModelConfig) -> dict[str, Tensor]:
    """Random ones; large enough that greedy tokens are no ties."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for parameter in parameters(model, "released"):
        values = torch.randn(parameter.shape, generator=generator)
        found[parameter.name] = torch.ones(parameter.shape) if "norm" in parameter.name else values * 0.05
    return found


def as_llama(model: ModelConfig, weights: dict[str, Tensor], folder: Path) -> Any:
    """The same weights in ``transformers``, through a folder as ``convert.py to-hf --layout llama`` writes it."""
    import json

    from transformers import AutoModelForCausalLM

    wanted = [(part, weights[p.name]) for p in parameters(model, "llama") for part in p.parts]
    with FileWriter(
        folder / "model.safetensors", [Planned(part.name, "fp32", part.shape) for part, _ in wanted]
    ) as file:
        for part, values in wanted:
            file.write(part.name, part.view(values))
    from megatron_pixel.config.schema import PairConfig

    (folder / "config.json").write_text(json.dumps(config_json("llama", model, PairConfig(), "float32", {})))
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def uncached_tokens(decoder: Decoder, prompt: Prompt, count: int) -> list[int]:
    """Greedy, the whole row read for every token."""
    row = torch.from_numpy(prompt.tokens)
    with torch.inference_mode():
        for _ in range(count):
            hidden = decoder.forward(decoder.embed_tokens(row)[None], torch.arange(len(row))[None])
            row = torch.cat([row, decoder.head("token", hidden[:, -1]).argmax(-1)])
    return row[len(prompt) :].tolist()


def uncached_patches(decoder: Decoder, prompt: Prompt, count: int) -> Tensor:
    """The whole page read for every patch."""
    page = torch.from_numpy(prompt.patches)
    pixels = Unnormalizer(decoder.model.patch_target, torch.tensor([prompt_deviation(prompt.patches)]))
    with torch.inference_mode():
        for _ in range(count):
            hidden = decoder.forward(decoder.embed_patches(page)[None], torch.arange(len(page))[None])
            page = torch.cat([page, pixels(decoder.head("patch", hidden[:, -1]))])
    return page


def in_turns(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each; one after another, ``repeats`` times."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = time.process_time()
            work()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=512, help="prompt and continuation (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=4, help="of the model (default: %(default)s)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the model (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    width, count = arguments.hidden, arguments.positions - PROMPT
    model = ModelConfig(
        arguments.layers, width, width // 64, max(width // 128, 1), width * 11 // 4, 8000, arguments.positions
    )
    weights = weights_of(model)
    decoder = Decoder(model, weights.__getitem__, set(weights))
    generator = torch.Generator().manual_seed(1)
    text = Prompt(tokens=torch.randint(3, 8000, (PROMPT,), generator=generator).numpy())
    page = Prompt(patches=torch.randint(0, 256, (PROMPT, 768), generator=generator, dtype=torch.uint8).numpy())
    with TemporaryDirectory() as folder:
        llama = as_llama(model, weights, Path(folder))
    ids = torch.from_numpy(text.tokens)[None]
    options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}

    def theirs() -> list[int]:
        return llama.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, PROMPT:].tolist()

    def ours() -> list[int]:
        return write_tokens(decoder, [text], Sampling(), count)[0].tokens

    same = sum(a == b for a, b in zip(ours(), theirs(), strict=True))
    seconds = in_turns(
        {
            "cached tokens": ours,
            "transformers": theirs,
            "uncached tokens": lambda: uncached_tokens(decoder, text, count),
            "cached patches": lambda: write_patches(decoder, [page], Stopping(count, 0)),
            "uncached patches": lambda: uncached_patches(decoder, page, count),
        },
        arguments.repeats,
    )
    figures = {
        "model": {"layers": model.layers, "hidden": model.hidden, "ffn": model.ffn, "vocab_size": model.vocab_size},
        "positions": arguments.positions,
        "processor_seconds": seconds,
        "cached_over_uncached_tokens": seconds["uncached tokens"] / seconds["cached tokens"],
        "cached_over_uncached_patches": seconds["uncached patches"] / seconds["cached patches"],
        "ours_over_transformers": seconds["transformers"] / seconds["cached tokens"],
        "same_tokens_as_transformers": same / count,
    }
    for name, value in seconds.items():
        print(f"{name:18}{value:8.2f} s{count / value:10,.0f} a second")
    print(f"cache: {figures['cached_over_uncached_tokens']:.1f} times the tokens of the uncached loop, "
          f"{figures['cached_over_uncached_patches']:.1f} times the patches")  # fmt: skip
    print(f"transformers' generate takes {figures['ours_over_transformers']:.2f} times as long as ours; "
          f"{figures['same_tokens_as_transformers']:.0%} of the tokens are the same")  # fmt: skip
    result_file.write(arguments.json, figures, ("torch", "transformers"))


if __name__ == "__main__":
    main()
