"""Plots of the paper's Figures 3 to 7, 9 and 10 from the runs that exist, beside numbers that the paper states."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot

from megatron_pixel.config.schema import RenderingConfig
from megatron_pixel.rendering.renderer import Renderer
from megatron_pixel.reporting.ours import NAMES, Group, Ours, main_split, score
from megatron_pixel.reporting.published import GLUE, LANGUAGES, TITLES, published
from megatron_pixel.reporting.statistics import Estimate

COLORS = {"textgpt": "tab:gray", "pixelgpt": "tab:red", "monogpt": "tab:blue", "dualgpt": "tab:green"}
LINES = {"text": "--", "pixel": "-", "pair": ":"}


def draw_figures(ours: Ours, output: Path) -> list[tuple[Path, str]]:
    """Draw those that there are runs for; returns each picture and its title."""
    found = []
    for draw in (_scaling_glue, _scaling_xnli, _batch_sizes, _fonts, _colors, _render_modes, _languages, _study):
        figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
        try:
            told = draw(ours, axes)
            if told is not None:
                name, title = told
                figure.suptitle(title, fontsize=10)
                path = output / f"{name}.png"
                figure.savefig(path, dpi=120)
                found.append((path, title))
        finally:
            pyplot.close(figure)
    return found


def _scaling_glue(ours: Ours, axes: Any) -> tuple[str, str] | None:
    """Figure 3: pretraining against the mean over GLUE's tasks."""
    if not _scaling(ours, axes, GLUE, None):
        return None
    _lines(axes, {row.model: row.average for row in published()[1].rows if row.model in ("BERT", "PIXEL")})
    return "figure-3", "Figure 3: positions of pretraining and mean score on GLUE's tasks"


def _scaling_xnli(ours: Ours, axes: Any) -> tuple[str, str] | None:
    """Figure 4: pretraining against the mean over XNLI's languages."""
    if not _scaling(ours, axes, ("xnli",), "translate-train-all"):
        return None
    _lines(axes, {row.model: row.average for row in published()[2].rows if row.model in ("BERT", "PIXEL")})
    return "figure-4", "Figure 4: positions of pretraining and mean accuracy on XNLI, translate-train-all"


def _scaling(ours: Ours, axes: Any, tasks: Sequence[str], setting: str | None) -> bool:
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    groups = {group for task in tasks for group in ours.groups(task, setting)}
    for group in sorted(groups):
        if group.weights != "pretrained" or group.step < 0:
            continue
        means, positions = [], 0.0
        for task in tasks:
            runs = ours.runs(group, task, setting)
            if runs:
                positions = float(runs[0]["pretraining"].get("positions", 0))
                means.append(_mean(runs))
        if len(means) == len(tasks) and positions:
            curves.setdefault((group.system, group.modality), []).append((positions, sum(means) / len(means)))
    if not any(len(points) > 1 for points in curves.values()):
        return False
    for (system, modality), points in curves.items():
        points.sort()
        axes.plot(
            *zip(*points, strict=True),
            LINES[modality],
            marker="o",
            color=COLORS.get(system),
            label=_label(system, modality),
        )
    axes.set_xscale("log")
    axes.set(xlabel="positions of pretraining", ylabel="mean score")
    axes.legend(fontsize=7)
    return True


def _batch_sizes(ours: Ours, axes: Any) -> tuple[str, str] | None:
    """Figure 5: batch size against the score of a task."""
    drawn = False
    for task in ("qqp", "cola", "stsb"):
        for group in ours.newest(ours.groups(task)):
            if group.weights != "pretrained":
                continue
            by_size: dict[int, list[float]] = {}
            for result in ours.results:
                if result["task"] == task and Group.of(result) == group:
                    by_size.setdefault(result["settings"]["batch"], []).append(_mean([result]))
            if len(by_size) > 1:
                sizes = sorted(by_size)
                best = [max(by_size[size]) for size in sizes]
                axes.plot(sizes, best, marker="o", label=f"{TITLES[task]}, {_label(group.system, group.modality)}")
                drawn = True
    if not drawn:
        return None
    axes.set_xscale("log", base=2)
    axes.set(xlabel="batch", ylabel="best score")
    axes.legend(fontsize=7)
    return "figure-5", "Figure 5: batch size in fine-tuning"


