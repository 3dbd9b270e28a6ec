"""What a person sees while documents are read: a bar on a terminal, a line now and then in a log file."""

import shutil
import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from megatron_pixel.data.documents import DocumentReader

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Follows ``reader`` by the bytes it has read; written to standard error."""

    def __init__(self, reader: DocumentReader, quiet: bool = False) -> None:
        self._reader = reader
        self._quiet = quiet
        self._start = self._last_line = time.monotonic()
        self._bar: tqdm[NoReturn] | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = tqdm(
                total=reader.total_bytes,
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

    def update(self, documents: int, pages: int) -> None:
        """Show that so many documents are done, and pages of them (0 where there are none)."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.set_postfix_str(self._rates(documents, pages), refresh=False)
            self._bar.update(self._reader.bytes_done - self._bar.n)
        elif time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            total = self._reader.total_bytes
            share = f"{100 * self._reader.bytes_done / total:.0f}% of {total / 1e6:,.0f} MB, " if total else ""
            print(f"{share}{documents:,} documents, {self._rates(documents, pages)}", file=sys.stderr, flush=True)

    def say(self, message: str) -> None:
        """Print a line without disturbing the bar."""
        if not self._quiet:
            tqdm.write(message, file=sys.stderr)

    def _rates(self, documents: int, pages: int) -> str:
        seconds = max(self.seconds, 1e-9)
        text = f"{documents / seconds:,.0f} documents/s, {self._reader.text_bytes / seconds / 1e6:.1f} MB/s"
        return f"{text}, {pages / seconds:,.0f} pages/s" if pages else text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
