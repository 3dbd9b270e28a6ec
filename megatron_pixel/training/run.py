"""A pretraining run put together: data, model, engine, checkpoint, and the folder that keeps its record."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.layers import parse_layers
from megatron_pixel.config.loader import save_config
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.config.steps import parse_ranges
from megatron_pixel.data.loader import PrefetchLoader
from megatron_pixel.data.mixture import open_heldout, open_training
from megatron_pixel.data.rows import Kind, MicroBatch
from megatron_pixel.model.objectives import pretraining_objectives
from megatron_pixel.model.stages import stage_specs
from megatron_pixel.parallel.build import build_training
from megatron_pixel.parallel.cut import boundaries
from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile
from megatron_pixel.parallel.engine import merged_config
from megatron_pixel.parallel.layout import check_layout
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training import checkpoint, checkpoint_files, exit_codes, passed_over, sessions
from megatron_pixel.training.data_facts import data_facts
from megatron_pixel.training.dumps import write_dump
from megatron_pixel.training.evaluation import Evaluator
from megatron_pixel.training.feeding import Feeder, Prepared
from megatron_pixel.training.guarding import Guards
from megatron_pixel.training.guards import SpikeError, StopSignals
from megatron_pixel.training.loop import Hooks, Milestones, RewindError, StepEnd, Trainer, train
from megatron_pixel.training.metrics import Record
from megatron_pixel.training.observation import Observer
from megatron_pixel.training.profiling import Profiler
from megatron_pixel.training.recorder import Recorder
from megatron_pixel.training.restarts import JOB
from megatron_pixel.training.resume import Layout
from megatron_pixel.training.run_lock import RunLock
from megatron_pixel.training.saving import Saver
from megatron_pixel.training.space import check_space
from megatron_pixel.training.start import check_data, compile_as_asked, look_at_machines, take_folder
from megatron_pixel.training.summary import start_block
from megatron_pixel.training.time_limit import TimeLimit
from megatron_pixel.training.wandb_log import check_wandb

READ_AHEAD_BYTES = 2 << 30
"""Host memory for patches read ahead, on each rank."""
LAST_WAIT = 60.0
"""Seconds that a run which ends by an error waits for a checkpoint in the background."""


class Run:
    """Everything that a run holds open. Use it as a context manager.

    Args:
        config: the checked config tree.
        mesh: where this process stands.
        signals: those that have been taken care of since the program started; None takes them while it trains.
        choice: what was decided for settings that were ``auto``, to be told.

    Raises:
        UserError: data, DeepSpeed file, checkpoint and layout do not go together, or the folder is in use; before any
            step is taken.
    """

    def __init__(
        self, config: RunConfig, mesh: Mesh, signals: StopSignals | None = None, choice: str | None = None
    ) -> None:
        check_layout(config, mesh.world_size)
        check_wandb(config.logging.wandb)
        if "sequence_parallel" in config.parallel.experimental and mesh.device.type != "cuda":
            raise UserError("parallel.experimental: megatron-core's sequence_parallel runs on CUDA devices only")
        self._config, self._mesh, self._signals = config, mesh, signals
        self._choice = [] if choice is None else [f"  auto        {choice}"]
        self._folder = Path(config.run.dir)
        self._checkpoints = self._folder / "checkpoints"
        self._lock: RunLock | None = take_folder(self._folder, mesh)
        try:
            self._build()
        except BaseException:
            self._unlock()
            raise

    def _build(self) -> None:
        config, mesh = self._config, self._mesh
        machines = look_at_machines(config, mesh)
        self._open_data()
        check_data(config, self._reader, mesh)
        self._build_model()
        found = checkpoint.find(self._checkpoints, config.checkpoint)
        self._resumed = None
        self._open_batches(found)
        if found is not None:
            self._resumed = self._restore(found)
        self._done = 0 if self._resumed is None else self._resumed.step
        self._last = min(config.training.stop_after or config.training.steps, config.training.steps)
        behind = config.checkpoint.asynchronous
        behind = mesh.device.type == "cuda" if behind is None else behind
        self._saver = self._saver_into(self._checkpoints, behind)
        # One rank's clock decides for all.
        self._limit = TimeLimit(os.environ if mesh.is_main else {}, self._folder)
        room = check_space(self._folder, config, self._parameters, self._done)
        self._open_record()
        facts = {"step": self._done, "processes": mesh.world_size, "host": socket.gethostname()}
        self._note("start", facts | {"job": os.environ.get(JOB)})
        self._show(start_block(config, mesh, self._layout, self._parameters, self._rows, len(self._kinds)))
        for line in [*self._choice, *machines, *self._compiling, f"  disk        {room}"]:
            self._show(line)
        self._show(self._starting_point(found))
        notes = [*self._reader.notes, self._limit.complaint()]
        for note in notes:
            if note is not None:
                self._show(f"  note        {note}")

    def _open_data(self) -> None:
        config = self._config
        size = self._mesh.data_size
        self._data_facts = data_facts(config.data)
        self._reader = open_training(config.data, config.model, config.pair, config.training, size)
        self._heldout = open_heldout(config.data, config.model, config.pair, config.training, config.evaluation)
        mixture = self._reader.mixture
        self._kinds = mixture.schedule(size)
        self._rows: Mapping[Kind, tuple[int, int]] = {
            kind: (count, self._reader.num_rows(kind)) for kind, count in mixture.rows_per_step.items()
        }

    def _build_model(self) -> None:
        config, mesh = self._config, self._mesh
        file = DeepSpeedFile(config.deepspeed_config)
        self._layout = Layout(mesh.data_size, mesh.tensor_size, mesh.pipe_size, file.zero_stage)
        self._objectives = pretraining_objectives(config.model, config.loss)
        merged = merged_config(
            file, config.training, config.optimizer, len(self._kinds), cuda=mesh.device.type == "cuda"
        )
        specs = stage_specs(
            config.model,
            self._objectives,
            config.training.seed,
            tensor_parallel=mesh.tensor_size,
            touch_all=file.touches_all,
            recompute=parse_layers(config.parallel.activation_checkpointing, config.model.layers),
            sequence_parallel="sequence_parallel" in config.parallel.experimental,
        )
        self._execution, self._parameters = build_training(
            specs, boundaries(config), merged, config.optimizer.weight_decay, mesh
        )
        self._engine = self._execution.engine
        self._compiling = compile_as_asked(config, self._execution.module)

    def _open_batches(self, found: checkpoint.Found | None) -> None:
        """Which rows each step takes: what the settings, the checkpoint and rewinds of this run say."""
        ranges = list(parse_ranges(self._config.guards.skip_steps))
        self._rewinds = 0
        if found is not None and found.folder.parent == self._checkpoints:
            kept, self._rewinds = passed_over.read(self._folder)
            ranges += kept
        elif self._mesh.is_main:
            passed_over.forget(self._folder)
        if found is not None:
            state = json.loads((found.folder / checkpoint_files.STATE).read_text(encoding="utf-8"))
            ranges += [(first, last) for first, last in state.get("passed_over", [])]
        self._batches = passed_over.Batches(ranges)

    def _consumed(self, step: int) -> dict[str, int]:
        """Rows of each source that are behind the run after a step."""
        return self._reader.consumed(self._batches.taken(step))

    def _restore(self, found: checkpoint.Found) -> checkpoint.Resumed:
        return checkpoint.restore(self._engine, found, self._config, self._consumed(found.step), self._data_facts)

    def _saver_into(self, root: Path, behind: bool) -> Saver:
        return Saver(self._engine, root, self._config, self._layout, self._data_facts, behind)

    def _open_record(self) -> None:
        """The record of a run that goes on from step ``self._done``; rank 0 keeps it."""
        if self._mesh.is_main:
            self._aside = checkpoint_files.set_aside(self._checkpoints, self._done)
            save_config(self._config, self._folder / "config.yaml")
        self._recorder = Recorder(self._config, self._done, self._last, self._mesh)
        dist.barrier()

    def train(self) -> str | None:
        """Take the steps that are left, or as many as ``training.stop_after`` and signals allow.

        Returns:
            What ended the run before its last step, None where it is complete.
        """
        config, mesh = self._config, self._mesh
        if self._done >= self._last:
            self._show(f"nothing to do: step {self._done:,} of {config.training.steps:,} is done")
            self._end(exit_codes.FINISHED, "nothing to do")
            return None
        trainer = self._new_trainer()
        self._evaluator = Evaluator(self._execution, self._heldout, self._objectives, config.model, mesh)
        profiler = Profiler(config.profile, self._folder, self._execution, mesh, self._show)
        milestones = Milestones(config.training.steps, config.evaluation, config.checkpoint)
        hooks = Hooks(self._record, self._evaluate, self._save, self._show, self._dump, profiler.step)
        signals = self._signals or StopSignals(())
        signals.add((signal.SIGTERM, signal.SIGUSR1, signal.SIGINT))
        try:
            stopped_by = self._train(trainer, milestones, signals, hooks)
            with self._guards.watchdog.paused():
                self._saver.wait()
        finally:
            signals.restore()
            trainer.observer.close()
            self._guards.close()
        profiler.close(self._done)
        self._show(self._ending(stopped_by))
        self._end(exit_codes.exit_code(stopped_by), stopped_by or "done")
        return stopped_by

    def _train(self, trainer: Trainer, milestones: Milestones, signals: StopSignals, hooks: Hooks) -> str | None:
        """:func:`train`, and again from a checkpoint where a guard asks for it."""
        while True:
            try:
                with self._loader(trainer.feeder) as loader:
                    return train(trainer, self._numbered(loader), self._last, milestones, signals, hooks, self._limit)
            except RewindError as request:
                with self._guards.watchdog.paused():
                    self._rewind(request.step)

    def _new_trainer(self) -> Trainer:
        """What takes the steps, with guards of its own."""
        config, mesh = self._config, self._mesh
        self._guards = Guards(config.guards, self._folder, mesh)
        feeder = Feeder(self._objectives, config.loss.end_patch, mesh.device)
        observer = Observer(
            self._execution,
            self._objectives,
            config.model,
            config.training.precision,
            mesh,
            self._reader.source_names,
            config.logging.histograms,
        )
        return Trainer(
            self._execution, self._objectives, config.training, config.optimizer, mesh, feeder, observer, self._guards
        )

    def _loader(self, feeder: Feeder) -> PrefetchLoader[Prepared]:
        config, mesh = self._config, self._mesh
        batches = (self._batches.of(step) - 1 for step in range(self._done + 1, self._last + 1))
        depth = _read_ahead(config, len(self._kinds))
        place, workers = (mesh.data_rank, mesh.data_size), config.data.workers
        return PrefetchLoader(self._reader, batches, *place, depth, workers, feeder.prepare)

    def _numbered(self, loader: PrefetchLoader[Prepared]) -> Iterator[tuple[int, list[Prepared]]]:
        for step, (_, batches) in enumerate(loader, start=self._done + 1):
            yield step, batches

    def _rewind(self, step: int) -> None:
        """Back to the newest whole checkpoint before the spike; the rows since will not be met again. Collective."""
        begin, most = self._guards.spikes.begin or step, self._config.guards.max_rewinds
        self._saver.wait()
        found = checkpoint.find_before(self._checkpoints, begin)
        if found is None or self._rewinds >= most:
            why = f"{self._rewinds} rewinds have not helped" if found is not None else "no checkpoint is before it"
            raise SpikeError(
                f"step {step}: a spike since step {begin}, and {why}; lower optimizer.lr, or look at the rows"
            )
        first, last = self._batches.of(found.step) + 1, self._batches.of(step)
        ranges = passed_over.joined([*self._batches.ranges, (first, last)])
        self._rewinds += 1
        if self._mesh.is_main:
            passed_over.write(self._folder, ranges, self._rewinds)
        self._batches = passed_over.Batches(ranges)
        self._restore(found)
        self._done = found.step
        self._guards.spikes.forget()
        self._recorder.close()
        self._open_record()
        self._show(
            f"back to step {found.step:,} from {step:,}, the rows of steps {first:,} to {last:,} are passed over "
            f"(rewind {self._rewinds} of {most})"
        )

    def _dump(self, step: int, batches: Sequence[MicroBatch], end: StepEnd) -> None:
        def save(folder: Path) -> None:
            self._saver_into(folder, behind=False).save(step, self._consumed(step))

        facts = {"message": str(end.verdict.error), "batch": self._batches.of(step), "layout": str(self._layout)}
        with self._guards.watchdog.paused():
            self._saver.wait()
            folder = write_dump(self._folder / "dumps", step, facts, batches, end.bad, self._mesh, save)
        self._show(f"step {step:,}: rows and weights are in {folder}; python megatron_pixel/reproduce.py {folder}")

    def _end(self, status: int, reason: str) -> None:
        self._note("end", {"status": status, "reason": reason, "step": self._done})

    def _note(self, event: sessions.Event, facts: Mapping[str, object]) -> None:
        if self._mesh.is_main:
            sessions.note(self._folder, event, facts)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def close(self) -> None:
        """Flush and close the record, and give the folder free."""
        self._recorder.close()
        self._unlock()

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            with suppress(OSError):
                self._end(getattr(error, "exit_status", exit_codes.CRASHED), f"{type(error).__name__}: {error}")
            self._recorder.keep(f"ended by {type(error).__name__}: {error}")
            # The checkpoint that is being written is worth a minute; without the other ranks it would take for ever.
            with suppress(Exception):
                self._saver.wait(LAST_WAIT)
        if error is None or self._mesh.world_size == 1:
            # Hooks that DeepSpeed hangs on gradients would keep model and optimizer alive for good. After an error
            # among several ranks the device may wait for the others in an operation that never ends.
            self._engine.destroy()
        self.close()

    def _record(self, record: Record, last: bool) -> None:
        self._done = int(record["step"])
        self._recorder.step(record, last)

    def _evaluate(self, step: int) -> None:
        begin = time.perf_counter()
        with self._guards.watchdog.paused():
            found = self._evaluator.run(self._config.logging.pages, self._config.logging.attention)
        self._recorder.evaluation(step, found, time.perf_counter() - begin, time.time())

    def _save(self, step: int) -> None:
        if self._lock is not None:
            self._lock.check()
        with self._guards.watchdog.paused():
            saved = self._saver.save(step, self._consumed(step), self._batches.ranges)
        self._recorder.stalled(saved.stall)
        self._limit.saved(saved.stall, self._saver.seconds)
        done = "is saving behind the training" if self._saver.background else "saved"
        self._show(f"step {step:,}: {done} {saved.folder}, training stood still for {saved.stall:.2f} s")

    def _show(self, text: str) -> None:
        self._recorder.note(text)

    def _starting_point(self, found: checkpoint.Found | None) -> str:
        total = self._config.training.steps
        lines = []
        if found is None or self._resumed is None:
            lines.append(f"  start       step 1 of {total:,}, no checkpoint")
        else:
            lines.append(f"  resume      {found.folder}, {found.step:,} of {total:,} steps done")
            lines += [f"              passed over {reason}" for reason in found.passed_over]
            if self._resumed.origin is not None:
                lines.append(f"              from another layout ({self._resumed.origin}); random states drawn anew")
            lines += [f"              changed {change}" for change in self._resumed.changed]
        if self._mesh.is_main and self._aside is not None:
            lines.append(f"              later checkpoints moved to {self._aside}")
        return "\n".join(lines)

    def _ending(self, stopped_by: str | None) -> str:
        total = self._config.training.steps
        if stopped_by is None:
            return f"done: {total:,} steps; curves: tensorboard --logdir {self._folder}"
        remedy = "start the same command again"
        if stopped_by == "training.stop_after":
            remedy += " without training.stop_after, or with a later one"
        if self._config.checkpoint.resume != "auto":
            remedy += ", with --checkpoint.resume auto"
        return f"stopped by {stopped_by} after step {self._done:,} of {total:,}; to continue, {remedy}"


def _read_ahead(config: RunConfig, accumulation: int) -> int:
    """Micro-batches to read ahead.

    A step starts with all of its micro-batches in hand, as their targets are counted first: less than a step read ahead
    would let the device wait for the rest. A step of very many is read ahead as far as the memory for it goes.
    """
    model = config.model
    values = model.seq_length * model.patch_size**2 * model.num_channels * config.training.micro_rows
    return max(config.data.prefetch, min(accumulation, READ_AHEAD_BYTES // values))
