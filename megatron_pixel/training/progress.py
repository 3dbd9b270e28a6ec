"""One line that says where a run stands: rewritten in place on a terminal, printed now and then elsewhere."""

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TextIO

SLOW_DATA = 0.05
"""Share of a step that may go into waiting for rows before the line says so."""


def duration(seconds: float) -> str:
    """``93784`` -> ``1d 02:03:04``; hours, minutes and seconds, days only where there are any."""
    days, rest = divmod(max(0, round(seconds)), 86400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock


def quantity(value: float) -> str:
    """Three significant figures with a suffix: ``12345`` -> ``12.3k``."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


class Progress:
    """Progress of a run with the time that is left.

    The time of a step is averaged with a half-life of about 14 steps, so the estimate follows a changed pace but does
    not jump with each step. What happens between steps (evaluation, checkpoints) comes rarely and takes long: its share
    is the one of all the time since the start.
    """

    SMOOTHING = 0.05

    def __init__(
        self,
        steps: int,
        last: int,
        every: int,
        stream: TextIO | None = None,
        log: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``steps`` of the whole schedule, ``last`` that this process will take, a plain line each ``every`` steps.

        ``stream`` is what the user watches, standard output by default; ``log`` gets the plain lines in any case.
        """
        self._stream = stream if stream is not None else sys.stdout
        self._log = log
        self._interactive = self._stream.isatty()
        self._steps = steps
        self._last = last
        self._every = max(1, every)
        self._clock = clock
        self._begin: float | None = None
        self._stepping = 0.0
        self._seconds: float | None = None
        self._width = 0

    def step(self, record: Mapping[str, Any]) -> None:
        """Show the metrics of one step."""
        step, seconds = int(record["step"]), float(record["seconds"])
        if self._begin is None or self._seconds is None:
            # The first step of a process also warms up: it is left out once there is a second one.
            self._begin, self._seconds = self._clock(), seconds
        else:
            first = self._stepping == 0.0
            self._seconds = seconds if first else self._seconds + self.SMOOTHING * (seconds - self._seconds)
            self._stepping += seconds
        plain = step % self._every == 0 or step == self._last
        if not self._interactive and not plain:
            return
        fields = [*self._fields(record, step), (0, f"ETA {duration(self._left(step))}")]
        line = "  ".join(text for _, text in fields)
        self._show(self._fitted(fields) if self._interactive else line)
        if plain:
            self.keep(line)

    def note(self, message: str) -> None:
        """A line that stays: evaluation, checkpoint, warning."""
        self.finish()
        print(message, file=self._stream, flush=True)
        self.keep(message)

    def keep(self, text: str) -> None:
        """A line for the log alone, with the time."""
        if self._log is not None:
            print(f"{datetime.now().isoformat(timespec='seconds')}  {text}", file=self._log, flush=True)

    def finish(self) -> None:
        """End the line that is rewritten, so that what follows starts on its own."""
        if self._width:
            print(file=self._stream, flush=True)
        self._width = 0

    def _left(self, step: int) -> float:
        """Seconds until the last step."""
        assert self._begin is not None
        assert self._seconds is not None
        wall = self._clock() - self._begin
        overhead = max(1.0, wall / self._stepping) if self._stepping else 1.0
        return self._seconds * overhead * (self._last - step)

    def _fields(self, record: Mapping[str, Any], step: int) -> list[tuple[int, str]]:
        """Parts of the line; those of a higher number give way first where the line does not fit."""
        steps = f"{self._steps:,}"
        seconds = float(record["seconds"])
        fields = [
            (0, f"step {step:>{len(steps)},}/{steps}"),
            (4, f"{step / self._steps:4.0%}"),
            *((place, text) for place, text in zip((0, 1), _losses(record), strict=False)),
            (3, f"lr {record['lr']:.2e}"),
        ]
        if record.get("grad_norm") is not None:
            fields.append((2, f"norm {record['grad_norm']:.3g}"))
        fields.append((2, f"{seconds:.3g} s/step"))
        for rate, name in (("tokens_per_second", "tok/s"), ("patches_per_second", "patch/s")):
            if record.get(rate):
                fields.append((2, f"{quantity(float(record[rate]))} {name}"))
        if record.get("mfu") is not None:
            fields.append((2, f"MFU {record['mfu']:.1%}"))
        if record.get("memory_gb") is not None:
            fields.append((4, f"{record['memory_gb']:.3g} GB"))
        waits = (record.get("data_seconds") or 0.0) / seconds if seconds else 0.0
        if waits > SLOW_DATA:
            fields.append((1, f"waits for data {waits:.0%}"))
        if record.get("skipped_steps"):
            fields.append((1, f"skipped {record['skipped_steps']}"))
        return fields

    def _fitted(self, fields: list[tuple[int, str]]) -> str:
        """The line with as much as a row of the terminal takes: one that wraps cannot be rewritten in place."""
        width = shutil.get_terminal_size().columns - 1
        for least in range(max(place for place, _ in fields), -1, -1):
            line = "  ".join(text for place, text in fields if place <= least)
            if len(line) <= width:
                return line
        return line[:width]

    def _show(self, line: str) -> None:
        if self._interactive:
            print("\r" + line.ljust(self._width), end="", file=self._stream, flush=True)
            self._width = len(line)
        else:
            print(line, file=self._stream, flush=True)


SHORT_NAMES = {
    "loss_token_text": "text",
    "loss_token_pair": "pair-text",
    "loss_patch_pixel": "pixel",
    "loss_patch_pair": "pair-pixel",
}


def losses_line(record: Mapping[str, Any], prefix: str = "") -> str:
    """``loss 3.214 (text 2.103, pixel 0.711)`` from a line of metrics.jsonl."""
    return " ".join(_losses(record, prefix))


def _losses(record: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The loss, then those by kind where there are several."""

    def number(key: str) -> str:
        value = record.get(prefix + key)
        return "not finite" if value is None else f"{value:.4f}"

    kinds = [f"{name} {number(key)}" for key, name in SHORT_NAMES.items() if record.get(prefix + key) is not None]
    return [f"loss {number('loss')}", *([f"({', '.join(kinds)})"] if len(kinds) > 1 else [])]
