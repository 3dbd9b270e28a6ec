"""Checks of a whole config tree, made once before any work; every problem is reported, not only the first."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from megatron_pixel.config.automatic import AUTO, least
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.keys import nearest, sections, settings
from megatron_pixel.config.layers import parse_layers
from megatron_pixel.config.mixture import (
    PerKind,
    parse_mixture,
    parse_source,
    rows_per_kind,
)
from megatron_pixel.config.ranges import Report, check_ranges
from megatron_pixel.config.schema import ParallelConfig, RunConfig
from megatron_pixel.config.source import raise_problems
from megatron_pixel.config.steps import parse_ranges, parse_steps

_KINDS = {"text": "data.text", "pixel": "data.pixels", "pair": "data.pairs"}
_SUBCOMMANDS = {
    "data.text": "text --tokenizer tokenizer.model",
    "data.pixels": "pixels",
    "data.pairs": "pairs --tokenizer tokenizer.model",
}


def validate(config: RunConfig, where: Mapping[str, str] | None = None) -> None:
    """Raise one UserError that lists all contradictions of ``config``; ``where`` is the file and line of each key.

    Pure: looks at no file and needs no device. See :func:`check_files` for the datasets; what depends on the number
    of processes is checked where they are known (parallel/mesh.py, data/mixture.py).
    """
    report = Report(config, where or {})
    check_ranges(report)
    _check_model(report)
    _check_pair(report)
    _check_data(report)
    _check_rendering(report)
    _check_batch(report)
    _check_compiling(report)
    _check_optimization(report)
    _check_names(report)
    _check_watching(report)
    raise_problems(report.problems)


def check_files(config: RunConfig) -> None:
    """Raise one UserError that lists the datasets that are not there and says how each is made."""
    if config.data.synthetic:
        return
    rows = parse_mixture(config.data.mixture)
    problems = []
    for kind, name in _KINDS.items():
        given = [parse_source(entry).prefix for entry in _entries(config, name)] if getattr(rows, kind) else []
        missing = [prefix for prefix in given if not Path(f"{prefix}.manifest.json").is_file()]
        if missing:
            problems.append(
                f"{name}: no dataset at {', '.join(missing)} (no PREFIX.manifest.json there); make it with `python "
                f"data_tools/preprocess.py {_SUBCOMMANDS[name]} --input FILE... --output-prefix PREFIX`, or name yours "
                f"with --{name} PREFIX... (the prefixes of the recipes are placeholders, see docs/reproduce.md)"
            )
    raise_problems(problems)


def _check_model(report: Report) -> None:
    model, parallel = report.config.model, report.config.parallel
    if model.num_channels not in (1, 3):
        report.add("model.num_channels", f"{model.num_channels} channels; valid: 1 (gray and binary pages) or 3 (RGB)")
    if report.fine("model.hidden", "model.heads"):
        valid = [heads for heads in _divisors(model.hidden) if model.hidden // heads % 2 == 0]
        if not valid:
            report.add("model.hidden", f"{model.hidden} is odd; rotary positions need heads of an even width")
        elif model.heads not in valid:
            report.add(
                "model.heads",
                f"{model.heads} heads do not divide model.hidden {model.hidden} into even widths, as rotary positions "
                f"need; nearest valid: {_nearest_few(model.heads, valid)}",
            )
    if report.fine("model.heads", "model.kv_heads") and model.heads % model.kv_heads:
        report.add(
            "model.kv_heads",
            f"{model.kv_heads} key-value heads do not divide model.heads {model.heads}; "
            f"nearest valid: {_nearest_few(model.kv_heads, _divisors(model.heads))}",
        )
    _check_layout(report, parallel)


def _check_layout(report: Report, parallel: ParallelConfig) -> None:
    model = report.config.model
    split = ("kv_heads", "heads", "ffn", "vocab_size")
    if report.fine("parallel.tensor", *(f"model.{name}" for name in split)):
        odd = [name for name in split if getattr(model, name) % parallel.tensor]
        if odd:
            common = math.gcd(*(getattr(model, name) for name in split))
            report.add(
                "parallel.tensor",
                f"{parallel.tensor} does not divide "
                + ", ".join(f"model.{name} {getattr(model, name)}" for name in odd)
                + f"; nearest valid: {_nearest_few(parallel.tensor, _divisors(common))}",
            )
    if report.fine("parallel.pipeline", "model.layers") and parallel.pipeline > model.layers:
        report.add(
            "parallel.pipeline",
            f"{parallel.pipeline} stages are more than model.layers {model.layers}, and each takes a layer at least; "
            f"nearest valid: {model.layers}",
        )
    if "sequence_parallel" in parallel.experimental and report.fine("parallel.tensor", "model.seq_length"):
        if parallel.tensor == 1:
            report.add("parallel.experimental", "sequence_parallel goes with parallel.tensor 2 or more, which is 1")
        elif model.seq_length % parallel.tensor:
            report.add(
                "parallel.experimental",
                f"sequence_parallel splits model.seq_length {model.seq_length}, which parallel.tensor "
                f"{parallel.tensor} does not divide; nearest valid model.seq_length: "
                f"{model.seq_length // parallel.tensor * parallel.tensor}",
            )
    if report.fine("model.layers") and parallel.activation_checkpointing != AUTO:
        try:
            parse_layers(parallel.activation_checkpointing, model.layers)
        except UserError as error:
            report.add("parallel.activation_checkpointing", str(error))


def _check_pair(report: Report) -> None:
    pair, seq_length = report.config.pair, report.config.model.seq_length
    mixture = _mixture(report.config)
    if mixture and mixture.pair and report.fine("pair.patches", "pair.tokens", "model.seq_length"):
        total = pair.patches + pair.tokens
        if total > seq_length:
            report.add(
                "pair.tokens" if "pair.tokens" in report.where else "pair.patches",
                f"pair.patches {pair.patches} + pair.tokens {pair.tokens} = {total} positions exceed model.seq_length "
                f"{seq_length}; nearest valid: {seq_length // 2} + {seq_length - seq_length // 2}",
            )


def _check_data(report: Report) -> None:
    config = report.config
    for name in _KINDS.values():
        for entry in _entries(config, name):
            try:
                parse_source(entry)
            except UserError as error:
                report.add(name, str(error))
    try:
        mixture = parse_mixture(config.data.mixture)
    except UserError as error:
        report.add("data.mixture", str(error).removeprefix("data.mixture: "))
        return
    for kind, name in _KINDS.items():
        if getattr(mixture, kind) and not config.data.synthetic and not _entries(config, name):
            report.add(
                name,
                f"no dataset, but data.mixture {config.data.mixture} has {kind} rows; give --{name} PREFIX, or leave "
                f"{kind} rows out of data.mixture",
            )
    weights = {"token": config.loss.token_weight, "patch": config.loss.patch_weight}
    learns = {"token": mixture.text + mixture.pair, "patch": mixture.pixel + mixture.pair}
    if not any(weights[name] and learns[name] for name in weights):
        idle = "loss.token_weight" if learns["token"] else "loss.patch_weight"
        report.add(idle, f"0 leaves nothing to learn from the rows of data.mixture {config.data.mixture}")


def _check_rendering(report: Report) -> None:
    """Settings for rows that are rendered when they are read; those that are null are the dataset's, checked later."""
    rendering, model = report.config.data.rendering, report.config.model

    def check(name: str, wrong: bool, reason: str) -> None:
        if getattr(rendering, name) is not None and wrong:
            report.add(f"data.rendering.{name}", reason)

    size, length, threshold = rendering.patch_size, rendering.seq_length, rendering.binary_threshold
    check("font_size", not 0 < (rendering.font_size or 0) <= 1000, f"{rendering.font_size} points is no size for text")
    check("dpi", (rendering.dpi or 0) < 1, f"{rendering.dpi} is too small; the least is 1")
    check("binary_threshold", not 0 <= (threshold or 0) <= 256, f"{threshold} is outside 0 .. 256")
    check("patch_size", size != model.patch_size, f"{size} pixels, but model.patch_size is {model.patch_size}")
    check("mode", rendering.mode == "rgb" and model.num_channels == 1, "rgb, but model.num_channels is 1")
    check(
        "seq_length",
        not 2 <= (length or 0) <= model.seq_length,
        f"{length} patches are outside 2 .. model.seq_length {model.seq_length}",
    )


