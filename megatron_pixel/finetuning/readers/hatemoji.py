"""HatemojiBuild (Kirk et al. 2022) as published: train.csv, validation.csv, test.csv, or an export of them."""

from typing import TYPE_CHECKING

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import ExamplesConfig
from megatron_pixel.finetuning.examples import Examples, TaskData
from megatron_pixel.finetuning.readers.collect import class_label, collect
from megatron_pixel.finetuning.readers.files import find_files, read_records
from megatron_pixel.finetuning.readers.glue import Columns, choose_columns, examples_folder

if TYPE_CHECKING:
    from megatron_pixel.finetuning.tasks import Task

LAYOUTS = (Columns(("text",), "label_gold"), Columns(("text",), "label"))


def read(task: "Task", config: ExamplesConfig) -> TaskData:
    """The validation split chooses the best model, the test split is scored (the validation split where there is none).

    Raises:
        UserError: files that are not there, or a bad row.
    """
    folder = examples_folder(task, config)

    def split(name: str) -> Examples | None:
        paths = find_files(folder, ["validation", "dev"] if name == "validation" else [name])
        if not paths:
            return None
        records = [record for path in paths for record in read_records(path)]
        columns = choose_columns(paths[0], records, LAYOUTS)
        return collect(name, records, columns.texts, class_label(columns.label, task.classes or ()), config.empty)

    train, validation, test = split("train"), split("validation"), split("test")
    if train is None or validation is None:
        missing = "train" if train is None else "validation"
        raise UserError(f"{folder} has no {missing} file of HatemojiBuild (.csv, .parquet or .jsonl)")
    return TaskData(train, [validation], [test] if test is not None else [], list(task.classes or ()))