def _fonts(ours: Ours, axes: Any) -> tuple[str, str] | None:
    """Figure 6: the font that fine-tuning renders with."""
    tasks = [
        task for task in GLUE if len({group.fonts for group in ours.groups(task) if group.modality == "pixel"}) > 1
    ]
    if not tasks:
        return None
    fonts = sorted({group.fonts for task in tasks for group in ours.groups(task)})
    for number, font in enumerate(fonts):
        heights = []
        for task in tasks:
            groups = [g for g in ours.newest(ours.groups(task)) if g.fonts == font and g.weights == "pretrained"]
            heights.append(max((_mean(ours.runs(group, task)) for group in groups), default=0.0))
        places = [place + number * 0.8 / len(fonts) for place in range(len(tasks))]
        axes.bar(places, heights, 0.8 / len(fonts), label=font or "as in pretraining")
    axes.set_xticks(range(len(tasks)), [TITLES[task] for task in tasks])
    axes.set(ylabel="score")
    axes.legend(fontsize=7)
    return "figure-6", "Figure 6: fine-tuning with other fonts"


def _colors(ours: Ours, axes: Any) -> tuple[str, str] | None:
    """Figure 7: texts of HatemojiBuild that runs on RGB and on gray pages judge differently, as both see them."""
    read = {}
    for group in ours.newest(ours.groups("hatemojibuild")):
        if (group.modality, group.weights) == ("pixel", "pretrained") and group.render_mode in ("rgb", "gray"):
            runs = ours.runs(group, "hatemojibuild")
            path = Path(runs[0]["folder"]) / f"predictions-{main_split(runs)}.jsonl"
            if path.is_file():
                read[group.render_mode] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if len(read) < 2:
        return None
    pairs = list(zip(read["rgb"], read["gray"], strict=True))
    differ = [pair for pair in pairs if pair[0]["prediction"] != pair[1]["prediction"] and pair[0]["texts"][0].strip()]
    differ.sort(key=lambda pair: pair[0]["prediction"] != pair[0]["label"])
    if not differ:
        return None
    figure = axes.figure
    axes.remove()
    grid = figure.subplots(min(4, len(differ)), 2, squeeze=False)
    for row, pair in zip(grid, differ, strict=False):
        for cell, mode, line in zip(row, ("rgb", "gray"), pair, strict=True):
            page = Renderer(RenderingConfig(mode=mode, seq_length=40)).render(line["texts"][0])  # type: ignore[arg-type]
            strip = page.patches(3).swapaxes(0, 1).reshape(16, -1, 3)
            cell.imshow(strip[:, : 16 * 20])
            mark = "right" if line["prediction"] == line["label"] else "wrong"
            cell.set_title(f"{mode}: {line['prediction']} ({mark})", fontsize=7)
            cell.set_axis_off()
    return "figure-7", "Figure 7: HatemojiBuild as RGB and gray pages show it"


def _render_modes(ours: Ours, axes: Any) -> tuple[str, str] | None:
    """Figure 9: render modes on XNLI, both settings."""
    settings, modes = ("translate-train-all", "cross-lingual"), ("rgb", "gray", "binary")
    ours_by: dict[tuple[str, str], float] = {}
    for setting in settings:
        for group in ours.newest(ours.groups("xnli", setting)):
            if group.modality == "pixel" and group.weights == "pretrained":
                ours_by[setting, group.render_mode] = _mean(ours.runs(group, "xnli", setting))
    if len({mode for _, mode in ours_by}) < 2:
        return None
    for number, mode in enumerate(modes):
        places = [place + number * 0.25 for place in range(len(settings))]
        axes.bar(places, [ours_by.get((setting, mode), 0.0) for setting in settings], 0.22, label=mode)
        for place, setting in zip(places, settings, strict=True):
            paper = next(r.average for r in published()[17].rows if (r.setting, r.render_mode) == (setting, mode))
            axes.plot([place - 0.11, place + 0.11], [paper, paper], color="black", linewidth=1)
    axes.set_xticks([0.25, 1.25], settings)
    axes.set(ylabel="mean accuracy (black: the paper's)")
    axes.legend(fontsize=7)
    return "figure-9", "Figure 9: render modes on XNLI"


