import os
import signal
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import GuardsConfig
from megatron_pixel.config.steps import parse_ranges
from megatron_pixel.training import exit_codes, passed_over
from megatron_pixel.training.guards import GuardError, LossGuard, NonFiniteLossError, SpikeGuard, StopSignals

MOST = 4


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


def test_the_signal_of_a_time_limit_may_come_twice_and_others_later() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    signals = StopSignals((signal.SIGUSR1,))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "Ctrl-C ends what has not begun"
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGUSR1)
    assert signals.received == "SIGUSR1"
    signals.add((signal.SIGUSR1, signal.SIGINT))
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.received == "SIGINT"
    signals.restore()
    # It may come once more while the process ends.
    assert signal.getsignal(signal.SIGUSR1) == (signal.SIG_IGN if before == signal.SIG_DFL else before)
    signal.signal(signal.SIGUSR1, before)
    signal.signal(signal.SIGINT, interrupt)


def test_good_steps_pass() -> None:
    verdict = LossGuard(MOST).check(1, finite=True, skipped=False, rows="")
    assert (verdict.warning, verdict.error, verdict.rewind) == (None, None, False)


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    error = LossGuard(MOST).check(7, finite=False, skipped=False, rows="corpus 12").error
    assert isinstance(error, NonFiniteLossError)
    assert isinstance(error, UserError)
    assert error.exit_status == exit_codes.GUARD
    assert "step 7: the loss is not a finite number and the weights took the step; rows: corpus 12" in str(error)


def test_a_skipped_step_is_told_and_a_row_of_them_ends_the_run() -> None:
    guard = LossGuard(MOST)
    for step in range(1, MOST):
        assert guard.check(step, finite=False, skipped=True, rows="corpus 12").warning == (
            f"step {step} skipped: the loss is not finite; rows: corpus 12"
        )
    error = guard.check(MOST, finite=False, skipped=True, rows="corpus 12").error
    assert isinstance(error, GuardError)
    assert f"{MOST} steps in a row" in str(error)
    assert "corpus 12" in str(error)


def test_a_good_step_between_starts_the_count_again() -> None:
    guard = LossGuard(MOST)
    for step in range(3 * MOST):
        skipped = step % MOST != 0
        verdict = guard.check(step, finite=True, skipped=skipped, rows="")
        assert verdict.error is None
        assert (verdict.warning is not None) == skipped


def spikes(losses: list[float | None], **settings: object) -> list[int]:
    """Steps at which a spike is found; the first is 1."""
    guard = SpikeGuard(GuardsConfig(**({"spike": "stop", "spike_window": 10, "spike_patience": 3} | settings)))  # type: ignore[arg-type]
    return [step for step, loss in enumerate(losses, start=1) if guard.check(step, loss)]


def test_a_loss_that_jumps_and_stays_up_is_a_spike() -> None:
    calm: list[float | None] = [3.0 + 0.01 * (-1) ** i for i in range(20)]
    assert spikes([*calm, 5.0, 5.0, 5.0]) == [23]
    assert spikes([*calm, 5.0, 5.0, 3.0, 5.0, 5.0]) == [], "an outlier is none, two are none"
    assert spikes([*calm, 5.0, None, float("nan"), 5.0, 5.0]) == [25], "skipped steps say nothing"
    assert spikes([*calm, 3.05, 3.05, 3.05]) == [], "five deviations are not eight"
    assert spikes([*calm, 1.0, 1.0, 1.0]) == [], "down is fine"
    assert spikes([3.0] * 9 + [9.0] * 5) == [], "the window is not full yet"
    assert spikes([*calm, 5.0, 5.0, 5.0], spike="off") == []
    assert spikes([3.0] * 20 + [3.001] * 5) == [], "rounding on a constant loss"


def test_the_begin_of_a_spike_is_known_until_it_is_forgotten() -> None:
    guard = SpikeGuard(GuardsConfig(spike="rewind", spike_window=4, spike_patience=2))
    for step, loss in enumerate([3.0, 3.1, 3.0, 3.1, 9.0, 9.0], start=1):
        guard.check(step, loss)
    assert guard.begin == 5
    guard.forget()
    assert guard.begin is None
    assert not guard.check(5, 9.0)


def test_steps_pass_over_batches() -> None:
    batches = passed_over.Batches(parse_ranges(["3-5", "9", "6"]))
    assert batches.ranges == ((3, 6), (9, 9))
    assert [batches.of(step) for step in range(1, 7)] == [1, 2, 7, 8, 10, 11]
    assert [batches.taken(steps) for steps in range(5)] == [0, 1, 2, 7, 8]
    assert passed_over.Batches([]).of(12) == 12
    assert passed_over.Batches([(1, 2)]).of(1) == 3
    for word in ("x", "5-3", "0", "-3", "1-", "1-2-3"):
        with pytest.raises(UserError, match="no step and no range of steps"):
            parse_ranges([word])


def test_what_rewinds_took_out_is_kept(tmp_path: Path) -> None:
    assert passed_over.read(tmp_path) == ((), 0)
    passed_over.write(tmp_path, ((3, 6), (9, 9)), 2)
    assert passed_over.read(tmp_path) == (((3, 6), (9, 9)), 2)
    passed_over.forget(tmp_path)
    passed_over.forget(tmp_path)
    assert passed_over.read(tmp_path) == ((), 0)
