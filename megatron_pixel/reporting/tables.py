"""The paper's tables with rows of our own runs beside the published ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_pixel.reporting.ours import NAMES, SPLITS, Group, Ours, main_split, score
from megatron_pixel.reporting.published import GLUE, LANGUAGES, TITLES, PublishedRow, published
from megatron_pixel.reporting.statistics import Difference, Estimate

PAPER, HERE = "paper", "ours"


@dataclass
class Table:
    """A table as text cells; the first column names the row, the second says whose numbers it holds."""

    key: str
    """``table-3``; name of its files and entry."""
    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    """The rows again as numbers, for machines."""

    def markdown(self) -> str:
        """As a Markdown table under its title."""
        lines = [f"### {self.title}", "", _line(self.columns), _line(["---"] * len(self.columns))]
        lines += [_line(row) for row in self.rows]
        if self.notes:
            lines += ["", *(f"{note}" for note in self.notes)]
        return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def paper_tables(ours: Ours) -> list[Table]:
    """Tables 1 to 5 and 15 to 17."""
    return [_results_table(number, ours) for number in published()]


def _results_table(number: int, ours: Ours) -> Table:
    source = published()[number]
    columns = ["model", "numbers of", "reads"]
    with_setting = len({row.setting for row in source.rows}) > 1
    columns += ["setting"] if with_setting else []
    columns += [TITLES.get(column, column) for column in source.columns]
    columns += [] if source.kind == "hatemojibuild" else ["average"]
    table = Table(f"table-{number}", f"Table {number}: {source.title}", columns)
    wanted: dict[tuple[str, str, str | None, str], None] = {}
    for row in source.rows:
        _add_published(table, row, source.columns, with_setting)
        if row.model in NAMES.values():
            wanted[row.model, row.modality, row.setting, row.render_mode or "rgb"] = None
    # Our rows stand below the paper's: the same systems and modalities, and what random weights reach.
    for model, modality, setting, mode in wanted:
        for group in _groups(ours, source.kind, setting, modality, mode):
            if NAMES.get(group.system, group.system) == model:
                _add_ours(table, ours, group, source.kind, setting, with_setting)
    if not any(row[1].startswith(HERE) for row in table.rows):
        table.notes.append("No runs here for this table.")
    return table


def _groups(ours: Ours, kind: str, setting: str | None, modality: str, mode: str) -> list[Group]:
    tasks = GLUE if kind == "glue" else (kind,)
    found = ours.newest(group for task in tasks for group in ours.groups(task, setting))
    return [
        group for group in found if group.modality == modality and group.render_mode in ("", mode) and not group.fonts
    ]


def _add_published(table: Table, row: PublishedRow, columns: Sequence[str], with_setting: bool) -> None:
    name = row.model if row.render_mode is None else f"{row.model}, {row.render_mode}"
    cells = [name, PAPER, row.modality] + ([row.setting or ""] if with_setting else [])
    for column in columns:
        value = row.scores.get(column)
        if value is None:
            cells.append("-")
        else:
            cells.append("/".join(f"{v:.1f}" for v in value) if isinstance(value, tuple) else f"{value:.1f}")
    if len(cells) < len(table.columns):
        cells.append("-" if row.average is None else f"{row.average:.1f}")
    table.rows.append(cells)
    table.figures.append({"model": name, "numbers_of": PAPER, "reads": row.modality, "scores": row.scores})


def _add_ours(table: Table, ours: Ours, group: Group, kind: str, setting: str | None, with_setting: bool) -> None:
    estimates: dict[str, list[Estimate]] = {}
    seeds = 0
    if kind == "xnli":
        runs = ours.runs(group, "xnli", setting)
        seeds = len(runs)
        for language in LANGUAGES:
            found = score(runs, f"test-{language}") or score(runs, f"validation-{language}")
            estimates[language] = [found] if found else []
    else:
        for task in GLUE if kind == "glue" else (kind,):
            runs = ours.runs(group, task)
            seeds = max(seeds, len(runs))
            names = SPLITS.get(task) or ((main_split(runs),) if runs else ())
            estimates[task] = [found for name in names if (found := score(runs, name))]
    if not any(estimates.values()):
        return
    cells = [group.name, f"{HERE}, {seeds} seed(s)", group.modality] + ([setting or ""] if with_setting else [])
    for found_here in estimates.values():
        cells.append(" / ".join(_cell(estimate) for estimate in found_here) or "-")
    means = [estimate.mean for found_here in estimates.values() for estimate in found_here]
    if len(cells) < len(table.columns):
        complete = all(estimates.values())
        cells.append(f"{sum(means) / len(means):.1f}" if complete else "-")
    table.rows.append(cells)
    table.figures.append(
        {
            "model": group.name,
            "numbers_of": HERE,
            "reads": group.modality,
            "step": group.step,
            "scores": {key: [vars(estimate) for estimate in found] for key, found in estimates.items()},
        }
    )


def _cell(estimate: Estimate) -> str:
    return f"{estimate.mean:.1f}" + ("" if estimate.deviation is None else f" ± {estimate.deviation:.1f}")


def settings_tables(ours: Ours) -> list[Table]:
    """Tables 12 to 14: the best settings, the paper's from its grids and ours from the searches that there are."""
    from megatron_pixel.finetuning.grid import FOR, find_grid, read_cases

    tables = []
    titles = {12: "TextGPT on GLUE", 13: "PixelGPT on GLUE", 14: "XNLI"}
    short = {
        "optimizer.lr": "lr",
        "optimizer.schedule": "schedule",
        "optimizer.warmup_steps": "warmup_steps",
        "training.global_batch_rows": "batch",
        "input.length": "length",
        "dropout": "dropout",
        "training.steps": "steps",
    }
    for number, title in titles.items():
        columns = ["model", "numbers of", "task", "reads", *short.values()]
        table = Table(f"table-{number}", f"Table {number}: settings for {title}", columns)
        for case in read_cases(find_grid(f"table{number}")):
            task, modality, system = case.get("task", "xnli"), case["modality"], case[FOR]
            setting = case.get("examples.setting")
            told = {name: case.get(key) for key, name in short.items()}
            if number == 12:
                told["steps"] = None  # the grid's are taken from Table 13
            name = task if setting is None else f"{task}, {setting}"
            _add_settings(table, NAMES[system], PAPER, name, modality, told)
            for group in ours.newest(ours.groups(task, setting)):
                if (group.system, group.modality, group.weights) == (system, modality, "pretrained"):
                    runs = ours.runs(group, task, setting)
                    _add_settings(table, group.name, HERE, name, modality, runs[0]["settings"])
        tables.append(table)
    return tables


