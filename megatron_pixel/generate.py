"""Go on from a prompt, in text or in pixels. ``python megatron_pixel/generate.py --help`` explains everything."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.parallel.quiet import silence_libraries

DESCRIPTION = """\
Go on from a prompt.

  --modality text     reads tokens and writes tokens, to the terminal as they are drawn
  --modality pixel    renders the prompt, and writes the page on, patch by patch; --output takes a PNG, or an animated
                      picture (.gif, .webp, .apng) in which it is written
  --prompt-as         what the prompt is given as, where it is not what is written: a page whose text is read aloud
                      (--prompt-as pixel --modality text: the pair rows of DualGPT), or text that pixels follow

A checkpoint is a run's folder (its newest whole checkpoint), a folder step-..., or a folder in the released Hugging
Face layout or plain Llama's."""

EXAMPLES = """\
examples:
  text, the likeliest tokens
    python megatron_pixel/generate.py --checkpoint runs/demo --prompt "The Congress" --modality text
  text, drawn
    python megatron_pixel/generate.py --checkpoint runs/demo --prompt "The Congress" --modality text \\
      --temperature 0.8 --top-p 0.95 --seed 7
  a page and its writing
    python megatron_pixel/generate.py --checkpoint runs/demo --prompt "The Congress of the" --modality pixel \\
      --max-patches 32 --output page.png
    python megatron_pixel/generate.py --checkpoint runs/demo --prompt "The Congress of the" --modality pixel \\
      --max-patches 32 --output page.gif
  the text of a page
    python megatron_pixel/generate.py --checkpoint runs/demo --prompt "The Congress" \\
      --prompt-as pixel --modality text"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of a run or of a checkpoint")
    parser.add_argument("--prompt", action="append", required=True, help="what to go on from; several make a batch")
    parser.add_argument("--modality", choices=("text", "pixel"), required=True, help="what is written")
    parser.add_argument("--prompt-as", choices=("text", "pixel"), help="what is read (default: as --modality)")
    parser.add_argument("--output", type=Path, help="picture to write (required with --modality pixel)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    text = parser.add_argument_group("text")
    text.add_argument("--max-tokens", type=int, help="tokens to write at the most (default: to the end of the context)")
    text.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default: 0)")
    text.add_argument("--top-p", type=float, default=1.0, help="draw among the likeliest of this probability")
    pixel = parser.add_argument_group("pixels")
    pixel.add_argument(
        "--max-patches", type=int, help="patches to write at the most (default: to the end of the context)"
    )
    pixel.add_argument(
        "--blank-patches", type=int, default=4, help="end after so many predictions close to zero; 0 never (default: 4)"
    )
    pixel.add_argument(
        "--contrast", type=float, default=1.0, help="factor on the estimated contrast of predictions (default: 1)"
    )
    pixel.add_argument("--frame-every", type=int, default=1, help="patches between two frames (default: 1)")
    pixel.add_argument("--ocr", action="store_true", help="also print what an OCR package reads from the page")
    model = parser.add_argument_group("model")
    model.add_argument("--tokenizer", type=Path, help="tokenizer.model (default: the one the model was trained with)")
    model.add_argument("--fonts", nargs="+", default=[], help="font files (default: the renderer's own)")
    model.add_argument("--device", help="such as cuda:1 (default: a GPU where there is one)")
    model.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="default: bf16 on a GPU, fp32 elsewhere")
    return parser.parse_args()


def main() -> None:
    """Parse, open, write."""
    options = arguments()
    with exit_on_user_error():
        silence_libraries()
        from megatron_pixel.generation.command import generate

        generate(options)


if __name__ == "__main__":
    main()
