"""What a trained model has learnt. ``python megatron_pixel/evaluate.py --help`` explains everything."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.parallel.quiet import silence_libraries

DESCRIPTION = """\
Evaluate models, or gather what evaluations found.

  python megatron_pixel/evaluate.py heldout --run runs/demo          losses on held-out rows, and baselines
  python megatron_pixel/evaluate.py table --runs runs/search         the paper's tables with our rows beside its own
  python megatron_pixel/evaluate.py robustness --run runs/sst2       a fine-tuned model's score on misspelled texts
  python megatron_pixel/evaluate.py probe --checkpoint runs/demo --task custom ...      what each layer holds
  python megatron_pixel/evaluate.py corpus --checkpoint runs/demo --modality text --input FILE     bits per character
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


ROBUSTNESS = """\
Scores the best model of a fine-tuning run on its evaluation split with misspelled texts: letters swapped, replaced by
ones that look alike, with marks, with characters of no width between them, and words in another script, at several
rates. The same texts are attacked alike for every model. Writes RUN/robustness.json."""

PROBE = """\
Fits a linear classifier on the frozen states of every layer of a pretrained model, and of the same model with random
weights: what a layer holds, and what pretraining has put there. Takes the settings of finetune.py (task, examples,
modality, rendering). Writes --output as JSON."""

CORPUS = """\
Reads documents of any held-out corpus with a pretrained model: bits per character and perplexity for modality text,
normalized patch error beside baselines for modality pixel. Takes the settings of finetune.py (checkpoint, rendering,
input.tokenizer). Texts are cut at the length of a row, and every row begins without context."""


def arguments() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it are settings of finetune.py."""
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

    robust = command("robustness", "a fine-tuned model's score on misspelled texts", ROBUSTNESS)
    robust.add_argument("--run", type=Path, required=True, help="folder of the fine-tuning run")
    robust.add_argument(
        "--attacks", nargs="+", help="some of swap, similar, diacritics, invisible, script (default: all)"
    )
    robust.add_argument("--rates", type=float, nargs="+", help="shares of letters (default: 0.05 0.1 0.2 0.4)")
    robust.add_argument("--limit", type=int, default=0, help="first examples to take; 0 takes all")

    for name, short, text in (
        ("probe", "what each layer of a pretrained model holds", PROBE),
        ("corpus", "bits per character or patch error on any text", CORPUS),
    ):
        own = command(name, short, text)
        for setting in ("checkpoint", "task", "modality", "examples.path", "input.tokenizer"):
            own.add_argument(f"--{setting}", dest=setting, help="as in finetune.py; so are its other settings")
        own.add_argument("--output", type=Path, help="JSON file for the figures")
        if name == "corpus":
            own.add_argument(
                "--input", nargs="+", required=True, help="files of documents, as preprocess.py reads them"
            )
            own.add_argument("--documents", type=int, default=0, help="first documents to take; 0 takes all")
    options, rest = parser.parse_known_args()
    if options.command in ("probe", "corpus"):
        for setting in ("checkpoint", "task", "modality", "examples.path", "input.tokenizer"):
            if getattr(options, setting) is not None:
                rest += [f"--{setting}", getattr(options, setting)]
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return options, rest


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


def evaluate_robustness(options: argparse.Namespace) -> None:
    """``robustness``: attack, score, write."""
    from megatron_pixel.finetuning.attacks import ATTACKS, RATES
    from megatron_pixel.finetuning.robustness import measure

    found = measure(options.run, options.attacks or list(ATTACKS), options.rates or list(RATES), options.limit)
    write_figures(options.run / "robustness.json", found)


def write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    """Write figures as JSON where a file is named, and say so."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"figures: {path}")


def main() -> None:
    """Parse, evaluate, write, show."""
    with exit_on_user_error():
        options, settings = arguments()
        silence_libraries()
        if options.command == "heldout":
            evaluate_heldout(options)
        elif options.command == "table":
            from megatron_pixel.reporting.results import write_tables

            write_tables(options.runs, options.output or options.runs, options.all)
        elif options.command == "robustness":
            evaluate_robustness(options)
        else:
            from megatron_pixel.finetuning.arguments import load
            from megatron_pixel.finetuning.corpus import score_corpus
            from megatron_pixel.finetuning.probing import probe

            config = load(None, settings)
            probes = options.command == "probe"
            write_figures(
                options.output, probe(config) if probes else score_corpus(config, options.input, options.documents)
            )


if __name__ == "__main__":
    main()
