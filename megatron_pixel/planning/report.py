"""A plan as text that one wants to look at."""

from collections.abc import Sequence

import megatron_pixel
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.data.rows import Kind
from megatron_pixel.planning.communication import KINDS
from megatron_pixel.planning.fitting import Nearest
from megatron_pixel.planning.memory import RESERVE
from megatron_pixel.planning.plan import Plan
from megatron_pixel.planning.speed import bubble

GB = 1e9
SENT = {
    "gradients": "gradients, data-parallel",
    "weights": "weights, data-parallel",
    "tensor": "hidden states, tensor-parallel",
    "loss": "cross entropy, tensor-parallel",
    "pipeline": "hidden states, pipeline",
    "control": "counts, norms, losses, flags",
}
"""Kinds of traffic in words."""
SHOWN = 6
"""Pipeline ranks in a table; of more, those in the middle are left out where they are alike."""


def report(config: RunConfig, plan: Plan, nearest: Nearest | None, why: str | None = None) -> str:
    """The whole report.

    Args:
        config: of the run.
        plan: of its layout.
        nearest: where the layout does not fit, the nearest that does, if there is one.
        why: what was chosen for settings that were ``auto``.
    """
    parts = [_head(config, plan, why=why), _parameters(plan), _memory(plan), _traffic(plan), _speed(plan)]
    if not plan.fits:
        parts.append(verdict(plan, nearest))
    return "\n\n".join(parts)


def verdict(plan: Plan, nearest: Nearest | None) -> str:
    """Why the layout does not fit, and what to do."""
    text = (
        f"does not fit: {plan.most / GB:.1f} GB on the fullest device, of which {plan.usable / GB:.1f} of "
        f"{plan.device.memory / GB:.0f} GB can be used ({RESERVE:.0%} are kept back)"
    )
    if nearest is None:
        return f"{text}\nnothing else fits on {plan.setting.devices} of these devices: take more of them"
    found = nearest.plan
    return (
        f"{text}\nnearest that fits: {' '.join(nearest.words)}\n"
        f"    {found.most / GB:.1f} GB, {found.speed.rows_per_second:,.0f} rows/s"
    )


def comparison(config: RunConfig, plan: Plan, plans: Sequence[Plan]) -> str:
    """A line for each of some layouts of the same devices."""
    rows = [
        ["tensor", "pipeline", "data", "ZeRO", "recomputed", "GB a device", "GB sent", "bubble", "s a step", "rows/s"]
    ]
    for other in plans:
        setting = other.setting
        sent = max(sum(other.sent(pipe).values()) for pipe in range(setting.pipeline))
        rows.append(
            [
                *map(str, (setting.tensor, setting.pipeline, setting.data)),
                f"{setting.zero.stage}" + (" offload" if setting.zero.offload else ""),
                f"{len(setting.recompute)} layers" if setting.recompute else "-",
                f"{other.most / GB:.1f}",
                f"{sent / GB:.1f}",
                f"{bubble(setting):.1%}",
                f"{other.speed.seconds:.2f}",
                f"{other.speed.rows_per_second:,.0f}",
            ]
        )
    found = _table(rows) if plans else "  none fits: take more devices, or smaller micro-batches"
    return f"{_head(config, plan, layout=False)}\n\n{found}"