def _check_batch(report: Report) -> None:
    mixture = _mixture(report.config)
    training = least(report.config).training
    if mixture is None or not report.fine("training.global_batch_rows", "training.micro_batch_rows"):
        return
    try:
        rows = rows_per_kind(mixture, training.global_batch_rows)
    except UserError as error:
        report.add("training.global_batch_rows", str(error).removeprefix("training.global_batch_rows: "))
        return
    odd = {kind: count for kind, count in rows._asdict().items() if count % training.micro_rows}
    if odd:
        counts = ", ".join(f"{count} {kind} rows" for kind, count in odd.items())
        report.add(
            "training.micro_batch_rows",
            f"{training.micro_batch_rows} does not divide the {counts} of a step; "
            f"nearest valid: {_nearest_few(training.micro_rows, _divisors(math.gcd(*rows)))}",
        )


def _check_compiling(report: Report) -> None:
    config = report.config
    if config.training.compile == "none":
        return
    if config.data.packing == "documents":
        report.add(
            "training.compile",
            "layers, but data.packing is documents: each number of documents would be compiled anew; set "
            "training.compile none, or data.packing none",
        )
    if config.parallel.tensor > 1:
        report.add(
            "training.compile",
            f"layers, but parallel.tensor is {config.parallel.tensor}: torch.compile does not take the sums over "
            "tensor-parallel ranks; set training.compile none, or parallel.tensor 1",
        )


