"""What keeps a run from ending badly: signals answered between steps, and losses that are no numbers."""

import signal
from types import FrameType

from megatron_pixel.config.errors import UserError

MAX_SKIPPED_IN_A_ROW = 10
"""Steps that DeepSpeed may skip in a row before the run stops: one bad batch passes, a broken model does not."""


class StopSignals:
    """Turns SIGTERM and SIGINT into a request that the loop answers at the end of its step.

    A second signal of the same kind gets the default treatment, so that a run that hangs can still be interrupted.

    Attributes:
        received: name of the signal that came, else None. It holds for this process only; the loop agrees on it with
            the other ranks before it acts.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class NonFiniteLossError(UserError):
    """The loss of a step is infinite or not a number, and the weights may hold it already."""


class LossGuard:
    """Watches for losses that are no numbers and for steps that DeepSpeed skips without a word."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def check(self, step: int, finite: bool, skipped: bool, rows: str) -> str | None:
        """Judge one step.

        Args:
            step: number of the step.
            finite: whether its loss, over all ranks, is a finite number.
            skipped: whether DeepSpeed left the weights as they were.
            rows: the rows behind the bad values, for the message.

        Returns:
            A line to show when the step was skipped, else None.

        Raises:
            NonFiniteLossError: the loss is not finite and the step was applied, or too many in a row were skipped.
        """
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if not finite and not skipped:
            raise NonFiniteLossError(
                f"step {step}: the loss is not a finite number and the weights took the step; rows: {rows}. "
                "Resume from the last checkpoint with a lower optimizer.lr, or look at these rows"
            )
        if self._in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteLossError(
                f"step {step}: {self._in_a_row} steps in a row had to be skipped, as losses or gradients are not finite"
                f"{'; rows of the last: ' + rows if rows else ''}. "
                "Resume from an earlier checkpoint with a lower optimizer.lr"
            )
        if skipped:
            cause = "gradients are not finite" if finite else f"the loss is not finite; rows: {rows}"
            return f"step {step} skipped: {cause}"
        return None
