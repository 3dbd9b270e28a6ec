"""Points of a search: settings that differ, as data. A grid file holds

- ``fixed``: settings of all points, by dotted name;
- ``cases``: a list of settings that go together, one point each (``for`` names the system that a case is meant for);
- ``grid``: lists of values, of which every combination is taken with every case.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.keys import settings
from megatron_pixel.config.loader import build
from megatron_pixel.config.source import Origin, unknown_key
from megatron_pixel.config.values import ConfigLoader, from_yaml
from megatron_pixel.finetuning.arguments import check

FOLDER = Path(__file__).parent / "grids"
FOR = "for"
_SECTIONS = ("fixed", "cases", "grid")


@dataclass(frozen=True)
class Point:
    """One combination of settings."""

    values: dict[str, Any]
    """By dotted name."""

    @property
    def name(self) -> str:
        """Of its folder: the same whenever the same settings are searched, also in a grid that has grown."""
        text = json.dumps(self.values, sort_keys=True)
        task, modality = self.values.get("task", "custom"), self.values.get("modality", "pixel")
        return f"{task}-{modality}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def config(self, folder: Path) -> FinetuningConfig:
        """Checked settings of its run in ``folder``."""
        values = {**self.values, "run.dir": str(folder)}
        config = build(FinetuningConfig, {key: Origin(value, "") for key, value in values.items()})
        check(config)
        return config


def find_grid(name: str) -> Path:
    """A grid file by its path, or one of the paper's by its name (``table12``).

    Raises:
        UserError: neither.
    """
    for path in (Path(name), FOLDER / f"{name}.yaml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
    raise UserError(f"grid: there is no file {name}; the paper's own are {known}")


def read_points(path: Path, changes: Mapping[str, Any] | None = None, system: str | None = None) -> list[Point]:
    """The points of a grid file, in its order, each once.

    Args:
        path: the file.
        changes: settings over those of the file, for all points; a task, modality or setting of XNLI chooses among the
            cases that state one.
        system: take only the cases for this system, and those for any.

    Raises:
        UserError: unknown sections or settings, values of the wrong type, or no point left.
    """
    content, cases = _read(path)
    fixed = _checked(path, "fixed", content.get("fixed") or {})
    systems = sorted({case[FOR] for case in cases if FOR in case})
    changes = changes or {}
    cases = [case for case in cases if system is None or case.get(FOR, system) == system]
    cases = [
        case for case in cases if all(case.get(key, changes.get(key)) == changes.get(key) for key in _chosen(changes))
    ]
    axes = content.get("grid") or {}
    for key, values in axes.items():
        if not isinstance(values, list) or not values:
            raise UserError(f"{path}: grid: {key}: expected a list of values")
    named = [[(key, value) for value in values] for key, values in axes.items()]
    points: dict[str, Point] = {}
    for case in cases:
        own = {key: value for key, value in case.items() if key != FOR}
        for combination in itertools.product(*named):
            values = {**fixed, **own, **_checked(path, "grid", dict(combination)), **changes}
            point = Point(values)
            points[point.name] = point
    if not points:
        asked = ", ".join(str(changes[key]) for key in _chosen(changes)) or "anything"
        raise UserError(
            f"{path}: no case for {asked}" + (f" of {system}; it is for {', '.join(systems)}" if system else "")
        )
    return list(points.values())


def read_cases(path: Path) -> list[dict[str, Any]]:
    """The cases of a grid file, each with the fixed settings, and ``for`` where it is for one system."""
    content, cases = _read(path)
    fixed = _checked(path, "fixed", content.get("fixed") or {})
    return [{**fixed, **case} for case in cases]


def sampled(points: Sequence[Point], count: int, seed: int) -> list[Point]:
    """``count`` points drawn at random, always the same ones for a seed; a larger draw holds a smaller one."""
    order = list(range(len(points)))
    random.Random(seed).shuffle(order)
    return [points[i] for i in sorted(order[:count])] if count else list(points)


def paper_settings(system: str, task: str, modality: str, setting: str) -> tuple[dict[str, Any], str]:
    """The paper's best settings, and where they stand.

    For MonoGPT and DualGPT on GLUE the paper states none; TextGPT's for text and PixelGPT's for pixels and pairs are
    taken, and the second value says so.

    Raises:
        UserError: the paper has none for this task.
    """
    if task == "xnli":
        table, source = "table14", system
    else:
        table, source = ("table12", "textgpt") if modality == "text" else ("table13", "pixelgpt")
    for point in read_points(find_grid(table), system=source):
        values = point.values
        if values["task"] != task or values.get("examples.setting", setting) != setting:
            continue
        if task == "xnli" and values["modality"] != modality:
            continue
        best = {key: value for key, value in values.items() if key not in ("task", "modality")}
        note = "" if system == source else f", those of {source}: the paper states none for {system}"
        return best, f"Table {table.removeprefix('table')} of the paper{note}"
    raise UserError(f"the paper states no settings for {system} on {task} with modality {modality}")


def _read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Content and cases of a grid file; one empty case where it has none."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), ConfigLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict) or set(content) - set(_SECTIONS):
        raise UserError(f"{path}: expected the sections {', '.join(_SECTIONS)}")
    return content, [_case(path, case) for case in content.get("cases") or [{}]]


def _chosen(changes: Mapping[str, Any]) -> list[str]:
    return [key for key in ("task", "modality", "examples.setting") if key in changes]


def _case(path: Path, case: Any) -> dict[str, Any]:
    if not isinstance(case, dict):
        raise UserError(f"{path}: cases: expected settings with values, got {case!r}")
    system = {FOR: case[FOR]} if FOR in case else {}
    return system | _checked(path, "cases", {key: value for key, value in case.items() if key != FOR})


def _checked(path: Path, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    known = settings(FinetuningConfig)
    for key, value in values.items():
        if key not in known:
            raise UserError(unknown_key(f"{path}: {section}", key, value, FinetuningConfig))
        try:
            from_yaml(value, known[key].annotation)
        except ValueError as error:
            raise UserError(f"{path}: {section}: {key}: {error}") from None
    return {key: from_yaml(value, known[key].annotation) for key, value in values.items()}
