"""The paper's own numbers, from ``published.yaml``."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megatron_pixel.config.values import ConfigLoader

GLUE = ("mnli", "qqp", "qnli", "sst2", "cola", "stsb", "mrpc", "rte", "wnli")
"""In the order of the paper's tables."""
LANGUAGES = ("en", "ar", "bg", "de", "el", "fr", "hi", "ru", "es", "sw", "th", "tr", "ur", "vi", "zh")
TITLES = {
    "mnli": "MNLI-m/mm",
    "qqp": "QQP",
    "qnli": "QNLI",
    "sst2": "SST-2",
    "cola": "CoLA",
    "stsb": "STS-B",
    "mrpc": "MRPC",
    "rte": "RTE",
    "wnli": "WNLI",
    "hatemojibuild": "Acc",
}


@dataclass(frozen=True)
class PublishedRow:
    """A row of a table of the paper; scores in percent."""

    model: str
    text: bool
    pixel: bool
    scores: dict[str, float | tuple[float, float] | None]
    """By task or language; of MNLI matched and mismatched where the paper has both."""
    average: float | None = None
    setting: str | None = None
    """Of XNLI."""
    render_mode: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        """``text``, ``pixel`` or ``pair``."""
        return "pair" if self.text and self.pixel else "text" if self.text else "pixel"


@dataclass(frozen=True)
class PublishedTable:
    """A table of the paper."""

    number: int
    title: str
    kind: str
    """``glue``, ``xnli`` or ``hatemojibuild``."""
    rows: list[PublishedRow]

    @property
    def columns(self) -> tuple[str, ...]:
        """Keys of the scores, in order."""
        return {"glue": GLUE, "xnli": LANGUAGES}.get(self.kind, (self.kind,))


@cache
def published() -> dict[int, PublishedTable]:
    """The paper's tables by number."""
    path = Path(__file__).with_name("published.yaml")
    content = yaml.load(path.read_text(encoding="utf-8"), ConfigLoader)["tables"]
    return {number: _table(number, table) for number, table in content.items()}


def _table(number: int, content: dict[str, Any]) -> PublishedTable:
    rows = []
    for row in content["rows"]:
        scores = {key: tuple(value) if isinstance(value, list) else value for key, value in row["scores"].items()}
        facts = {key: row[key] for key in ("parameters", "languages") if key in row}
        setting = row.get("setting", content.get("setting"))
        rows.append(
            PublishedRow(
                row["model"],
                row["text"],
                row["pixel"],
                scores,
                row.get("average"),
                setting,
                row.get("render_mode"),
                facts,
            )
        )
    return PublishedTable(number, content["title"], content["kind"], rows)
