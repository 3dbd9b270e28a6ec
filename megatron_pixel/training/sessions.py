"""When a run was started and how each start ended: ``logs/sessions.jsonl`` in its folder, a line an event.

Rank 0 writes ``start`` and ``end``; a start without an end behind it was killed or lost its machine. A supervisor adds
``failure`` with the rank that it saw die.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

FILE = Path("logs", "sessions.jsonl")

Event = Literal["start", "end", "failure"]


def note(folder: Path, event: Event, facts: Mapping[str, Any]) -> None:
    """Append an event with its time (UTC, ISO 8601) to the file of the run in ``folder``, and force it to disk."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **facts}) + "\n"
    with path.open("a+b") as file:
        # A kill may have left a line without its end.
        file.seek(0, os.SEEK_END)
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[dict[str, Any]]:
    """All events of the run in ``folder``, the first one first; a line that was cut short is left out."""
    path = folder / FILE
    events = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
