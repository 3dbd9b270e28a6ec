"""GLUE in its published layouts: the TSV folders, Hugging Face's parquet or JSONL exports, released rendered files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import ExamplesConfig
from megatron_pixel.finetuning.examples import Examples, TaskData
from megatron_pixel.finetuning.readers.collect import class_label, collect, score_label
from megatron_pixel.finetuning.readers.files import Record, find_files, read_records

if TYPE_CHECKING:
    from megatron_pixel.finetuning.tasks import Task


@dataclass(frozen=True)
class Columns:
    """Where a layout keeps texts and label."""

    texts: tuple[str, ...]
    label: str


TSV = {
    "cola": Columns(("sentence",), "label"),
    "sst2": Columns(("sentence",), "label"),
    "mrpc": Columns(("#1 String", "#2 String"), "Quality"),
    "stsb": Columns(("sentence1", "sentence2"), "score"),
    "qqp": Columns(("question1", "question2"), "is_duplicate"),
    "mnli": Columns(("sentence1", "sentence2"), "gold_label"),
    "qnli": Columns(("question", "sentence"), "label"),
    "rte": Columns(("sentence1", "sentence2"), "label"),
    "wnli": Columns(("sentence1", "sentence2"), "label"),
}
"""The folders of gluebenchmark.com, whose quotation marks mean nothing."""
EXPORT = {
    **TSV,
    "mrpc": Columns(("sentence1", "sentence2"), "label"),
    "stsb": Columns(("sentence1", "sentence2"), "label"),
    "qqp": Columns(("question1", "question2"), "label"),
    "mnli": Columns(("premise", "hypothesis"), "label"),
}
"""Hugging Face's exports; the released rendered files have the same columns besides their images."""
COLA_HEADER = ("source", "label", "original label", "sentence")
"""Columns of CoLA's train.tsv and dev.tsv, which have no header line."""
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "dev"),
    "validation-matched": ("validation_matched", "dev_matched"),
    "validation-mismatched": ("validation_mismatched", "dev_mismatched"),
}
"""Files of a split without ending, in the layouts that are tried in turn."""


def read(task: "Task", config: ExamplesConfig) -> TaskData:
    """The training split, and the validation split or MNLI's two, which the paper reports.

    The mean over MNLI's matched and mismatched split chooses the best model.

    Raises:
        UserError: files that are not there, in no known layout, or with a bad row.
    """
    folder = examples_folder(task, config)
    names = ["validation-matched", "validation-mismatched"] if task.name == "mnli" else ["validation"]
    train = _split(task, folder, "train", config)
    selection = [_split(task, folder, name, config) for name in names]
    return TaskData(train, selection, [], None if task.classes is None else list(task.classes))


def examples_folder(task: "Task", config: ExamplesConfig) -> Path:
    """``examples.path`` as a folder that is there."""
    if not config.path:
        raise UserError(
            f"examples.path is not given: the folder with the files of {task.title}, see docs/finetuning.md"
        )
    folder = Path(config.path)
    if not folder.is_dir():
        raise UserError(f"examples.path: there is no folder {folder}")
    # The folder of all tasks, each under its usual name, serves any of them.
    for name in (task.title, task.title.removesuffix("-m/mm"), task.name):
        if (folder / name).is_dir():
            return folder / name
    return folder


def _split(task: "Task", folder: Path, name: str, config: ExamplesConfig) -> Examples:
    paths = find_files(folder, SPLITS[name])
    if not paths:
        raise UserError(
            f"{folder} has no file for the split {name} of {task.title}: expected {' or '.join(SPLITS[name])} as .tsv "
            "(GLUE's folder), .parquet or .jsonl (an export), or .json.gz (released rendered rows)"
        )
    ragged: list[str] = []
    tsv = paths[0].name.endswith(".tsv")
    header = COLA_HEADER if task.name == "cola" and tsv and not _has_header(paths[0]) else None
    records = [record for path in paths for record in read_records(path, quoting=False, header=header, ragged=ragged)]
    columns = choose_columns(paths[0], records, [TSV[task.name], EXPORT[task.name]])
    label = score_label(columns.label) if task.is_score else class_label(columns.label, task.classes or ())
    examples = collect(name, records, columns.texts, label, config.empty, _identify)
    if ragged:
        # QQP's files have such lines, and everybody leaves them out.
        examples.notes.append(f"{len(ragged):,} broken lines left out, the first is {ragged[0]}")
    return examples


def choose_columns(path: Path, records: Sequence[Record], layouts: Sequence[Columns]) -> Columns:
    """The first layout whose columns a file has.

    Raises:
        UserError: none of them; the message lists the columns that are there.
    """
    if not records:
        raise UserError(f"{path}: the file holds no examples")
    there = records[0].values
    rendered = "image" in there
    for layout in layouts:
        if layout.label in there and (rendered or all(text in there for text in layout.texts)):
            return layout
    wanted = " or ".join(dict.fromkeys(f"{', '.join(layout.texts)}, {layout.label}" for layout in layouts))
    raise UserError(f"{path}: expected the columns {wanted}; there are {', '.join(map(str, there))}")


def _has_header(path: Path) -> bool:
    with path.open(encoding="utf-8") as file:
        return "sentence" in file.readline().rstrip("\n").split("\t")


def _identify(record: Record) -> str:
    for key in ("idx", "index", "id"):
        if key in record.values:
            return str(record.values[key])
    return record.place
