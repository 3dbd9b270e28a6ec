"""The curves of a run's report, and where its time went."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from typing import Any

from megatron_pixel.reporting.charts import Mark, Point, Series, bar, chart
from megatron_pixel.reporting.run_folder import Record, RunFolder
from megatron_pixel.training.progress import duration

KINDS = {
    "loss_token_text": ("text tokens", "blue", "nats a token"),
    "loss_token_pair": ("pair tokens", "teal", "nats a token"),
    "loss_patch_pixel": ("pixel patches", "orange", "error a patch"),
    "loss_patch_pair": ("pair patches", "magenta", "error a patch"),
}
"""Name, color and unit of a loss."""
PALETTE = ("blue", "orange", "teal", "magenta", "green", "violet", "gold", "red", "gray")
PARTS = {
    "data_seconds": ("waiting for data", "gold"),
    "forward_seconds": ("forward", "blue"),
    "backward_seconds": ("backward", "violet"),
    "optimizer_seconds": ("optimizer", "teal"),
    "pipeline_seconds": ("between pipeline ranks", "green"),
}
BASELINES = {
    "loss_token_text": {"unigram entropy": "unigram_entropy"},
    "loss_token_pair": {"unigram entropy": "unigram_entropy_pair"},
    "loss_patch_pixel": {"constant patch": "constant_patch", "linear map": "linear_previous_patch"},
    "loss_patch_pair": {"constant patch": "constant_patch_pair", "linear map": "linear_previous_patch_pair"},
}
"""What ``evaluate.py heldout`` calls the baselines of a loss."""


def curves_section(run: RunFolder, steps: Sequence[Record], evaluations: Sequence[Record]) -> str:
    """All charts; empty where there is no step."""
    marks = _marks(run, steps)
    kinds = {key: KINDS[key] for key in KINDS if any(record.get(key) is not None for record in steps)}

    def noisy(name: str, color: str, key: str) -> Series:
        return Series(name, color, _curve(steps, key), "noisy")

    charts = []
    if len(kinds) > 1:
        both = [noisy("training", "violet", "loss"), _held_out(evaluations, "loss")]
        charts.append(chart("Loss", both, "weighted sum of the kinds", marks))
    for key, (name, color, unit) in kinds.items():
        both = [noisy("training", color, key), _held_out(evaluations, key)]
        charts.append(chart(f"Loss, {name}", both, unit, marks))
    charts += _by_source(steps, kinds, marks)
    speed = [noisy("tokens", "blue", "tokens_per_second"), noisy("patches", "orange", "patches_per_second")]
    charts += [
        chart(title, series, unit, marks, from_zero=True)
        for title, unit, series in (
            ("Gradient norm", "", [noisy("before clipping", "red", "grad_norm")]),
            ("Gradient norm by stage", "", _objects(steps, "grad_norm_by_stage")),
            ("Learning rate", "", [Series("rate", "green", _curve(steps, "lr"))]),
            ("Throughput", "targets a second", speed),
            ("Utilization", "share of the bf16 peak", [noisy("MFU", "teal", "mfu")]),
            ("Time of a step", "seconds", _areas(steps)),
            ("Memory", "GB", [Series("largest rank", "gray", _curve(steps, "memory_gb"))]),
        )
    ]
    shown = "".join(charts)
    legend = "<p>Dots are held-out rows. Dashed lines are restarts, short ones at the foot checkpoints.</p>"
    return f'{legend}<div class="charts">{shown}</div>' if shown else ""


@dataclass(frozen=True)
class HeldOut:
    """A line of the table of held-out losses; HTML."""

    name: str
    last: str
    best: str
    first: str
    rivals: str


def held_out_losses(evaluations: Sequence[Record], baselines: Mapping[str, Any]) -> Iterable[HeldOut]:
    """Losses by kind, below each those of its sources where it has several."""
    sources = sorted({name for record in evaluations for name in record.get("eval_loss_by_source") or {}})
    for key, (name, _, unit) in KINDS.items():
        values = [(record["step"], record.get(f"eval_{key}")) for record in evaluations]
        known = [(step, value) for step, value in values if value is not None]
        if not known:
            continue
        rivals = [
            f"{rival} {baselines[entry]:.3f}"
            for rival, entry in BASELINES[key].items()
            if baselines.get(entry) is not None
        ]
        yield _line(f"<b>{name}</b> <small>{unit}</small>", known, ", ".join(rivals))
        own = [source for source in sources if source.startswith(f"{key}/")]
        for source in own if len(own) > 1 else []:
            of_source = [(r["step"], (r.get("eval_loss_by_source") or {}).get(source)) for r in evaluations]
            known = [(step, value) for step, value in of_source if value is not None]
            if known:
                yield _line(f"<small>{escape(source.partition('/')[2])}</small>", known, "")


def _line(name: str, known: Sequence[tuple[int, float]], rivals: str) -> HeldOut:
    step, best = min(known, key=lambda entry: entry[1])
    where = f" <small>step {step:,}</small>"
    return HeldOut(name, f"{known[-1][1]:.4f}", f"{best:.4f}{where}", f"{known[0][1]:.4f}", escape(rivals))


def time_section(run: RunFolder, steps: Sequence[Record]) -> str:
    """All the time from the first start to the last line: parts of steps, what is between them, and what was lost."""
    if not steps:
        return ""
    totals = {key: sum(record.get(key) or 0.0 for record in steps) for key in PARTS}
    stepping = sum(record.get("seconds") or 0.0 for record in steps)
    parts = [(name, color, totals[key]) for key, (name, color) in PARTS.items()]
    parts.append(("rest of the steps", "gray", max(0.0, stepping - sum(totals.values()))))
    for key, name, color in (
        ("evaluation_seconds", "evaluation", "orange"),
        ("checkpoint_stall_seconds", "checkpoints", "magenta"),
    ):
        parts.append((name, color, sum(record.get(key) or 0.0 for record in steps)))
    lost = _wall(run, steps) - sum(amount for _, _, amount in parts)
    if lost > 0:
        parts.append(("starting, stopped, or done again", "red", lost))
    whole = sum(amount for _, _, amount in parts)
    items = "".join(
        f'<li class="{color}"><i></i>{name}<span>{duration(amount)}, {amount / whole:.1%}</span></li>'
        for name, color, amount in parts
        if amount >= 0.0005 * whole
    )
    said = f"{duration(whole)} in all"
    return f'<div class="card">{bar(parts, said)}<ul class="shares">{items}</ul></div>'


def _wall(run: RunFolder, steps: Sequence[Record]) -> float:
    """Seconds from the first start to the last step, 0 where that is not known."""
    starts = [event.get("time") for event in run.sessions() if event["event"] == "start"]
    last = steps[-1].get("time")
    if not starts or last is None:
        return 0.0
    try:
        return float(last) - datetime.fromisoformat(str(starts[0])).timestamp()
    except ValueError:
        return 0.0


def _marks(run: RunFolder, steps: Sequence[Record]) -> list[Mark]:
    starts = [event for event in run.sessions() if event["event"] == "start" and event.get("step")]
    marks = [Mark(e["step"], "restart", f"restart after step {e['step']:,}") for e in starts]
    saved = [record["step"] - 1 for record in steps if record.get("checkpoint_stall_seconds")]
    saved += [checkpoint.step for checkpoint in run.checkpoints()]
    return marks + [Mark(step, "checkpoint", f"checkpoint of step {step:,}") for step in sorted(set(saved))]


def _curve(records: Sequence[Record], key: str) -> list[Point]:
    return [(record["step"], record[key]) for record in records if record.get(key) is not None]


def _held_out(evaluations: Sequence[Record], key: str) -> Series:
    return Series("held out", "gray", _curve(evaluations, f"eval_{key}"), "dots")


def _by_source(steps: Sequence[Record], kinds: Mapping[str, tuple[str, str, str]], marks: Sequence[Mark]) -> list[str]:
    """A chart for each kind that has several sources."""
    found = []
    for key, (name, _, unit) in kinds.items():
        series = [
            Series(one.name.partition("/")[2], one.color, one.points, "noisy")
            for one in _objects(steps, "loss_by_source", f"{key}/")
        ]
        if len(series) > 1:
            found.append(chart(f"Loss by source, {name}", series, unit, marks))
    return found


def _objects(steps: Sequence[Record], key: str, prefix: str = "") -> list[Series]:
    """A curve for each name in the objects under a key."""
    curves: dict[str, list[Point]] = {}
    for record in steps:
        for name, value in (record.get(key) or {}).items():
            if name.startswith(prefix) and value is not None:
                curves.setdefault(name, []).append((record["step"], value))
    shown = [(name, points) for name, points in curves.items() if any(y for _, y in points)]
    return [
        Series(name if prefix else name.replace("_", " "), PALETTE[place % len(PALETTE)], points, "noisy")
        for place, (name, points) in enumerate(shown)
    ]


def _areas(steps: Sequence[Record]) -> list[Series]:
    """Parts of a step on top of each other, up to its whole time."""
    known = [record for record in steps if all(record.get(key) is not None for key in PARTS)]
    series = [
        Series(name, color, [(record["step"], record[key]) for record in known], "area")
        for key, (name, color) in PARTS.items()
        if any(record[key] for record in known)
    ]
    rest = [(record["step"], max(0.0, record["seconds"] - sum(record[key] for key in PARTS))) for record in known]
    return [*series, Series("rest", "gray", rest, "area")] if series else []
