"""Checkpoints from one form into another. ``python megatron_pixel/convert.py --help`` explains everything."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import UserError, exit_on_user_error

DESCRIPTION = """\
Convert checkpoints.

  python megatron_pixel/convert.py reshard CHECKPOINT OUT

writes the canonical form of a checkpoint to OUT/step-...: every weight and both AdamW moments as whole fp32 tensors, a
file each. Any layout resumes from it: any tensor, pipeline and data-parallel size, ZeRO stage, offload and precision.

A run needs no conversion when its layout changes: it reads the full tensors out of its checkpoint as it resumes.
Convert to keep a checkpoint for long, to hand it on, or to look into it: torch.load("OUT/step-.../zero/NAME/fp32.pt").

examples:
  the newest checkpoint of a run, for a run of another layout
    python megatron_pixel/convert.py reshard runs/demo runs/wide/checkpoints
    torchrun --nproc-per-node 2 megatron_pixel/pretrain.py --config runs/demo/config.yaml --run.dir runs/wide
  one checkpoint, to keep
    python megatron_pixel/convert.py reshard runs/demo/checkpoints/step-00000400 archive/demo"""

RESHARD = """\
Write the canonical form of a checkpoint. One process; memory for about one tensor, however large the model; time to
read the checkpoint twice (once for its hashes) and to write it. Nothing is overwritten."""


def arguments() -> argparse.Namespace:
    """The command line."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=layout)
    commands = parser.add_subparsers(dest="command", required=True, metavar="reshard")
    reshard = commands.add_parser(
        "reshard", help="a checkpoint of any layout as full tensors", description=RESHARD, formatter_class=layout
    )
    reshard.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint folder (step-00000120 and the like), or a run's folder for its newest whole checkpoint",
    )
    reshard.add_argument("out", type=Path, metavar="OUT", help="folder to put it in; made if it is not there")
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


def main() -> None:
    """Parse, convert, show."""
    options = arguments()
    with exit_on_user_error():
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


if __name__ == "__main__":
    main()
