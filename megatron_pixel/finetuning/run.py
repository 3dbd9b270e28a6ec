"""A fine-tuning run put together, and the folder that keeps what it leaves behind."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.loader import save_config
from megatron_pixel.data.files import write_file
from megatron_pixel.finetuning.classifier import Score, build_classifier, freeze_unused
from megatron_pixel.finetuning.examples import Examples
from megatron_pixel.finetuning.inputs import Inputs, open_inputs
from megatron_pixel.finetuning.metrics import majority
from megatron_pixel.finetuning.origin import find_start
from megatron_pixel.finetuning.saved import save_model
from megatron_pixel.finetuning.tasks import Task, open_task
from megatron_pixel.finetuning.training import Fit, Fitter, Scores, Split
from megatron_pixel.finetuning.weights import Loaded, load_start
from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile
from megatron_pixel.parallel.engine import build_engine, merged_config
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.guards import StopSignals

RESULT = "result.json"
"""Written last: a run's folder that has it is finished."""


class FinetuningRun:
    """Everything that a fine-tuning run holds. Used as a context manager, it leaves no memory behind.

    Args:
        config: checked settings.
        mesh: where this process stands.
        show: takes lines for the user; called on rank 0 only.

    Raises:
        UserError: checkpoint, task, modality and settings do not go together; before any step is taken.
    """

    def __init__(self, config: FinetuningConfig, mesh: Mesh, show: Callable[[str], None] = print) -> None:
        self._config, self._mesh = config, mesh
        self._show = show if mesh.is_main else lambda _: None
        self._folder = Path(config.run.dir)
        check_batch(config, mesh.data_size)
        self._start = find_start(config.checkpoint)
        self._inputs = open_inputs(config, self._start)
        self._task, self._data = open_task(config.task, config.examples)
        self._encode()
        self._build()
        self._tell()

    def _encode(self) -> None:
        """Rendered and tokenized splits. One rank makes each while the others wait, in no collective that times out."""
        data = self._data
        self._found: list[bool] = []

        def rows(examples: Examples) -> Any:
            made, found = self._inputs.rows(examples)
            self._found.append(found)
            return made

        self._train = rows(data.train)
        self._splits = [Split(split.name, rows(split), split.labels, True) for split in data.selection]
        self._splits += [Split(split.name, rows(split), split.labels, False) for split in data.others]

    def _build(self) -> None:
        config, mesh = self._config, self._mesh
        self._width = 1 if self._task.is_score else len(self._data.classes or ())
        self._score = Score(config.modality, self._width, config.dropout)
        file = DeepSpeedFile(config.deepspeed_config)
        network = build_classifier(
            self._inputs.model, self._score, config.training.seed, config.dropout, file.touches_all
        ).to(mesh.device)
        freeze_unused(network, config.modality)
        self._loaded = Loaded(averaged=False, score=False)
        if config.weights == "pretrained":
            self._loaded = load_start(network, self._start, self._inputs.model, self._data.classes, config.head)
        torch.manual_seed(config.training.seed * 1000 + mesh.data_rank)  # dropout
        accumulation = config.training.global_batch_rows // (config.training.micro_batch_rows * mesh.data_size)
        merged = merged_config(file, config.training, config.optimizer, accumulation, mesh.device.type == "cuda")
        self._engine = build_engine(network, merged, config.optimizer.weight_decay, mesh.mpu)

    def train(self, signals: StopSignals | None = None) -> dict[str, Any] | None:
        """Train, evaluate, keep; returns the result on all ranks, None where a signal ended the run."""
        config = self._config
        labels = self._data.train.labels
        assert labels is not None
        if self._mesh.is_main:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / RESULT).unlink(missing_ok=True)
            save_config(config, self._folder / "config.yaml")
        began = time.perf_counter()
        with _Lines(self._folder / "metrics.jsonl" if self._mesh.is_main else None, self._progress) as lines:
            fitter = Fitter(self._engine, self._train, labels, self._task, self._score, self._width, config, self._mesh)
            fit = fitter.fit(self._splits, lines.add, self._keep, signals)
        if fit.ended_by.startswith("SIG"):
            self._show(f"stopped by {fit.ended_by} after step {fit.steps}; the same command starts over")
            return None
        result = self._result(fit, time.perf_counter() - began)
        if self._mesh.is_main:
            if config.predictions:
                for split in self._data.evaluation:
                    write_predictions(self._folder, self._task, self._data.classes, split, fit.outputs[split.name])
            write_file(str(self._folder / RESULT), (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())
        dist.barrier()
        self._show(ending(result, self._folder))
        return result

    def close(self) -> None:
        """Let the model go: hooks that DeepSpeed hangs on gradients keep it and its optimizer alive for good."""
        self._engine.destroy()

    def __enter__(self) -> "FinetuningRun":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error among several ranks the device may wait for the others in an operation that never ends.
        if kind is None or self._mesh.world_size == 1:
            self.close()

    def _keep(self, step: int, scores: Scores) -> None:
        """Write the weights as the best so far."""
        if not self._config.keep_model:
            return
        tensors = whole_tensors(self._engine)
        if self._mesh.is_main:
            save_model(self._folder / "best", tensors, self._facts(step) | {"results": next(iter(scores.values()))})
        dist.barrier()

    def _facts(self, step: int) -> dict[str, Any]:
        start, inputs = self._start, self._inputs
        return {
            "task": self._task.name,
            "texts": self._task.texts,
            "is_score": self._task.is_score,
            "metrics": list(self._task.metrics),
            "labels": self._data.classes,
            "step": step,
            "modality": self._config.modality,
            "system": start.system,
            "released": start.released,
            "pretraining_step": start.step,
            "positions": start.positions,
            "reads": sorted(start.reads | ({"text", "pixel"} if self._config.weights == "random" else set())),
            "model": asdict(inputs.model),
            "rendering": start.rendering if inputs.rendering is None else rendering_facts(inputs),
            "tokenizer": str(inputs.tokenizer.path.resolve()) if inputs.tokenizer else None,
            "tokenizer_sha256": inputs.tokenizer.sha256 if inputs.tokenizer else start.tokenizer_sha256,
        }

    def _result(self, fit: Fit, seconds: float) -> dict[str, Any]:
        config, data, start = self._config, self._data, self._start
        labels = data.train.labels
        assert labels is not None
        metric = self._task.metric
        guesses = {
            split.name: majority(metric, labels, split.labels) for split in data.evaluation if split.labels is not None
        }
        return {
            "task": self._task.name,
            "title": self._task.title,
            "metric": metric,
            "setting": config.examples.setting if self._task.name == "xnli" else None,
            "modality": config.modality,
            "system": start.system,
            "checkpoint": str(start.where),
            "pretraining": {"step": start.step, **(start.positions or {})},
            "weights": config.weights,
            "render_mode": None if self._inputs.rendering is None else self._inputs.rendering.mode,
            "fonts": [Path(font).name for font in config.rendering.fonts],
            "seed": config.training.seed,
            "parameters": sum(p.numel() for p in self._engine.module.parameters()),
            "score": fit.best,
            "scores": fit.scores,
            "majority": guesses,
            "best_step": fit.best_step,
            "steps": fit.steps,
            "ended_by": fit.ended_by,
            "examples": {"train": len(data.train), **{split.name: len(split) for split in data.evaluation}},
            "cut": {"train": self._train.source.cut, **{s.name: s.rows.source.cut for s in self._splits}},
            "skipped_empty": data.train.skipped,
            "settings": {
                "lr": config.optimizer.lr,
                "schedule": config.optimizer.schedule,
                "warmup_steps": config.optimizer.warmup_steps,
                "batch": config.training.global_batch_rows,
                "length": config.input.length,
                "dropout": config.dropout,
                "steps": config.training.steps,
            },
            "seconds": seconds,
            "examples_per_second": fit.examples / fit.seconds,
        }

    def _progress(self, line: Mapping[str, Any]) -> None:
        step, steps = line["step"], self._config.training.steps
        if "eval" in line:
            shown = ", ".join(
                f"{name} {' '.join(f'{metric} {value:.4f}' for metric, value in scores.items())}"
                for name, scores in list(line["eval"].items())[:3]
            )
            more = len(line["eval"]) - 3
            self._show(f"step {step:,}: {shown}" + (f" and {more} more splits" if more > 0 else ""))
        elif step % 50 == 0 or step == 1:
            rate = self._config.training.global_batch_rows / line["seconds"]
            left = (steps - step) * line["seconds"]
            self._show(
                f"step {step:,}/{steps:,}  loss {line['loss']:.4f}  lr {line['lr']:.2e}  {rate:,.0f} examples/s  "
                f"at most {left / 60:.1f} min left"
            )

    def _tell(self) -> None:
        start, config = self._start, self._config
        origin = f"{start.where} ({start.system}" + (f", step {start.step:,})" if start.step else ")")
        if config.weights == "random":
            origin = f"random weights in the architecture of {origin}"
        self._show(f"{self._task.title}, modality {config.modality}, from {origin}")
        for source, found in zip([self._train, *(s.rows for s in self._splits)], self._found, strict=True):
            self._show(f"  {source.source.note()}" + ("; encoded before" if found else ""))
        if self._data.train.skipped:
            self._show(f"  train: {self._data.train.skipped:,} examples with an empty text left out (examples.empty)")
        if self._loaded.averaged:
            self._show("  the projection of patches is averaged over RGB: pages have one channel")
        if self._loaded.unnamed:
            names = ", ".join(f"{number} is {name}" for number, name in enumerate(self._data.classes or ()))
            self._show(f"  the classifier's classes are numbered, not named; taken as the task's: {names}")


class _Lines:
    """metrics.jsonl of a run."""

    def __init__(self, path: Path | None, show: Callable[[Mapping[str, Any]], None]) -> None:
        self._file = path.open("w", encoding="utf-8") if path is not None else None
        self._show = show

    def add(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            print(json.dumps(line), file=self._file, flush="eval" in line)
        self._show(line)

    def __enter__(self) -> "_Lines":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def check_batch(config: FinetuningConfig, data_size: int) -> None:
    """Raise UserError unless micro-batches and ranks divide the batch."""
    rows, micro = config.training.global_batch_rows, config.training.micro_batch_rows
    if rows % (micro * data_size):
        below = rows // (micro * data_size) * micro * data_size
        near = " or ".join(str(n) for n in (below, below + micro * data_size) if n)
        raise UserError(
            f"training.global_batch_rows: {rows} is no multiple of training.micro_batch_rows {micro} x {data_size} "
            f"processes; nearest: {near}"
        )


def rendering_facts(inputs: Inputs) -> dict[str, Any]:
    """The settings of the pages, without fonts, which are told by their files."""
    assert inputs.rendering is not None
    facts = asdict(replace(inputs.rendering, fonts=[]))
    facts.pop("fonts")
    return facts


def whole_tensors(engine: Any) -> dict[str, torch.Tensor]:
    """All parameters by name on the CPU, also where ZeRO 3 spreads them; collective."""
    parameters = dict(engine.module.named_parameters())
    if engine.zero_optimization_stage() < 3:
        return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}
    from deepspeed.runtime.zero import GatheredParameters

    tensors = {}
    for name, parameter in parameters.items():
        with GatheredParameters([parameter]):
            tensors[name] = parameter.detach().cpu().clone()
    return tensors


def write_predictions(
    folder: Path, task: Task, classes: list[str] | None, split: Examples, outputs: np.ndarray
) -> None:
    """``predictions-SPLIT.jsonl``: what the best model says of each example, in the order of the source."""
    lines = []
    for i, (name, values) in enumerate(zip(split.ids, outputs.tolist(), strict=True)):
        texts = [column[i] for column in (split.first, split.second) if column is not None]
        line: dict[str, Any] = {"id": name, "texts": texts}
        if task.is_score:
            line["prediction"] = values[0]
        else:
            assert classes is not None
            line["prediction"] = classes[int(np.argmax(values))]
            line["scores"] = dict(zip(classes, values, strict=True))
        if split.labels is not None:
            label = split.labels[i]
            line["label"] = float(label) if task.is_score else (classes or [])[int(label)]
        lines.append(json.dumps(line, ensure_ascii=False))
    write_file(str(folder / f"predictions-{split.name}.jsonl"), ("\n".join(lines) + "\n").encode())


def ending(result: dict[str, Any], folder: Path) -> str:
    """The last lines of a run."""
    lines = [f"best at step {result['best_step']:,} of {result['steps']:,} (ended by {result['ended_by']}):"]
    for name, scores in result["scores"].items():
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.items())
        lines.append(f"  {name}: {shown}; majority {result['metric']} {result['majority'][name]:.4f}")
    for kind in ("validation", "test"):
        found = [scores[result["metric"]] for name, scores in result["scores"].items() if name.startswith(f"{kind}-")]
        if len(found) > 1:
            lines.append(f"  mean of {len(found)} {kind} splits: {result['metric']} {sum(found) / len(found):.4f}")
    lines.append(f"result, predictions and model: {folder}")
    return "\n".join(lines)
