"""What a trained model has learnt. ``python megatron_pixel/evaluate.py --help`` explains everything."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.parallel.quiet import silence_libraries

DESCRIPTION = """\
Evaluate models, or gather what evaluations found.

  python megatron_pixel/evaluate.py heldout --run runs/demo          losses on held-out rows, and baselines
  python megatron_pixel/evaluate.py table --runs runs/search         the paper's tables with our rows beside its own
"""

HELDOUT = """\
Reads the run's newest whole checkpoint and its held-out rows on one process and shows
  - the loss of each kind of row, beside what a model without context reaches on the same targets:
    the unigram entropy of the tokens, one constant patch, the best linear map from the previous patch;
  - for pairs, the token loss with the right image and with the image of another text: does the model read?
and writes the figures to RUN/baselines.json and a held-out page with its predictions to RUN/heldout.png."""

TABLE = """\
Reads all finished fine-tuning runs below a folder and prints the tables of the paper that they make rows of (Tables 1
to 5 and 12 to 17), each row marked as the paper's or ours: means and standard deviations over seeds. Other tasks get a
table with the gain over random weights and its 95% interval. Writes tables.md, tables.json and plots."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, short: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=short, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    heldout = command("heldout", "losses, baselines and a picture on the held-out rows", HELDOUT)
    heldout.add_argument("--run", type=Path, required=True, help="folder of the run")
    heldout.add_argument("--checkpoint", type=Path, help="checkpoint folder (default: the run's newest whole one)")
    heldout.add_argument("--rows", type=int, help="held-out rows of each kind (default: the run's evaluation.rows)")
    heldout.add_argument("--output", type=Path, help="folder for the results (default: the run's)")

    table = command("table", "the paper's tables, with the rows of fine-tuning runs", TABLE)
    table.add_argument("--runs", type=Path, required=True, help="folder with fine-tuning runs, at any depth")
    table.add_argument("--output", type=Path, help="folder for the results (default: that of the runs)")
    table.add_argument("--all", action="store_true", help="also the paper's tables that no run here has a row of")
    return parser.parse_args()


def evaluate_heldout(options: argparse.Namespace) -> None:
    """``heldout``: evaluate, write, show."""
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


def main() -> None:
    """Parse, evaluate, write, show."""
    options = arguments()
    with exit_on_user_error():
        silence_libraries()
        if options.command == "heldout":
            evaluate_heldout(options)
        elif options.command == "table":
            from megatron_pixel.reporting.results import write_tables

            write_tables(options.runs, options.output or options.runs, options.all)


if __name__ == "__main__":
    main()
