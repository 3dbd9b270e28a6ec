"""What keeps a run from ending badly: signals answered between steps, numbers that are none, losses that jump."""

import math
import signal
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import GuardsConfig
from megatron_pixel.training import exit_codes


class StopSignals:
    """Turns signals into a request that the loop answers at the end of its step.

    A second SIGTERM or SIGINT gets the default treatment, so that a run that hangs can still be interrupted; SIGUSR1,
    which batch systems send ahead of a time limit, may come any number of times.

    Args:
        numbers: the signals to take from the start; see :meth:`add`.

    Attributes:
        received: name of the signal that came, else None. It holds for this process only; the loop agrees on it with
            the other ranks before it acts.
    """

    TIME_LIMIT = "the time limit"
    NAMES = (None, TIME_LIMIT, "SIGUSR1", "SIGINT", "SIGTERM")
    """What may stop a run: :attr:`received`, or rank 0's clock. Of several the last here counts."""

    def __init__(self, numbers: Iterable[signal.Signals] = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)) -> None:
        self.received: str | None = None
        self._previous: dict[signal.Signals, object] = {}
        self.add(numbers)

    def add(self, numbers: Iterable[signal.Signals]) -> None:
        """Take these signals, too: Ctrl-C should end a program at once that has not begun to train."""
        for number in numbers:
            self._previous.setdefault(number, signal.signal(number, self._receive))

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if number != signal.SIGUSR1:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    def restore(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._previous.items():
            # It goes on coming until the process has ended, and would kill it on its way out.
            kept = signal.SIG_IGN if (number, handler) == (signal.SIGUSR1, signal.SIG_DFL) else handler
            signal.signal(number, kept)  # type: ignore[arg-type]
        self._previous.clear()


class GuardError(UserError):
    """A guard ends the run; the same command would end the same way, so nothing is to start it again by itself."""

    exit_status = exit_codes.GUARD


class NonFiniteLossError(GuardError):
    """Losses or gradients are infinite or not a number."""


class SpikeError(GuardError):
    """The loss has jumped, and the run is not to go on from there."""


@dataclass(frozen=True)
class Verdict:
    """What the guards say of a step; the same on all ranks."""

    warning: str | None = None
    """A line to show."""
    error: GuardError | None = None
    """Ends the run, after a dump of the step."""
    rewind: bool = False
    """The run is to go back to a checkpoint before the spike, and pass over the rows since."""


class LossGuard:
    """Watches for losses that are no numbers and for steps that DeepSpeed skips without a word.

    DeepSpeed leaves weights, moments and AdamW's count of steps as they are where the norm of the gradient is no finite
    number. The step counts all the same: the learning rate and the rows go on as if it had been taken.

    Args:
        most: steps that may be skipped in a row: one bad batch passes, a broken model does not.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0

    def check(self, step: int, finite: bool, skipped: bool, rows: str) -> Verdict:
        """Judge one step.

        Args:
            step: number of the step.
            finite: whether its loss, over all ranks, is a finite number.
            skipped: whether DeepSpeed left the weights as they were.
            rows: the rows behind the bad values, for the message.
        """
        self._in_a_row = self._in_a_row + 1 if skipped else 0
        if not finite and not skipped:
            return Verdict(
                error=NonFiniteLossError(
                    f"step {step}: the loss is not a finite number and the weights took the step; rows: {rows}. "
                    "Resume from the last checkpoint with a lower optimizer.lr, or look at these rows"
                )
            )
        if skipped and self._in_a_row >= self._most:
            return Verdict(
                error=NonFiniteLossError(
                    f"step {step}: {self._in_a_row} steps in a row had to be skipped, as losses or gradients are not "
                    f"finite{'; rows of the last: ' + rows if rows else ''}. Resume from an earlier checkpoint with a "
                    "lower optimizer.lr, or pass over these rows with guards.skip_steps"
                )
            )
        if skipped:
            cause = "gradients are not finite" if finite else f"the loss is not finite; rows: {rows}"
            return Verdict(warning=f"step {step} skipped: {cause}")
        return Verdict()


class SpikeGuard:
    """Watches for losses that jump and stay up.

    A step is high when its loss exceeds the mean of the last ``guards.spike_window`` steps that were not, by
    ``guards.spike_deviations`` of their standard deviations; so many high steps in a row as ``guards.spike_patience``
    says are a spike.

    Args:
        config: the guards of the run.

    Attributes:
        begin: the first of the high steps in a row that are under way, None without any.
    """

    def __init__(self, config: GuardsConfig) -> None:
        self._config = config
        self._calm: deque[float] = deque(maxlen=config.spike_window)
        self.begin: int | None = None
        self._high = 0

    def check(self, step: int, loss: float | None) -> bool:
        """Note a step; whether a spike has lasted for ``guards.spike_patience`` steps with it.

        Args:
            step: its number.
            loss: the same on all ranks; None or not finite for a step that says nothing.
        """
        if self._config.spike == "off" or loss is None or not math.isfinite(loss):
            return False
        if len(self._calm) == self._calm.maxlen and loss > self._limit():
            self.begin = step if self.begin is None else self.begin
            self._high += 1
            return self._high >= self._config.spike_patience
        self._calm.append(loss)
        self.begin, self._high = None, 0
        return False

    def forget(self) -> None:
        """After a rewind: the high steps never were."""
        self.begin, self._high = None, 0

    def _limit(self) -> float:
        mean = sum(self._calm) / len(self._calm)
        variance = sum((value - mean) ** 2 for value in self._calm) / len(self._calm)
        # A loss that does not vary at all is no reason to call rounding a spike.
        return mean + self._config.spike_deviations * max(math.sqrt(variance), 1e-3 * abs(mean))