def _languages(ours: Ours, axes: Any) -> tuple[str, str] | None:
    """Figure 10: accuracy by language, beside BERT and PIXEL."""
    groups = [g for g in ours.newest(ours.groups("xnli", "translate-train-all")) if g.weights == "pretrained"]
    if not groups:
        return None
    figure = axes.figure
    axes.remove()
    axes = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * place / len(LANGUAGES) for place in range(len(LANGUAGES))]

    def ring(values: Sequence[float], label: str, line: str) -> None:
        axes.plot([*angles, angles[0]], [*values, values[0]], line, label=label, linewidth=1)

    for row in published()[2].rows:
        if row.model in ("BERT", "PIXEL", "PixelGPT"):
            ring([float(row.scores[language] or 0) for language in LANGUAGES], f"{row.model} (paper)", "--")  # type: ignore[arg-type]
    for group in groups:
        runs = ours.runs(group, "xnli", "translate-train-all")
        found = [score(runs, f"test-{language}") or score(runs, f"validation-{language}") for language in LANGUAGES]
        if all(found):
            ring([e.mean for e in found if e is not None], f"{_label(group.system, group.modality)} (ours)", "-")
    axes.set_xticks(angles, LANGUAGES, fontsize=7)
    axes.legend(fontsize=6, loc="lower left", bbox_to_anchor=(1.0, 0.0))
    return "figure-10", "Figure 10: accuracy by language on XNLI, translate-train-all"


def _study(ours: Ours, axes: Any) -> tuple[str, str] | None:
    """Tasks outside the paper: score of each group with its 95% interval, beside random weights and majority."""
    task = next((task for task in ("custom",) if ours.groups(task)), None)
    if task is None:
        return None
    groups = sorted(ours.groups(task), key=lambda g: (g.modality, g.weights != "random", g.system, g.step))
    runs = [ours.runs(group, task) for group in groups]
    split = main_split(runs[0])
    estimates = [score(found, split) or Estimate(0.0, None, 0) for found in runs]
    labels = [
        f"random weights, {g.modality}" if g.weights == "random" else _label(g.system, g.modality) for g in groups
    ]
    places = range(len(groups))
    colors = ["lightgray" if g.weights == "random" else COLORS.get(g.system, "tab:purple") for g in groups]
    axes.barh(places, [e.mean for e in estimates], xerr=[e.half_width or 0.0 for e in estimates], color=colors)
    axes.axvline(runs[0][0]["majority"][split] * 100, color="black", linewidth=1, linestyle="--")
    axes.set_yticks(places, labels, fontsize=7)
    low = min(e.mean - (e.half_width or 0.0) for e in estimates)
    axes.set(xlabel=f"{runs[0][0]['metric']} in percent; dashed: majority", xlim=(max(0.0, low - 10), None))
    return "study", f"Task {task}: mean and 95% interval over seeds"


def _mean(runs: Sequence[dict[str, Any]]) -> float:
    """Mean score in percent over runs and over the splits that are reported: test splits where there are any."""
    names = list(runs[0]["scores"])
    tests = [name for name in names if name.startswith("test")] or names
    values = [run["scores"][name][run["metric"]] * 100 for run in runs for name in tests]
    return sum(values) / len(values)


def _label(system: str, modality: str) -> str:
    return f"{NAMES.get(system, system)}, {modality}"


def _lines(axes: Any, values: dict[str, float | None]) -> None:
    for name, value in values.items():
        if value is not None:
            axes.axhline(value, color="black", linewidth=0.7, linestyle=":")
            axes.annotate(f"{name} (paper)", (0.01, value), xycoords=("axes fraction", "data"), fontsize=6)