def _add_settings(table: Table, model: str, whose: str, task: str, modality: str, told: dict[str, Any]) -> None:
    names = table.columns[4:]
    cells = [
        "-" if told.get(name) is None else f"{told[name]:g}" if name != "schedule" else told[name] for name in names
    ]
    table.rows.append([model, whose, task, modality, *cells])
    table.figures.append({"model": model, "numbers_of": whose, "task": task, "reads": modality, "settings": told})


def study_tables(ours: Ours) -> list[Table]:
    """For each task outside the paper: every group, its gain over random weights with a 95% interval, and majority."""
    return [
        _study_table(task, ours)
        for task in sorted({r["task"] for r in ours.results} - {*GLUE, "xnli", "hatemojibuild"})
    ]


def _study_table(task: str, ours: Ours) -> Table:
    groups = ours.groups(task)
    first = ours.runs(groups[0], task)
    metric = first[0]["metric"]
    split = main_split(first)
    table = Table(
        task,
        f"Task {task}: {metric} of the split {split}, in percent",
        ["model", "reads", "steps", f"{metric}: mean ± deviation (seeds)", "95% interval", "over random weights [95%]"],
    )
    guess = first[0]["majority"][split] * 100
    table.rows.append(
        ["majority class" if metric not in ("spearman", "pearson") else "mean", "-", "-", f"{guess:.1f}", "-", "-"]
    )
    table.figures.append({"model": "majority", "score": guess})
    random = {group.modality: score(ours.runs(group, task), split) for group in groups if group.weights == "random"}
    for group in sorted(groups, key=lambda g: (g.modality, g.weights != "random", g.system, g.step)):
        estimate = score(ours.runs(group, task), split)
        if estimate is None:
            continue
        half = estimate.half_width
        interval = "-" if half is None else f"{estimate.mean - half:.1f} to {estimate.mean + half:.1f}"
        baseline = random.get(group.modality) if group.weights != "random" else None
        gain = Difference.of(estimate, baseline) if baseline is not None else None
        name = f"random weights ({group.modality})" if group.weights == "random" else group.name
        step = "-" if group.weights == "random" else f"{group.step:,}"
        shown = (
            "-"
            if gain is None
            else f"{gain}" + ("" if gain.is_shown else " (not shown)" if gain.is_shown is False else "")
        )
        table.rows.append([name, group.modality, step, str(estimate), interval, shown])
        table.figures.append(
            {
                "model": name,
                "system": group.system,
                "reads": group.modality,
                "weights": group.weights,
                "render_mode": group.render_mode,
                "step": group.step,
                "score": vars(estimate),
                "half_width": half,
                "gain": None if gain is None else {**vars(gain), "is_shown": gain.is_shown},
            }
        )
    return table
