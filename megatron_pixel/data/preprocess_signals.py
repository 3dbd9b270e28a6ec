"""Ctrl-C and a scheduler's SIGTERM end a program in order: files are taken back, one line says why."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class _StoppedError(BaseException):
    """Raised in the main thread by a signal; no `except Exception` holds it up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def clean_exit_on_signal(consequence: str | Callable[[], str], quiet: bool = False) -> Iterator[None]:
    """Unwind the block at SIGINT or SIGTERM, print a line that names ``consequence``, exit with 128 + the signal."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:  # a second Ctrl-C must not cut the cleaning up short
            signal.signal(each, signal.SIG_IGN)
        raise _StoppedError(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _StoppedError as stopped:
        if not quiet:
            told = consequence if isinstance(consequence, str) else consequence()
            print(f"stopped by {signal.Signals(stopped.number).name}: {told}", file=sys.stderr)
        raise SystemExit(128 + stopped.number) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
