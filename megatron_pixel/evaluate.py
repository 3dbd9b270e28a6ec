"""What a trained model has learnt. ``python megatron_pixel/evaluate.py --help`` explains everything."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.parallel.quiet import silence_libraries

DESCRIPTION = """\
Evaluate a run.

  python megatron_pixel/evaluate.py heldout --run runs/demo

reads the run's newest whole checkpoint and its held-out rows on one process and shows
  - the loss of each kind of row, beside what a model without context reaches on the same targets:
    the unigram entropy of the tokens, one constant patch, the best linear map from the previous patch;
  - for pairs, the token loss with the right image and with the image of another text: does the model read?
and writes the figures to RUN/baselines.json and a held-out page with its predictions to RUN/heldout.png."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="heldout")
    heldout = commands.add_parser("heldout", help="losses, baselines and a picture on the held-out rows")
    heldout.add_argument("--run", type=Path, required=True, help="folder of the run")
    heldout.add_argument("--checkpoint", type=Path, help="checkpoint folder (default: the run's newest whole one)")
    heldout.add_argument("--rows", type=int, help="held-out rows of each kind (default: the run's evaluation.rows)")
    heldout.add_argument("--output", type=Path, help="folder for the results (default: the run's)")
    return parser.parse_args()


def main() -> None:
    """Parse, evaluate, write, show."""
    options = arguments()
    with exit_on_user_error():
        silence_libraries()
        from megatron_pixel.training.heldout import evaluate_run

        report, picture = evaluate_run(options.run, options.checkpoint, options.rows)
        folder = options.output or options.run
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "baselines.json").write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
        print(report.table())
        print(f"figures         {folder / 'baselines.json'}")
        if picture is not None:
            picture.save(folder / "heldout.png", optimize=True)
            print(f"picture         {folder / 'heldout.png'}: a held-out page, its predictions, their errors")


if __name__ == "__main__":
    main()
