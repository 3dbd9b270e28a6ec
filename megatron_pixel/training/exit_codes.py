"""How a run ended, as the exit status of its processes; supervisors and batch scripts act on these numbers alone.

All ranks of a run end with the same one. Whatever is not listed here is a crash: by a Python error (1), by a signal
(137 and the like, as shells count). Starting the same command again then goes on from the newest whole checkpoint.
Launchers pass the status on as they like: ``srun`` gives the highest of all tasks, ``torchrun`` makes every failure 1.
"""

from megatron_pixel.config.errors import UserError

FINISHED = 0
"""The run took its last step, or the one that ``training.stop_after`` names."""
CRASHED = 1
"""Of a supervisor: the run died too often."""
BAD_INPUT = UserError.exit_status
"""Settings, data or the run's folder are not as they must be: the same command would fail again."""
GUARD = 65
"""A guard stopped the run: its numbers are not sound, and somebody has to look. The message says at what."""
HANG = 70
"""The watchdog ended a run that hung. A crash like others: start again."""
REQUEUE = 75
"""Stopped early by a signal or a time limit, with a whole checkpoint: start the same command again to go on."""

FINAL = (FINISHED, BAD_INPUT, GUARD)
"""After these nothing is to be started again."""


def exit_code(stopped_by: str | None) -> int:
    """The status of a run that ended by itself.

    Args:
        stopped_by: what ended it before its last step: a signal, a time limit or ``training.stop_after``; None where it
            is complete.
    """
    return FINISHED if stopped_by in (None, "training.stop_after") else REQUEUE
