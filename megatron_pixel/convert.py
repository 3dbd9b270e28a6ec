"""Checkpoints from one form into another. ``python megatron_pixel/convert.py --help`` explains everything."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.parallel.quiet import silence_libraries

DESCRIPTION = """\
Convert checkpoints.

  python megatron_pixel/convert.py reshard CHECKPOINT OUT   whole fp32 tensors and both AdamW moments, a file each
  python megatron_pixel/convert.py to-hf CHECKPOINT OUT     the released Hugging Face layout, or plain Llama's
  python megatron_pixel/convert.py from-hf FOLDER OUT       a released checkpoint as one that any layout resumes from

All of them read and write tensor by tensor, whatever the size of the model, check before they write, and leave either
all of the result or nothing. COMMAND --help says more."""

RESHARD = """\
Write the canonical form of a checkpoint to OUT/step-...: every weight and both AdamW moments as whole fp32 tensors, a
file each. Any layout resumes from it: any tensor, pipeline and data-parallel size, ZeRO stage, offload and precision.

A run needs no conversion when its layout changes: it reads the full tensors out of its checkpoint as it resumes.
Convert to keep a checkpoint for long, to hand it on, or to look into it: torch.load("OUT/step-.../zero/NAME/fp32.pt").

One process; memory for about one tensor, however large the model; time to read the checkpoint twice (once for its
hashes) and to write it. Nothing is overwritten.

examples:
  the newest checkpoint of a run, for a run of another layout
    python megatron_pixel/convert.py reshard runs/demo runs/wide/checkpoints
    torchrun --nproc-per-node 2 megatron_pixel/pretrain.py --config runs/demo/config.yaml --run.dir runs/wide
  one checkpoint, to keep
    python megatron_pixel/convert.py reshard runs/demo/checkpoints/step-00000400 archive/demo"""

TO_HF = """\
Write a checkpoint of any layout of processes to OUT in the layout of the released models: safetensors in files of at
most --shard-gb, config.json, the tokenizer, a modelling file with which transformers loads it
(trust_remote_code=True), and a model card written from the run. Pretraining models and classifiers.

With --layout llama a TextGPT becomes a plain Llama, which transformers and others load without remote code; the patch
embedder and the pixel head, which it has no place for, stay behind.

examples:
    python megatron_pixel/convert.py to-hf runs/demo exported/demo
    python megatron_pixel/convert.py to-hf runs/textgpt/checkpoints/step-00010000 exported/textgpt \\
      --layout llama --dtype bf16"""

FROM_HF = """\
Write a released checkpoint (model_type ernie-pixel) or a plain Llama (model_type llama) to OUT/step-00000000 in
canonical form, bit for bit. Any layout resumes from it; a run that does so begins at step 1 with these weights.

A plain Llama becomes a TextGPT, whose patch embedder and pixel head are drawn anew.

examples:
    python megatron_pixel/convert.py from-hf pixelgpt-released runs/released
    python megatron_pixel/pretrain.py --config runs/released/step-00000000/config.yaml --print-config"""


def arguments() -> argparse.Namespace:
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="reshard|to-hf|from-hf")
    checkpoint = "a checkpoint folder (step-00000120 and the like), or a run's folder for its newest whole checkpoint"
    reshard = commands.add_parser(
        "reshard", help="a checkpoint of any layout as full tensors", description=RESHARD, formatter_class=layout
    )
    reshard.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=checkpoint)
    reshard.add_argument("out", type=Path, metavar="OUT", help="folder to put it in; made if it is not there")
    to_hf = commands.add_parser(
        "to-hf", help="a checkpoint in the released layout", description=TO_HF, formatter_class=layout
    )
    to_hf.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=checkpoint)
    to_hf.add_argument("out", type=Path, metavar="OUT", help="folder to write; must not be there")
    to_hf.add_argument("--layout", choices=("released", "llama"), default="released", help="default: released")
    to_hf.add_argument(
        "--dtype",
        choices=("fp32", "bf16", "fp16"),
        help="precision of the weights (default: the one an imported checkpoint came in, else fp32, as trained)",
    )
    to_hf.add_argument("--shard-gb", type=float, default=5.0, help="largest file in GB (default: 5)")
    to_hf.add_argument("--tokenizer", type=Path, help="tokenizer.model (default: the one the run was trained with)")
    from_hf = commands.add_parser(
        "from-hf", help="a released checkpoint as one of ours", description=FROM_HF, formatter_class=layout
    )
    from_hf.add_argument("folder", type=Path, metavar="FOLDER", help="folder with config.json and safetensors")
    from_hf.add_argument("out", type=Path, metavar="OUT", help="folder to put step-00000000 in")
    return parser.parse_args()


class Progress:
    """What is done and how fast, on one line of a terminal, or every ten seconds where it is none."""

    def __init__(self) -> None:
        self._what, self._start, self._shown = "", 0.0, 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` bytes are checked or written."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._start, self._shown = what, now, now
        terminal = sys.stderr.isatty()
        if done < total and now - self._shown < (0.1 if terminal else 10):
            return
        self._shown = now
        speed = done / max(now - self._start, 1e-3) / 1e6
        line = f"{what} {done / 1e6:,.0f} of {total / 1e6:,.0f} MB, {speed:,.0f} MB/s"
        print(f"\r\033[K{line}" if terminal else line, end="" if terminal and done < total else "\n", file=sys.stderr)


def reshard(options: argparse.Namespace) -> None:
    """Any layout to full tensors."""
    from megatron_pixel.training.checkpoint_files import step_of
    from megatron_pixel.training.resharding import reshard
    from megatron_pixel.training.weights import newest_whole

    checkpoint = options.checkpoint
    if not checkpoint.is_dir():
        raise UserError(f"there is no folder {checkpoint}")
    if step_of(checkpoint.resolve()) is None:
        inner = checkpoint / "checkpoints"
        _, checkpoint = newest_whole(inner if inner.is_dir() else checkpoint)
    print(f"{checkpoint} -> {reshard(checkpoint.resolve(), options.out, Progress())}")


def to_hf(options: argparse.Namespace) -> None:
    """Ours to the released layout."""
    from megatron_pixel.interop.exporting import ExportOptions, to_hf
    from megatron_pixel.interop.open import open_any

    if not options.shard_gb > 0:
        raise UserError(f"--shard-gb {options.shard_gb}: must be above 0")
    checkpoint = open_any(options.checkpoint)
    wanted = ExportOptions(options.layout, options.dtype or "", round(options.shard_gb * 1e9), options.tokenizer)
    lines = to_hf(checkpoint, options.out, wanted, Progress())
    print("\n  ".join([f"{checkpoint.folder} -> {options.out}", *lines]))


def from_hf(options: argparse.Namespace) -> None:
    """The released layout to ours."""
    from megatron_pixel.interop.importing import from_hf
    from megatron_pixel.interop.source import open_released

    if not options.folder.is_dir():
        raise UserError(f"there is no folder {options.folder}")
    folder, lines = from_hf(open_released(options.folder), options.out, Progress())
    print("\n  ".join([f"{options.folder} -> {folder}", *lines]))


def main() -> None:
    """Parse, convert, show."""
    options = arguments()
    with exit_on_user_error():
        silence_libraries()
        {"reshard": reshard, "to-hf": to_hf, "from-hf": from_hf}[options.command](options)


if __name__ == "__main__":
    main()
