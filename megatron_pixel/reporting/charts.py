"""Curves as inline SVG, for pages that have to open from disk for ever: no library, no network.

A drawing is stretched to whatever room there is, its lines are not (``vector-effect``), and what is written around it
is text of the page, so a chart reads as well on a telephone as on a wide screen.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 1000.0, 400.0
"""Of the drawing's own coordinates."""
MOST_POINTS = 400
"""Points of a curve at the most; longer ones are averaged."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One curve."""

    name: str
    color: str
    """Name of a color of the style sheet, such as ``blue``."""
    points: Sequence[Point]
    """(x, y), ascending in x."""
    style: Literal["line", "noisy", "dots", "area"] = "line"
    """``noisy``: the points faintly, their moving average boldly; ``area``: stacked on the areas before it."""


@dataclass(frozen=True)
class Mark:
    """Something that happened at an x."""

    x: float
    kind: Literal["restart", "checkpoint", "trouble"]
    text: str


@dataclass(frozen=True)
class Axis:
    """The shown part of an axis and its ticks."""

    low: float
    high: float
    ticks: Sequence[float]

    def share(self, value: float) -> float:
        """Place of a value, 0 at the low end and 1 at the high one."""
        return (value - self.low) / (self.high - self.low)


def nice_axis(low: float, high: float, count: int = 4, grows: bool = True) -> Axis:
    """An axis over ``low`` to ``high`` with about ``count`` ticks at round numbers.

    Args:
        grows: end at ticks; otherwise at the values.
    """
    if not high > low:
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if not grows:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    ticks = [round(number * step, 12) for number in range(first, last + 1)]
    return Axis(ticks[0], ticks[-1], ticks) if grows else Axis(low, high, ticks)


def number(value: float) -> str:
    """A short number for a tick or a tooltip: ``12.3k``, ``0.5``, ``5e-04``."""
    size = abs(value)
    for limit, unit, suffix in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if size >= limit:
            return f"{value / unit:.3g}{suffix}"
    if value == 0 or size >= 1e-3:
        return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"
    return f"{value:.2e}"


def smoothed(points: Sequence[Point], share: float = 0.04) -> list[Point]:
    """An exponential moving average over about ``share`` of the points, without the pull of its start."""
    keep = 1 - 1 / max(1.0, share * len(points))
    total = weight = 0.0
    result = []
    for x, y in points:
        total, weight = keep * total + y, keep * weight + 1
        result.append((x, total / weight))
    return result


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points, each the mean of as many neighbors; the last one stays where it is in x."""
    size = -(-len(points) // most)
    if size <= 1:
        return list(points)
    parts = [points[i : i + size] for i in range(0, len(points), size)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def chart(
    title: str,
    series: Sequence[Series],
    unit: str = "",
    marks: Sequence[Mark] = (),
    from_zero: bool = False,
    note: str = "",
) -> str:
    """A chart as HTML; an empty string where no series has points.

    Args:
        title: above the chart; ``unit`` follows it in small print.
        series: curves over a common x, the step.
        marks: vertical lines at restarts, ticks at checkpoints.
        from_zero: whether the y axis begins at 0.
        note: below the chart.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    low, high = _extent([x for one in series for x, _ in one.points])
    # Room for half a dot at the end.
    x_axis = nice_axis(low, high + 0.012 * (high - low), count=5, grows=False)
    stacked = _stacked(series)
    y_axis = _y_axis(series, stacked, from_zero)
    grid = "".join(f'<path class="grid" d="M0 {_y(tick, y_axis):.1f}H{WIDTH:.0f}"/>' for tick in y_axis.ticks)
    shown = [mark for mark in marks if x_axis.low <= mark.x <= x_axis.high]
    behind = "".join(_mark(mark, x_axis) for mark in shown)
    areas = "".join(_area(one, *bounds, x_axis, y_axis) for one, bounds in stacked)
    lines = "".join(_curve(one, x_axis, y_axis) for one in series if one.style != "area")
    y_ticks = "".join(
        f'<span class="y" style="top:{100 * (1 - y_axis.share(t)):.2f}%">{number(t)}</span>' for t in y_axis.ticks
    )
    x_ticks = "".join(
        f'<span class="x" style="left:{100 * x_axis.share(t):.2f}%">{number(t)}</span>' for t in x_axis.ticks
    )
    legend = "".join(
        f'<li class="{one.color} {one.style}"><i></i>{escape(one.name)}<b>{number(one.points[-1][1])}</b></li>'
        for one in series
    )
    about = f" <small>{escape(unit)}</small>" if unit else ""
    below = f"<p>{escape(note)}</p>" if note else ""
    return (
        f'<figure class="chart"><figcaption><h3>{escape(title)}{about}</h3><ul>{legend}</ul></figcaption>'
        f'<div class="plot" role="img" aria-label="{escape(_said(title, series))}"><div class="canvas">'
        f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" preserveAspectRatio="none" aria-hidden="true">'
        f"{grid}{behind}{areas}{lines}</svg>{y_ticks}{x_ticks}</div></div>{below}"
        f'<script type="application/json">{_data(series, x_axis)}</script></figure>'
    )