def _head(config: RunConfig, plan: Plan, layout: bool = True, why: str | None = None) -> str:
    setting, model = plan.setting, config.model
    nodes = -(-setting.devices // setting.node)
    where = (
        f"{nodes} node{'s' if nodes > 1 else ''} of {min(setting.node, setting.devices)}" if nodes > 1 else "one node"
    )
    rows = {kind: setting.kinds.count(kind) * setting.rows * setting.data for kind in Kind}
    shares = ", ".join(f"{count:,} {kind.name.lower()}" for kind, count in rows.items() if count)
    again = len(setting.recompute)
    zero = f"ZeRO {setting.zero.stage}" + (", optimizer on the host" if setting.zero.offload else "")
    lines = {
        "devices": f"{setting.devices:,} x {plan.device.title}, {where}",
        "layout": f"tensor {setting.tensor} x pipeline {setting.pipeline} x data {setting.data}, {zero}, "
        + ("bf16" if setting.bf16 else "fp32")
        + (f", {again} of {model.layers} layers recomputed" if again else ""),
        "model": f"{sum(p.numel for p in setting.parameters):,} parameters: {model.layers} layers, "
        f"{model.hidden} wide, {model.heads} heads ({model.kv_heads} key-value), ffn {model.ffn}, "
        f"{model.seq_length:,} positions",
        "batch": f"{sum(rows.values()):,} rows a step ({shares}), micro-batches of {setting.rows}, "
        f"{len(setting.kinds)} accumulated",
    }
    if why is not None:
        lines["auto"] = why
    if not layout:
        del lines["layout"]
        lines["batch"] = f"{sum(rows.values()):,} rows a step ({shares}), micro-batches of {setting.rows}"
    head = f"megatron_pixel {megatron_pixel.__version__}  dry run of {config.run.dir}"
    return "\n".join([head, *(f"  {name:<9} {text}" for name, text in lines.items())])


def _parameters(plan: Plan) -> str:
    setting, last = plan.setting, plan.setting.model.layers
    sizes = plan.describe()["parameters"]["by_stage"]
    parts = [("embedding", sizes["embedding"]), (f"layers 1-{last}, each", sizes["layer 1"])]
    parts += [("norm", sizes["norm"]), ("heads", sizes["heads"])]
    rows = [["stage", "parameters"], *([name, f"{count:,}"] for name, count in parts)]
    ranks = [["pipeline rank", "ranks", "stages", "parameters a rank"]]
    for pipe in range(setting.pipeline):
        place = plan.ranks(pipe)
        ranks.append([str(pipe), _span(place.start, place.stop - 1), _stages(plan, pipe), f"{plan.parameters(pipe):,}"])
    return f"Parameters by stage\n{_table(rows)}\n\nParameters by rank\n{_table(_short(ranks))}"


def _stages(plan: Plan, pipe: int) -> str:
    setting = plan.setting
    layers = setting.layers(pipe)
    parts = ["embedding"] if setting.is_first(pipe) else []
    parts += [f"layers {_span(layers[0], layers[-1])}"] if layers else []
    parts += ["norm, heads"] if setting.is_last(pipe) else []
    return ", ".join(parts)


def _memory(plan: Plan) -> str:
    rows = [["pipeline rank", "weights", "gradients", "optimizer", "activations", "buffers", "total"]]
    for pipe, found in enumerate(plan.memory):
        values = (found.weights, found.gradients, found.optimizer, found.activations, found.buffers, found.total)
        rows.append([str(pipe), *(f"{value / GB:.2f}" for value in values)])
    host = max(found.host for found in plan.memory)
    note = f"\n  and {host / GB:.2f} GB of the host's memory for each device" if host else ""
    return f"Memory a device, GB of {plan.usable / GB:.1f} that can be used\n{_table(_short(rows))}{note}"


def _traffic(plan: Plan) -> str:
    sent = [plan.sent(pipe) for pipe in range(plan.setting.pipeline)]
    shown = _places(plan.setting.pipeline)
    rows = [["", *(["GB"] if len(shown) == 1 else [f"rank {pipe}" for pipe in shown])]]
    for kind in KINDS:
        if any(values[kind] for values in sent):
            rows.append([SENT[kind], *(_gigabytes(sent[pipe][kind]) for pipe in shown)])
    rows.append(["all", *(_gigabytes(sum(sent[pipe].values())) for pipe in shown)])
    title = "Communication of a step, GB a device" + (", by pipeline rank" if len(shown) > 1 else "")
    return f"{title}\n{_table(rows)}"


def _speed(plan: Plan) -> str:
    found, setting = plan.speed, plan.setting
    parts = {
        "computing": found.compute,
        "sums between tensor-parallel ranks": found.tensor,
        "waiting and sending in the pipeline": found.bubble,
        "gradients and weights that computing does not hide": found.exposed,
        "optimizer": found.optimizer,
    }
    rows = [["a step", "s"], *([name, _seconds(value)] for name, value in parts.items() if value)]
    rows.append(["all", _seconds(found.seconds)])
    p, m = setting.pipeline, len(setting.kinds)
    device = plan.device
    peak = device.peak(setting.bf16) / 1e12
    return "\n".join(
        [
            f"Expected on {device.title}",
            _table(rows),
            f"  pipeline bubble (p - 1) / (m + p - 1) = ({p} - 1) / ({m} + {p} - 1) = {bubble(setting):.1%}",
            f"  {found.rows_per_second:,.1f} rows/s, {found.rows_per_second / setting.devices:.2f} a device, "
            f"{plan.mfu:.0%} of the peak",
            "",
            f"  computing = products / ({plan.efficiency:g} x {peak:g} TFLOP/s) + other traffic / "
            f"{device.bandwidth / 1e9:,.0f} GB/s; links {device.link / 1e9:g} GB/s, between nodes "
            f"{device.network / 1e9:g} GB/s",
            "  an all-reduce over n ranks takes 2 (n - 1) / n x bytes / rate, a gather or scatter half of it",
            f"  rates: {device.source}",
        ]
    )


def _seconds(value: float) -> str:
    return f"{value:.3f}" if value >= 5e-4 else f"{value:.5f}"


def _gigabytes(count: int) -> str:
    return f"{count / GB:,.3f}" if count >= 5e5 else f"{count:,} B" if count else "-"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _places(pipeline: int) -> list[int]:
    """Pipeline ranks to show: all of a few, else the first and the last ones."""
    if pipeline <= SHOWN:
        return list(range(pipeline))
    return [*range(SHOWN // 2), *range(pipeline - SHOWN // 2, pipeline)]


def _short(rows: list[list[str]]) -> list[list[str]]:
    head, *body = rows
    places = _places(len(body))
    shown = [body[place] for place in places]
    if len(shown) < len(body):
        shown.insert(SHOWN // 2, ["..."] + [""] * (len(head) - 1))
    return [head, *shown]


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width; numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for number, row in enumerate(rows):
        cells = [
            text.rjust(width) if column and _is_number(rows[-1][column]) else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "   ".join(cells)).rstrip())
        if number == 0:
            lines.append("  " + "   ".join("-" * width for width in widths))
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    return text == "-" or text.removesuffix(" B").replace(",", "").replace(".", "").isdigit()
