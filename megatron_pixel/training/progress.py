"""One line that says where a run stands: rewritten in place on a terminal, printed now and then elsewhere."""

import shutil
import sys
from datetime import datetime
from typing import TextIO


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
    """Progress of steps ``first`` to ``last`` with the time that is left.

    The time of a step is averaged with a half-life of about 14 steps, so the estimate follows a changed pace but does
    not jump with each step.
    """

    SMOOTHING = 0.05

    def __init__(
        self, steps: int, last: int, every: int, stream: TextIO | None = None, log: TextIO | None = None
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
        self._seconds: float | None = None
        self._width = 0

    def step(self, record: dict[str, float | int | None]) -> None:
        """Show the metrics of one step."""
        step, seconds = int(record["step"] or 0), float(record["seconds"] or 0.0)
        if self._seconds is None:
            self._seconds = seconds
        else:
            self._seconds += self.SMOOTHING * (seconds - self._seconds)
        plain = step % self._every == 0 or step == self._last
        if not self._interactive and not plain:
            return
        parts = [f"step {step:,}/{self._steps:,}", *_losses(record), f"lr {record['lr']:.2e}"]
        if record.get("grad_norm") is not None:
            parts.append(f"norm {record['grad_norm']:.3g}")
        for rate, name in (("tokens_per_second", "tokens/s"), ("patches_per_second", "patches/s")):
            if record.get(rate):
                parts.append(f"{quantity(float(record[rate] or 0))} {name}")
        parts.append(f"ETA {duration(self._seconds * (self._last - step))}")
        line = "  ".join(parts)
        self._show(line)
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

    def _show(self, line: str) -> None:
        if self._interactive:
            # A line that wraps cannot be rewritten in place.
            line = line[: shutil.get_terminal_size().columns - 1]
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


def losses_line(record: dict[str, float | int | None], prefix: str = "") -> str:
    """``loss 3.214 (text 2.103, pixel 0.711)`` from a line of metrics.jsonl."""
    return " ".join(_losses(record, prefix))


def _losses(record: dict[str, float | int | None], prefix: str = "") -> list[str]:
    def number(key: str) -> str:
        value = record.get(prefix + key)
        return "not finite" if value is None else f"{value:.4f}"

    kinds = [f"{name} {number(key)}" for key, name in SHORT_NAMES.items() if record.get(prefix + key) is not None]
    return [f"loss {number('loss')}" + (f" ({', '.join(kinds)})" if len(kinds) > 1 else "")]
