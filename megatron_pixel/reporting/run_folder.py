"""A run as its folder tells it: settings, curves, starts and ends, checkpoints, what was said. Without torch; fast."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from megatron_pixel.config.errors import UserError
from megatron_pixel.training import sessions
from megatron_pixel.training.checkpoint_files import list_checkpoints

TAIL_BYTES = 1 << 20
"""End of metrics.jsonl that is enough to say where a run stands: some hundred steps."""
LOG_TAIL_BYTES = 1 << 18
_TROUBLE = re.compile(
    r"ended by|skipped|not finite|spike|slow|stuck|hang|error|warning|fail|passed over|no room",
    re.IGNORECASE,
)
_PROGRESS = re.compile(r"step +[\d,]+(/|: (held-out|saved|is saving))|\w+ {3,}\S|megatron_pixel ")
"""Lines of steps, and of the block that a run begins with: a name and what it is in a column."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint."""

    step: int
    folder: Path
    bytes: int
    time: float
    """When it got its name, seconds since 1970."""


class RunFolder:
    """The folder of a run.

    Args:
        path: of the folder.

    Raises:
        UserError: it is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / "config.yaml"
        if not file.is_file():
            raise UserError(f"{path} is no run: it has no config.yaml")
        try:
            self.settings: Mapping[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.resolve().name

    def setting(self, name: str, default: Any = None) -> Any:
        """A setting by its dotted name, of a run of any version."""
        value: Any = self.settings
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return value

    @property
    def metrics(self) -> Path:
        """The file of its curves."""
        return self.path / "metrics.jsonl"

    def lines(self, tail: int | None = None) -> tuple[list[Record], list[Record]]:
        """Lines of steps and of evaluations, in order; a line that is being written is left out.

        Args:
            tail: read no more than so many bytes of the end.
        """
        steps: list[Record] = []
        evaluations: list[Record] = []
        for line in _end_of(self.metrics, tail):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and "step" in record:
                (evaluations if "eval_loss" in record else steps).append(record)
        return steps, evaluations

    def sessions(self) -> list[dict[str, Any]]:
        """Starts, ends and failures, oldest first."""
        return [event for event in sessions.read(self.path) if isinstance(event, dict) and "event" in event]

    def checkpoints(self) -> list[Checkpoint]:
        """Whole checkpoints, oldest first."""
        found = []
        for step, folder in reversed(list_checkpoints(self.path / "checkpoints")):
            try:
                manifest = folder / "manifest.json"
                table = json.loads(manifest.read_text(encoding="utf-8"))["files"]
                size = sum(entry["bytes"] for entry in table.values())
                found.append(Checkpoint(step, folder, size, manifest.stat().st_mtime))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # not whole, or being deleted
        return found

    def log(self) -> list[tuple[datetime | None, str]]:
        """The end of what the run said: time and line."""
        said: list[tuple[datetime | None, str]] = []
        for line in _end_of(self.path / "logs" / "pretrain.log", LOG_TAIL_BYTES):
            stamp, _, text = line.partition("  ")
            try:
                said.append((datetime.fromisoformat(stamp), text.strip()))
            except ValueError:
                said.append((None, line.strip()))
        return said

    def troubles(self) -> list[tuple[str, str]]:
        """(time, line) of warnings and errors, oldest first, from the log and from the ends of processes."""
        found = [
            (stamp.isoformat(sep=" ") if stamp else "", text)
            for stamp, text in self.log()
            if _TROUBLE.search(text) and not _PROGRESS.match(text)
        ]
        for event in self.sessions():
            if event["event"] == "failure":
                found.append((_local(event), f"rank {event.get('rank')} of {event.get('ranks')}: {event.get('cause')}"))
            elif event["event"] == "end" and event.get("status") not in (0, 75, None):
                found.append((_local(event), f"ended with status {event['status']}: {event.get('reason')}"))
        return sorted(found, key=lambda entry: entry[0])

    def last_written(self) -> float | None:
        """When a step, a line or a part of a checkpoint was last written, seconds since 1970."""
        files = [self.metrics, self.path / "logs" / "pretrain.log", self.path / "checkpoints.writing"]
        times = [file.stat().st_mtime for file in files if file.exists()]
        return max(times, default=None)


def _local(event: Mapping[str, Any]) -> str:
    """Time of an event as the log has it: of this machine's zone, without it."""
    try:
        return datetime.fromisoformat(event["time"]).astimezone().replace(tzinfo=None).isoformat(sep=" ")
    except (KeyError, ValueError):
        return ""


def _end_of(path: Path, tail: int | None) -> Iterator[str]:
    """Lines of a file, of its last ``tail`` bytes only if given; none where it is not there."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if tail is not None and size > tail:
                file.seek(size - tail)
                file.readline()
            for line in file:
                yield line.decode("utf-8", errors="replace")
    except FileNotFoundError:
        return


def median(values: Sequence[float]) -> float | None:
    """The middle value; None of nothing."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None
