"""Results of fine-tuning runs, gathered: which of them make a row of a table."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_pixel.reporting.statistics import Estimate

NAMES = {"textgpt": "TextGPT", "pixelgpt": "PixelGPT", "monogpt": "MonoGPT", "dualgpt": "DualGPT"}
SPLITS = {"mnli": ("validation-matched", "validation-mismatched")}


@dataclass(frozen=True, order=True)
class Group:
    """What runs have in common that differ by seed and settings alone."""

    system: str
    modality: str
    weights: str
    render_mode: str
    fonts: str
    step: int
    """Of pretraining, -1 where not known."""

    @classmethod
    def of(cls, result: dict[str, Any]) -> "Group":
        """The group of a result."""
        step = result["pretraining"]["step"]
        return cls(
            result["system"],
            result["modality"],
            result["weights"],
            result["render_mode"] or "",
            " ".join(result["fonts"]),
            -1 if step is None else step,
        )

    @property
    def name(self) -> str:
        """For the first column of a table."""
        words = [NAMES.get(self.system, self.system)]
        if self.weights == "random":
            words.append("random weights")
        if self.render_mode not in ("", "rgb"):
            words.append(self.render_mode)
        if self.fonts:
            words.append(self.fonts)
        return ", ".join(words)


class Ours:
    """The results of a folder.

    Args:
        results: as ``finetuning.search.results_below`` reads them.
    """

    def __init__(self, results: Sequence[dict[str, Any]]) -> None:
        self.results = list(results)

    def groups(self, task: str, setting: str | None = None) -> list[Group]:
        """Groups that have runs of a task."""
        return sorted({Group.of(r) for r in self._of(task, setting)})

    def runs(self, group: Group, task: str, setting: str | None = None) -> list[dict[str, Any]]:
        """The runs of a group at its best settings: those whose mean score over seeds is highest.

        Settings are chosen on the splits that choose the best step, never on test splits.
        """
        runs = [result for result in self._of(task, setting) if Group.of(result) == group]
        by_settings: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            by_settings.setdefault(repr(sorted(run["settings"].items())), []).append(run)
        return max(by_settings.values(), key=lambda found: sum(r["score"] for r in found) / len(found), default=[])

    def newest(self, groups: Iterable[Group]) -> list[Group]:
        """Of groups that differ by their step of pretraining alone, the last one."""
        last: dict[tuple[str, ...], Group] = {}
        for group in sorted(groups):
            last[group.system, group.modality, group.weights, group.render_mode, group.fonts] = group
        return list(last.values())

    def _of(self, task: str, setting: str | None) -> list[dict[str, Any]]:
        return [r for r in self.results if r["task"] == task and (setting is None or r["setting"] == setting)]


def score(runs: Sequence[dict[str, Any]], split: str) -> Estimate | None:
    """The metric of a split in percent; None where no run has it."""
    values = [run["scores"][split][run["metric"]] * 100 for run in runs if split in run["scores"]]
    return Estimate.of(values) if values else None


def main_split(runs: Sequence[dict[str, Any]]) -> str:
    """The split to report: the test split where there is one, else the one that chose."""
    names = list(runs[0]["scores"])
    return next((name for name in names if name == "test"), names[0])
