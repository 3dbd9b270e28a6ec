"""What ``generate.py`` does: prompts in, text on the terminal or a picture out."""

import argparse
import sys
import time

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.generation.model import Model, open_model
from megatron_pixel.generation.ocr import read_page
from megatron_pixel.generation.pages import Stopping, write_patches
from megatron_pixel.generation.pictures import check_output, save_pages
from megatron_pixel.generation.prompts import Prompt
from megatron_pixel.generation.sampling import Sampling
from megatron_pixel.generation.tokens import write_tokens


def generate(options: argparse.Namespace) -> None:
    """Write on from the prompts.

    Raises:
        UserError: options that do not go together, and everything that is wrong with checkpoint or prompts.
    """
    writes_pixels = options.modality == "pixel"
    if writes_pixels and options.output is None:
        raise UserError("--modality pixel writes a picture: give --output page.png")
    if options.output is not None:
        if not writes_pixels:
            raise UserError("--output is a picture, and --modality text writes none: text goes to the terminal")
        check_output(options.output)
    for name in ("max_tokens", "max_patches"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be 1 or more")
    model = open_model(options.checkpoint, options.device, options.dtype, options.tokenizer, options.fonts)
    prompts = prompts_of(model, options)
    if writes_pixels:
        _write_pages(model, prompts, options)
    else:
        _write_text(model, prompts, options)


def prompts_of(model: Model, options: argparse.Namespace) -> list[Prompt]:
    """The prompts as the model reads them."""
    given = options.prompt_as or options.modality
    makers = {
        ("text", "text"): model.text_prompt,
        ("pixel", "pixel"): model.pixel_prompt,
        ("pixel", "text"): model.reading_prompt,
        ("text", "pixel"): model.drawing_prompt,
    }
    prompts = [makers[given, options.modality](text) for text in options.prompt]
    if given == "pixel":
        for note in model.notes():
            print(f"note: {note}", file=sys.stderr)
    return prompts


def _write_text(model: Model, prompts: list[Prompt], options: argparse.Namespace) -> None:
    sampling = Sampling(options.temperature, options.top_p, options.seed)
    stream = _Stream(model) if len(prompts) == 1 else None
    if stream is not None and options.prompt_as in (None, "text"):
        stream.begin(options.prompt[0], prompts[0].tokens[1:].tolist())
    start = time.perf_counter()
    written = write_tokens(
        model.decoder,
        prompts,
        sampling,
        options.max_tokens,
        model.tokenizer.eos_id,
        None if stream is None else stream.add,
    )
    seconds = time.perf_counter() - start
    if stream is not None:
        print(flush=True)
    else:
        for text, row in zip(options.prompt, written, strict=True):
            print(f"--- {text!r}\n{model.tokenizer.decode(row.tokens)}")
    count = sum(len(row.tokens) for row in written)
    reasons = ", ".join(dict.fromkeys(row.ended_by for row in written))
    print(f"{count:,} tokens in {seconds:.1f} s, {count / seconds:,.0f} a second; ended by {reasons}", file=sys.stderr)


class _Stream:
    """Text on the terminal as its tokens are drawn."""

    def __init__(self, model: Model) -> None:
        self._tokenizer = model.tokenizer
        self._tokens: list[int] = []
        self._shown = ""

    def begin(self, prompt: str, tokens: list[int]) -> None:
        """Show the prompt, which the first word may go on."""
        self._tokens = list(tokens)
        self._shown = self._tokenizer.decode(tokens)
        print(prompt, end="", flush=True)

    def add(self, row: int, token: int) -> None:
        """Show what one more token makes certain: a character of several byte tokens waits for its last one."""
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens).rstrip("\ufffd")
        if len(text) > len(self._shown):
            print(text[len(self._shown) :], end="", flush=True)
            self._shown = text


def _write_pages(model: Model, prompts: list[Prompt], options: argparse.Namespace) -> None:
    stopping = Stopping(options.max_patches, options.blank_patches)
    start = time.perf_counter()
    written = write_patches(model.decoder, prompts, stopping, options.contrast, _progress)
    seconds = time.perf_counter() - start
    shape = model.decoder.model
    size, channels = shape.patch_size, shape.num_channels
    pages = []
    for prompt, page in zip(prompts, written, strict=True):
        strip = page.patches if not len(prompt.patches) else np.concatenate([prompt.patches, page.patches])
        pages.append((strip.reshape(-1, size, size, channels), len(prompt.patches)))
    save_pages(pages, options.output, options.frame_every)
    count = sum(len(page.patches) for page in written)
    reasons = ", ".join(dict.fromkeys(page.ended_by for page in written))
    print(
        f"{options.output}: {count:,} patches in {seconds:.1f} s, {count / seconds:,.0f} a second; ended by {reasons}",
        file=sys.stderr,
    )
    if options.ocr:
        for strip, begin in pages:
            print(read_page(strip[begin:]))


def _progress(written: int, most: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if written == most else ""
        print(f"\r{written:,} of at most {most:,} patches", end=end, file=sys.stderr, flush=True)
