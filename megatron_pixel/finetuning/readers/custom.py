"""A user's own files: one or two text columns and a label or score."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import ExamplesConfig
from megatron_pixel.finetuning.examples import Examples, TaskData
from megatron_pixel.finetuning.readers.collect import Label, collect, score_label
from megatron_pixel.finetuning.readers.files import Record, find_files, read_records

if TYPE_CHECKING:
    from megatron_pixel.finetuning.tasks import Task

DEFAULT_COLUMNS = (("text", "text_pair"), ("text",))


def read(config: ExamplesConfig) -> "tuple[Task, TaskData]":
    """Read ``examples.train`` and ``examples.evaluation``, or train.* and validation.* of ``examples.path``.

    Classes are the labels of the training files, sorted (numbers by value).
    """
    from megatron_pixel.finetuning.tasks import custom_task

    train_files, evaluation_files = _files(config, "train"), _files(config, "evaluation")
    columns = _columns(config, train_files[0])
    label: Label
    classes = None
    if config.kind == "score":
        label = score_label(config.label)
    else:
        classes = _classes(config, train_files)
        label = _exact(config.label, classes)
    task = custom_task(config, classes, len(columns))

    def split(name: str, files: Sequence[Path]) -> Examples:
        return collect(name, _records(files), columns, label, config.empty)

    train = split("train", train_files)
    names = ["validation"] if len(evaluation_files) == 1 else [path.name.partition(".")[0] for path in evaluation_files]
    evaluation = [split(name, [path]) for name, path in zip(names, evaluation_files, strict=True)]
    return task, TaskData(train, evaluation, [], classes)


def _files(config: ExamplesConfig, split: str) -> list[Path]:
    named = config.train if split == "train" else config.evaluation
    if named:
        return [Path(name) for name in named]
    if not config.path:
        raise UserError(
            f"examples.{split} is not given: name the files, or a folder with train.* and validation.* as examples.path"
        )
    names = ("train",) if split == "train" else ("validation", "dev", "test")
    found = find_files(Path(config.path), names)
    if not found:
        raise UserError(
            f"{config.path} has no {' or '.join(names)} file (.jsonl, .tsv, .csv or .parquet); name files as "
            f"examples.{split}"
        )
    return found


def _records(files: Sequence[Path]) -> Iterator[Record]:
    for path in files:
        yield from read_records(path)


def _first(path: Path) -> Record:
    record = next(iter(read_records(path)), None)
    if record is None:
        raise UserError(f"{path}: the file holds no examples")
    return record


def _columns(config: ExamplesConfig, path: Path) -> list[str]:
    first = _first(path)
    there = ", ".join(map(str, first.values))
    if config.columns:
        if len(config.columns) > 2:
            raise UserError(f"examples.columns: {len(config.columns)} columns; an example has one text or two")
        missing = [column for column in config.columns if column not in first.values]
        if missing:
            raise UserError(f"{path}: no column {', '.join(map(repr, missing))} (examples.columns); there are {there}")
        return list(config.columns)
    for columns in DEFAULT_COLUMNS:
        if all(column in first.values for column in columns):
            return list(columns)
    raise UserError(f"{path}: no column 'text'; there are {there}: name the text columns as examples.columns")


def _classes(config: ExamplesConfig, files: Sequence[Path]) -> list[str]:
    values = {str(record.value(config.label)).strip() for record in _records(files)}
    if "" in values:
        place = next(r.place for r in _records(files) if not str(r.value(config.label)).strip())
        raise UserError(f"{place}: the label in column {config.label!r} is empty")
    if len(values) < 2:
        raise UserError(
            f"column {config.label!r} of the training files holds the label {', '.join(values)!r} alone: nothing to "
            "tell apart"
        )
    if len(values) > 1000:
        raise UserError(
            f"column {config.label!r} of the training files holds {len(values):,} different labels; for numbers set "
            "examples.kind to score"
        )
    return sorted(values, key=float) if _numeric(values) else sorted(values)


def _numeric(values: set[str] | list[str]) -> bool:
    def is_number(text: str) -> bool:
        try:
            float(text)
        except ValueError:
            return False
        return True

    return all(is_number(value) for value in values)


def _exact(column: str, classes: Sequence[str]) -> Label:
    """Numbers of classes by name alone: ``3`` is the class named 3 and not the fourth one."""
    numbers = {name: number for number, name in enumerate(classes)}

    def label(record: Record) -> int:
        value = str(record.value(column)).strip()
        if value not in numbers:
            raise UserError(
                f"{record.place}: unknown label {value!r} in column {column!r}; the training files have "
                f"{', '.join(classes)}"
            )
        return numbers[value]

    return label