def _check_optimization(report: Report) -> None:
    optimizer, training = report.config.optimizer, report.config.training
    if report.fine("optimizer.warmup_steps", "training.steps") and optimizer.warmup_steps > training.steps:
        report.add("optimizer.warmup_steps", f"{optimizer.warmup_steps} exceeds training.steps {training.steps}")
    if report.fine("optimizer.lr", "optimizer.min_lr") and optimizer.min_lr > optimizer.lr:
        report.add("optimizer.min_lr", f"{optimizer.min_lr} exceeds optimizer.lr {optimizer.lr}")
    stop = training.stop_after
    if stop is not None and report.fine("training.steps") and not 1 <= stop <= training.steps:
        report.add("training.stop_after", f"{stop} is outside 1 .. training.steps {training.steps}")
    odd = [step for step in report.config.checkpoint.milestones if step < 1]
    if odd:
        report.add("checkpoint.milestones", f"{odd[0]} is no step; steps count from 1")


def _check_names(report: Report) -> None:
    if not report.config.run.dir:
        report.add("run.dir", "empty; name a folder, such as runs/first")
    if not report.config.checkpoint.resume:
        report.add("checkpoint.resume", "empty; valid: auto, none or a checkpoint folder")
    known = [*settings(RunConfig), *sections(RunConfig)]
    for name in report.config.checkpoint.allow_changes:
        # data.text.tokenizer and the like are no settings but stand in the datasets' manifests.
        if name not in known and not name.startswith(("data.text.", "data.pixels.", "data.pairs.")):
            near = nearest(name, known)
            report.add(
                "checkpoint.allow_changes",
                f"no setting is called {name!r}" + (f"; did you mean {near}?" if near else ""),
            )


def _check_watching(report: Report) -> None:
    config = report.config
    layer = config.logging.attention
    if layer is not None and report.fine("model.layers") and not 1 <= layer <= config.model.layers:
        report.add("logging.attention", f"{layer} is no layer of the model; valid: 1 to {config.model.layers}")
    if config.logging.wandb is not None and not config.logging.wandb:
        report.add("logging.wandb", "empty; name a project, or leave it out (null)")
    if config.profile.steps is not None:
        try:
            parse_steps(config.profile.steps)
        except UserError as error:
            report.add("profile.steps", str(error))
    if config.guards.spike_deviations <= 0:
        report.add("guards.spike_deviations", f"{config.guards.spike_deviations} must be above 0")
    try:
        parse_ranges(config.guards.skip_steps)
    except UserError as error:
        report.add("guards.skip_steps", str(error))


def _mixture(config: RunConfig) -> PerKind | None:
    try:
        return parse_mixture(config.data.mixture)
    except UserError:
        return None


def _entries(config: RunConfig, name: str) -> list[str]:
    """The list under ``data.text``, ``data.pixels`` or ``data.pairs``."""
    return getattr(config.data, name.partition(".")[2])


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def _nearest_few(value: int, valid: Iterable[int], count: int = 4) -> str:
    """The valid values nearest to ``value``, in order: ``"1, 2, 4 or 8"``."""
    names = [str(number) for number in sorted(sorted(valid, key=lambda number: (abs(number - value), number))[:count])]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]
