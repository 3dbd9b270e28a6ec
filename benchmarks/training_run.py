"""Our side of ``training.py``: a pretraining run as ``pretrain.py`` builds it, whose steps are taken one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from megatron_pixel.config.schema import RunConfig
from megatron_pixel.data.mixture import MixtureReader, open_training
from megatron_pixel.data.rows import MicroBatch
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.guards import StopSignals
from megatron_pixel.training.loop import Hooks, Milestones, train
from megatron_pixel.training.metrics import Record
from megatron_pixel.training.run import Run

MIXTURES = {"text": "1:0:0", "pixel": "0:1:0", "pair": "0:0:1", "mix": "4:4:2"}
"""What is measured, and the mixture that gives it."""


def readers(config: RunConfig, accumulation: int) -> dict[str, MixtureReader]:
    """The rows of every measurement.

    Args:
        accumulation: micro-batches of a step of one kind; a step of the mix has five times as many rows as one
            micro-batch, the smallest number that 4:4:2 divides.
    """
    found = {}
    for name, mixture in MIXTURES.items():
        micro = config.training.micro_rows
        training = replace(config.training, global_batch_rows=micro * (5 if name == "mix" else accumulation))
        data = replace(config.data, mixture=mixture)
        found[name] = open_training(data, config.model, config.pair, training, dp_size=1)
    return found


class MeasuredRun(Run):
    """A run that takes a step of one kind of row when it is told to; a context manager as :class:`Run` is.

    Everything is the run's own: rows read ahead by its loader, its loop, its engine, its metrics. Only what stands
    between steps is left out: evaluation, checkpoints, and writing the line of metrics.

    Args:
        config: of the run.
        mesh: where this process stands.
        accumulation: see :func:`readers`.

    Attributes:
        readers: the rows by name.
        kinds: names that it can take steps of.
    """

    kinds = tuple(MIXTURES)

    def __init__(self, config: RunConfig, mesh: Mesh, accumulation: int) -> None:
        super().__init__(config, mesh, StopSignals(()))
        self.readers = readers(config, accumulation)
        self._steps: dict[str, Iterator[tuple[int, Sequence[Any]]]] = {}
        self._loaders: list[Any] = []
        self._trainer = self._new_trainer()
        self._records: list[Record] = []

    @property
    def parameters(self) -> int:
        """Parameters of the model."""
        return self._parameters

    def _show(self, text: str) -> None:
        """What a run says of itself would stand between the lines of the measurement."""

    def prepare(self, name: str) -> None:
        """Nothing to do before a step: the rows are read ahead by a thread."""

    def take(self, name: str) -> Record:
        """One step on the next rows of a kind; returns its line of metrics."""
        accumulate(self._engine, self.readers[name].num_micro_batches(1))
        config = self._config
        train(
            self._trainer,
            islice(self._rows_of(name), 1),
            config.training.steps,
            Milestones(config.training.steps, config.evaluation, config.checkpoint),
            self._signals or StopSignals(()),
            Hooks(lambda record, _: self._records.append(record), _nothing, _nothing, self._show, _nothing),
        )
        return self._records.pop()

    def _rows_of(self, name: str) -> Iterator[tuple[int, Sequence[Any]]]:
        """Steps whose rows the run's own loader reads ahead."""
        if name not in self._steps:
            self._reader = self.readers[name]
            self._kinds = self._reader.mixture.schedule(1)
            self._loaders.append(self._loader(self._trainer.feeder))
            self._steps[name] = self._numbered(self._loaders[-1])
        return self._steps[name]

    def close(self) -> None:
        """End what runs in the background."""
        for loader in self._loaders:
            loader.close()
        self._trainer.observer.close()
        self._guards.close()
        super().close()


def rows_of(reader: MixtureReader, step: int) -> list[MicroBatch]:
    """The micro-batches of a step, counted from 1, as a run reads them."""
    return [reader.micro_batch(step - 1, index, 0, 1) for index in range(reader.num_micro_batches(1))]


def accumulate(engine: Any, micro_batches: int) -> None:
    """Let the next step of a DeepSpeed engine take as many micro-batches; to be called between steps."""
    engine.set_train_batch_size(micro_batches * engine.train_micro_batch_size_per_gpu())
    engine.micro_steps = 0  # a step ends when their number divides by those of a step


def _nothing(*_: Any) -> None:
    pass
