"""The one kind of error that a user can mend, and how programs show it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can put right: the message names the file, the line, the value and the way out.

    Attributes:
        exit_status: of a program that it ends.
    """

    exit_status = 2


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Print a :class:`UserError` as one plain message and exit with its status; everything else keeps its traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
