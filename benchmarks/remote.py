"""Objects in processes of their own, so that what a benchmark compares shares neither memory nor settings."""

import multiprocessing
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any

CLOSING = 10.0
"""Seconds that a process has to end by itself."""


class RemoteError(Exception):
    """What went wrong over there: its type and first line.

    Attributes:
        details: the traceback, or nothing where the process ended without one.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class Remote:
    """An object that a fresh process makes and keeps; calls wait for what its methods return.

    Args:
        make: makes the object over there; it and its arguments are pickled. If the object has a method ``close``, that
            is called at the end.
        arguments: of ``make``.
        limit: seconds that making it, or a call, may take.
    """

    def __init__(self, make: Callable[..., object], *arguments: object, limit: float = 600.0) -> None:
        context = multiprocessing.get_context("spawn")
        self._limit = limit
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments))
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Wait until the object is made; to be called once, before all calls.

        Raises:
            RemoteError: it could not be made.
        """
        self._receive()

    def call(self, method: str, *arguments: object) -> Any:
        """What a method of the object returns.

        Raises:
            RemoteError: it raised an exception, took too long, or the process has ended.
        """
        try:
            self._pipe.send((method, arguments))
        except OSError:
            raise RemoteError(self._ended()) from None
        return self._receive()

    def close(self) -> None:
        """End the process; it may be called more than once."""
        self._pipe.close()
        self._process.join(CLOSING)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    @staticmethod
    def close_all(remotes: Iterable["Remote"]) -> None:
        """End the processes, all at the same time."""
        them = list(remotes)
        for remote in them:
            remote._pipe.close()
        for remote in them:
            remote.close()

    def _receive(self) -> Any:
        if not self._pipe.poll(self._limit):
            self._process.kill()
            raise RemoteError(f"no answer within {self._limit:.0f} s")
        try:
            result, error = self._pipe.recv()
        except (EOFError, OSError):
            raise RemoteError(self._ended()) from None
        if error is not None:
            raise RemoteError(*error)
        return result

    def _ended(self) -> str:
        self._process.join(CLOSING)
        return f"its process ended with status {self._process.exitcode}"


def _serve(pipe: Connection, make: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """The process: makes the object and calls its methods, until nobody is there to tell."""
    made: Any = None
    try:
        made = _answer(pipe, make, arguments)
        while made is not None:
            method, given = pipe.recv()
            _answer(pipe, getattr(made, method), given, returns=True)
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    finally:
        if hasattr(made, "close"):
            made.close()


def _answer(pipe: Connection, call: Callable[..., Any], arguments: tuple[object, ...], returns: bool = False) -> Any:
    """Call, and send what it ``returns`` or how it fails; gives what came out here, None after a failure."""
    try:
        result = call(*arguments)
    except Exception as error:
        first = str(error).splitlines()
        pipe.send(
            (None, (f"{type(error).__name__}: {first[0]}" if first else type(error).__name__, traceback.format_exc()))
        )
        return None
    pipe.send((result if returns else None, None))
    return result