def bar(parts: Sequence[tuple[str, str, float]], label: str) -> str:
    """Shares of a whole, (name, color, amount), as one bar; ``label`` is for those who do not see it."""
    whole = sum(amount for _, _, amount in parts) or 1.0
    pieces = "".join(
        f'<i class="{color}" style="width:{100 * amount / whole:.3f}%" title="{escape(name)}"></i>'
        for name, color, amount in parts
        if amount > 0
    )
    return f'<div class="bar" role="img" aria-label="{escape(label)}">{pieces}</div>'


def _extent(values: Sequence[float]) -> Point:
    return min(values), max(values)


def _stacked(series: Sequence[Series]) -> list[tuple[Series, tuple[list[Point], list[Point]]]]:
    """Areas with their lower and upper edges."""
    height: dict[float, float] = {}
    found = []
    for one in (one for one in series if one.style == "area"):
        points = thinned(one.points)
        lower = [(x, height.get(x, 0.0)) for x, _ in points]
        upper = [(x, height.get(x, 0.0) + y) for x, y in points]
        height.update(upper)
        found.append((one, (lower, upper)))
    return found


def _y_axis(
    series: Sequence[Series], stacked: Sequence[tuple[Series, tuple[list[Point], list[Point]]]], from_zero: bool
) -> Axis:
    """What is seen of y: nearly all points, but a few wild ones may leave at the top."""
    values = sorted(y for one in series if one.style != "area" for _, y in one.points)
    values += sorted(y for _, (_, upper) in stacked for _, y in upper)
    calm = [y for one in series if one.style == "dots" for _, y in one.points]
    high = max([values[math.ceil(0.98 * len(values)) - 1], *calm])
    return nice_axis(0.0 if from_zero or stacked else values[0], high)


def _x(value: float, axis: Axis) -> float:
    return axis.share(value) * WIDTH


def _y(value: float, axis: Axis) -> float:
    return (1 - axis.share(value)) * HEIGHT


def _path(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    return "L".join(f"{_x(x, x_axis):.1f} {_y(y, y_axis):.1f}" for x, y in points)


def _curve(one: Series, x_axis: Axis, y_axis: Axis) -> str:
    if one.style == "dots" or len(one.points) == 1:
        dots = "".join(f"M{_path([point], x_axis, y_axis)}h0" for point in thinned(one.points))
        return f'<path class="{one.color} dots" d="{dots}"/>'
    bold = thinned(smoothed(one.points) if one.style == "noisy" else one.points)
    drawn = f'<path class="{one.color} line" d="M{_path(bold, x_axis, y_axis)}"/>'
    if one.style == "noisy":
        drawn = f'<path class="{one.color} faint" d="M{_path(thinned(one.points), x_axis, y_axis)}"/>' + drawn
    return drawn


def _area(one: Series, lower: Sequence[Point], upper: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    edge = [*upper, *reversed(lower)]
    return f'<path class="{one.color} area" d="M{_path(edge, x_axis, y_axis)}Z"/>'


def _mark(mark: Mark, axis: Axis) -> str:
    top = HEIGHT - 14 if mark.kind == "checkpoint" else 0
    place = f"M{_x(mark.x, axis):.1f} {HEIGHT:.0f}V{top:.0f}"
    return f'<path class="{mark.kind}" d="{place}"><title>{escape(mark.text)}</title></path>'


def _data(series: Sequence[Series], axis: Axis) -> str:
    """What the pointer reads: for each curve its places in x (0 to 1), steps and values."""
    curves = []
    for one in series:
        points = thinned(one.points)
        curves.append(
            {
                "name": one.name,
                "color": one.color,
                "x": [round(axis.share(x), 4) for x, _ in points],
                "step": [x for x, _ in points],
                "y": [number(y) for _, y in points],
            }
        )
    return json.dumps(curves, separators=(",", ":")).replace("</", "<\\/")


def _said(title: str, series: Sequence[Series]) -> str:
    ends = ", ".join(f"{one.name} from {number(one.points[0][1])} to {number(one.points[-1][1])}" for one in series)
    return f"{title}: {ends}"
