"""The tasks: their classes, their metrics, and which splits choose the best model (paper, section E.1)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import ExamplesConfig
from megatron_pixel.finetuning.examples import TaskData
from megatron_pixel.finetuning.metrics import METRICS, SCORE_METRICS


@dataclass(frozen=True)
class Task:
    """What is to be learnt and how it is scored."""

    name: str
    title: str
    """As the paper's tables have it."""
    classes: tuple[str, ...] | None
    """Names by number; None for a score, or where only the data tell."""
    metrics: tuple[str, ...]
    """The first one is the paper's, and chooses the best model."""
    texts: int = 2
    """Texts of an example."""
    is_score: bool = False

    @property
    def metric(self) -> str:
        """The one that counts."""
        return self.metrics[0]

    def score(self, labels: np.ndarray, outputs: np.ndarray) -> dict[str, float]:
        """All metrics of a split from the classifier's outputs float [n, classes], or [n, 1] for a score."""
        said = outputs[:, 0].astype(np.float64) if self.is_score else outputs.argmax(1)
        return {name: METRICS[name](labels, said) for name in self.metrics}


ENTAILMENT = ("entailment", "not_entailment")
THREE_WAY = ("entailment", "neutral", "contradiction")
"""In Hugging Face's order of GLUE and XNLI."""

GLUE = {
    task.name: task
    for task in (
        Task("mnli", "MNLI-m/mm", THREE_WAY, ("accuracy",)),
        Task("qqp", "QQP", ("not_duplicate", "duplicate"), ("f1", "accuracy")),
        Task("qnli", "QNLI", ENTAILMENT, ("accuracy",)),
        Task("sst2", "SST-2", ("negative", "positive"), ("accuracy",), texts=1),
        Task("cola", "CoLA", ("unacceptable", "acceptable"), ("mcc", "accuracy"), texts=1),
        Task("stsb", "STS-B", None, ("spearman", "pearson"), is_score=True),
        Task("mrpc", "MRPC", ("not_equivalent", "equivalent"), ("f1", "accuracy")),
        Task("rte", "RTE", ENTAILMENT, ("accuracy",)),
        Task("wnli", "WNLI", ("not_entailment", "entailment"), ("accuracy",)),
    )
}
XNLI = Task("xnli", "XNLI", THREE_WAY, ("accuracy",))
HATEMOJI = Task("hatemojibuild", "HatemojiBuild", ("non-hate", "hate"), ("accuracy", "f1"), texts=1)
TASKS = {**GLUE, XNLI.name: XNLI, HATEMOJI.name: HATEMOJI}
NAMES = (*TASKS, "custom")


def open_task(name: str, config: ExamplesConfig) -> tuple[Task, TaskData]:
    """Read a task's examples in whichever published layout they lie.

    Raises:
        UserError: no such task, files that are not there or not in a known layout, unknown labels, missing columns,
            empty texts; each names file, line and value.
    """
    if name not in NAMES:
        raise UserError(f"task: there is no task {name!r}; known: {', '.join(NAMES)}")
    # Imported here: pyarrow takes a moment, which --help need not wait for.
    from megatron_pixel.finetuning.readers import custom, glue, hatemoji, xnli

    task: Task
    if name == "custom":
        task, data = custom.read(config)
    else:
        task = TASKS[name]
        read = {XNLI.name: xnli.read, HATEMOJI.name: hatemoji.read}.get(name, glue.read)
        data = read(task, config)
    return task, data.limited(config.limit, config.evaluation_limit)


def custom_task(config: ExamplesConfig, classes: Sequence[str] | None, texts: int) -> Task:
    """The task that a user's own files make.

    Raises:
        UserError: a metric that is not one, or not of this kind of label.
    """
    is_score = config.kind == "score"
    allowed = [metric for metric in METRICS if (metric in SCORE_METRICS) == is_score]
    first = config.metric if config.metric != "auto" else "spearman" if is_score else "accuracy"
    if first not in allowed:
        raise UserError(
            f"examples.metric: {first!r} does not go with examples.kind {config.kind}; valid: {', '.join(allowed)}"
        )
    if first == "f1" and len(classes or ()) != 2:
        raise UserError(f"examples.metric: f1 is of two classes, and there are {len(classes or ())}: take macro_f1")
    others = ("spearman", "pearson") if is_score else ("accuracy", "macro_f1", "mcc")
    metrics = tuple(dict.fromkeys((first, *others)))
    return Task("custom", "custom", None if classes is None else tuple(classes), metrics, texts, is_score)
