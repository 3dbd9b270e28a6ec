"""Curves of a run as one SVG picture, for the model card."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 300, 56, 150, 16, 36
_COLORS = ("#2f6db3", "#d6541e", "#3a8a4d", "#7b4fa3")
_POINTS = 300
CURVES = {
    "loss_token_text": "text tokens, nats",
    "loss_token_pair": "pair tokens, nats",
    "loss_patch_pixel": "pixel patches, error",
    "loss_patch_pair": "pair patches, error",
}
"""Losses by kind of row, as ``metrics.jsonl`` names them."""

Line = dict[str, Any]


def read_metrics(path: Path) -> list[Line]:
    """The lines of a ``metrics.jsonl``; none where there is no such file. A last line that is cut short is left out."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break
    return lines


def loss_curves(metrics: Sequence[Line]) -> str | None:
    """Training losses over steps as SVG, held-out ones as dots; None where there are fewer than two steps.

    The axis of losses is logarithmic: tokens and patches have losses of different sizes.
    """
    series = {key: _series(metrics, key) for key in CURVES}
    heldout = {key: _series(metrics, f"eval_{key}") for key in CURVES}
    shown = [key for key in CURVES if len(series[key]) > 1]
    if not shown:
        return None
    points = [point for key in shown for point in series[key] + heldout[key]]
    steps = [step for step, _ in points]
    low, high = min(value for _, value in points), max(value for _, value in points)
    low, high = math.log(low) - 0.05, math.log(high) + 0.05
    across = (WIDTH - LEFT - RIGHT) / max(max(steps) - min(steps), 1)
    down = (HEIGHT - TOP - BOTTOM) / (high - low)

    def place(step: float, value: float) -> tuple[float, float]:
        return LEFT + (step - min(steps)) * across, TOP + (high - math.log(value)) * down

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    ]
    for value in _ticks(math.exp(low), math.exp(high)):
        _, y = place(min(steps), value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#555">{value:g}</text>')
    for step in sorted({min(steps), (min(steps) + max(steps)) // 2, max(steps)}):
        x, _ = place(step, math.exp(low))
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle" fill="#555">{step:,}</text>')
    for number, key in enumerate(shown):
        color = _COLORS[list(CURVES).index(key)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in _thinned(series[key])))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        for x, y in (place(*point) for point in heldout[key]):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}" stroke="white"/>')
        y = TOP + 12 + 18 * number
        parts.append(f'<text x="{WIDTH - RIGHT + 12}" y="{y}" fill="{color}">{escape(CURVES[key])}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _series(metrics: Sequence[Line], key: str) -> list[tuple[int, float]]:
    return [(line["step"], line[key]) for line in metrics if line.get(key) and line[key] > 0]


def _thinned(series: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most ``_POINTS`` points, each the mean of its neighbors."""
    size = -(-len(series) // _POINTS)
    groups = [series[start : start + size] for start in range(0, len(series), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _ticks(low: float, high: float) -> list[float]:
    ticks = [base * 10.0**power for power in range(-4, 5) for base in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]
