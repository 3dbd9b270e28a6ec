"""What a person sees while documents are read: a bar on a terminal, a line now and then in a log file."""

import shutil
import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from megatron_pixel.data.preprocess_claims import Tally

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Follows work by the bytes of input behind it; written to standard error."""

    def __init__(self, total: int | None, quiet: bool = False, before: Tally | None = None, what: str = "") -> None:
        """``total`` bytes, None if nobody knows; ``before`` was done by earlier runs; ``what`` names the work."""
        self._total = total
        self._quiet = quiet
        self._before = before or Tally()
        self._what = what
        self._start = self._last_line = time.monotonic()
        self._bar: tqdm[NoReturn] | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(
                desc=what or None,
                total=total,
                initial=self._before.input_bytes,
                unit="B",
                unit_scale=True,
                ncols=shutil.get_terminal_size().columns,
                bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
                leave=False,
                file=sys.stderr,
            )

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    def update(self, done: Tally) -> None:
        """Show that so much is done in this run."""
        if self._quiet:
            return
        position = self._before.input_bytes + done.input_bytes
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(done), refresh=False)
            self._bar.update(position - self._bar.n)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            share, left = "", ""
            if self._total:
                share = f"{100 * position / self._total:.0f}% of {self._total / 1e6:,.0f} MB, "
                seconds = self.seconds * (self._total - position) / max(done.input_bytes, 1)
                left = f", {duration(seconds)} left" if done.input_bytes else ""
            documents = f"{self._before.documents + done.documents:,} documents, " if done.documents else ""
            what = f"{self._what}: " if self._what else ""
            print(f"{what}{share}{documents}{self._rates(done)}{left}", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Print a line without disturbing the bar."""
        if not self._quiet:
            tqdm.write(message, file=sys.stderr)

    def _rates(self, done: Tally) -> str:
        seconds = max(self.seconds, 1e-9)
        rates = [f"{done.documents / seconds:,.0f} documents/s"] if done.documents else []
        rates.append(f"{(done.text_bytes or done.input_bytes) / seconds / 1e6:.1f} MB/s")
        if done.pages:
            rates.append(f"{done.pages / seconds:,.0f} pages/s")
        return ", ".join(rates)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


class StatusLine:
    """One line on standard error: written over on a terminal, written anew now and then in a log file."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write again."""
        now = time.monotonic()
        if now - self._last < (0.1 if self._terminal else _SECONDS_BETWEEN_LINES):
            return False
        self._last = now
        return True

    def write(self, line: str) -> None:
        """Show it."""
        if self._terminal:
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take it away."""
        if self._terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A time as people say it: ``45 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:.1f} days"
