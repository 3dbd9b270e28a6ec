import os
import signal

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.training.guards import MAX_SKIPPED_IN_A_ROW, LossGuard, NonFiniteLossError, StopSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_kept_for_the_loop(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    signals = StopSignals()
    assert signals.received is None
    os.kill(os.getpid(), number)
    assert signals.received == number.name
    # The next one of its kind ends a run that hangs.
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    signals.restore()
    assert signal.getsignal(number) == before


def test_good_steps_pass() -> None:
    assert LossGuard().check(1, finite=True, skipped=False, rows="") is None


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    with pytest.raises(NonFiniteLossError, match=r"step 7: .* rows: corpus 12") as error:
        LossGuard().check(7, finite=False, skipped=False, rows="corpus 12")
    assert isinstance(error.value, UserError)


def test_a_skipped_step_is_told_and_a_row_of_them_ends_the_run() -> None:
    guard = LossGuard()
    for step in range(1, MAX_SKIPPED_IN_A_ROW):
        assert guard.check(step, finite=False, skipped=True, rows="corpus 12") == (
            f"step {step} skipped: the loss is not finite; rows: corpus 12"
        )
    with pytest.raises(NonFiniteLossError, match=rf"{MAX_SKIPPED_IN_A_ROW} steps in a row"):
        guard.check(MAX_SKIPPED_IN_A_ROW, finite=False, skipped=True, rows="corpus 12")


def test_a_good_step_between_starts_the_count_again() -> None:
    guard = LossGuard()
    for step in range(3 * MAX_SKIPPED_IN_A_ROW):
        skipped = step % MAX_SKIPPED_IN_A_ROW != 0
        warning = guard.check(step, finite=True, skipped=skipped, rows="")
        assert (warning is not None) == skipped
