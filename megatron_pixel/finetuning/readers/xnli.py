"""XNLI in its published layouts: XNLI-1.0 and XNLI-MT-1.0 as TSV, or an export with a folder for each language."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import ExamplesConfig
from megatron_pixel.finetuning.examples import Examples, TaskData
from megatron_pixel.finetuning.readers.collect import class_label, collect
from megatron_pixel.finetuning.readers.files import Record, find_files, read_records
from megatron_pixel.finetuning.readers.glue import Columns, choose_columns, examples_folder

if TYPE_CHECKING:
    from megatron_pixel.finetuning.tasks import Task

LANGUAGES = ("en", "ar", "bg", "de", "el", "fr", "hi", "ru", "es", "sw", "th", "tr", "ur", "vi", "zh")
"""In the order of the paper's tables."""
TRAIN = Columns(("premise", "hypo"), "label")
EXPORT = Columns(("premise", "hypothesis"), "label")
EVALUATION = Columns(("sentence1", "sentence2"), "gold_label")
OTHER_NAMES = {"contradictory": "contradiction"}
"""The machine-translated training files call it so."""


def read(task: "Task", config: ExamplesConfig) -> TaskData:
    """Training on all languages or on English alone; validation and test split of each language.

    The mean over validation splits chooses the best model (``cross-lingual``: English alone, as nothing else is known
    there), which is then scored on the test splits.

    Raises:
        UserError: languages that XNLI does not have, files that are not there, or a bad row.
    """
    folder = examples_folder(task, config)
    languages = list(config.languages) or list(LANGUAGES)
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown:
        raise UserError(f"examples.languages: XNLI has no {', '.join(unknown)}; it has {', '.join(LANGUAGES)}")
    cross = config.setting == "cross-lingual"
    reader = _Reader(task, folder, config)
    train = joined([reader.train(language) for language in (["en"] if cross else languages)])
    validation = reader.evaluation("validation", ["en"] if cross else languages)
    if not validation:
        raise UserError(
            f"{folder} has no validation split: expected XNLI-1.0/xnli.dev.tsv, or LANGUAGE/validation.parquet or "
            ".jsonl"
        )
    return TaskData(train, validation, reader.evaluation("test", languages), list(task.classes or ()))


class _Reader:
    def __init__(self, task: "Task", folder: Path, config: ExamplesConfig) -> None:
        self._folder, self._config = folder, config
        self._classes = task.classes or ()
        self._tables: dict[Path, list[Record]] = {}

    def train(self, language: str) -> Examples:
        paths = self._training_files(language)
        if not paths:
            raise UserError(
                f"{self._folder} has no training file of {language}: expected "
                f"XNLI-MT-1.0/multinli/multinli.train.{language}.tsv, or {language}/train.parquet or .jsonl"
            )
        records = [record for path in paths for record in read_records(path, quoting=False)]
        return self._examples("train", paths[0], records, [TRAIN, EXPORT])

    def _training_files(self, language: str) -> list[Path]:
        name = f"multinli.train.{language}"
        for folder in (self._folder / "XNLI-MT-1.0" / "multinli", self._folder / "multinli", self._folder):
            if found := find_files(folder, [name]):
                return found
        return find_files(self._folder / language, ["train"])

    def evaluation(self, split: str, languages: Sequence[str]) -> list[Examples]:
        """The split of each language; nothing where no file has it."""
        short = {"validation": "dev", "test": "test"}[split]
        found = []
        for language in languages:
            name = f"{split}-{language}"
            table = next(
                (p for f in (self._folder / "XNLI-1.0", self._folder) for p in find_files(f, [f"xnli.{short}"])), None
            )
            if table is not None:
                if table not in self._tables:
                    self._tables[table] = list(read_records(table, quoting=False))
                records = [r for r in self._tables[table] if r.value("language") == language]
                if not records:
                    raise UserError(f"{table}: no row of the language {language}")
                found.append(self._examples(name, table, records, [EVALUATION]))
            elif paths := find_files(self._folder / language, [split, short]):
                records = [record for path in paths for record in read_records(path, quoting=False)]
                found.append(self._examples(name, paths[0], records, [EXPORT, EVALUATION]))
        return found

    def _examples(self, name: str, path: Path, records: Sequence[Record], layouts: Sequence[Columns]) -> Examples:
        columns = choose_columns(path, records, layouts)
        label = class_label(columns.label, self._classes, OTHER_NAMES)
        return collect(name, records, columns.texts, label, self._config.empty)


def joined(parts: Sequence[Examples]) -> Examples:
    """Several stretches of one split as one."""
    first = parts[0]
    if len(parts) == 1:
        return first
    images = [image for part in parts for image in part.images or ()]
    patches = [count for part in parts for count in part.image_patches or ()]
    return Examples(
        first.name,
        [text for part in parts for text in part.first],
        None if first.second is None else [text for part in parts for text in part.second or ()],
        np.concatenate([part.labels for part in parts if part.labels is not None]),
        [name for part in parts for name in part.ids],
        images or None,
        patches or None,
        sum(part.skipped for part in parts),
        [note for part in parts for note in part.notes],
    )
