"""The end of a job's time, known beforehand: the run stops and saves before the scheduler kills it.

A batch script tells when the job will be ended (``MEGATRON_PIXEL_END_TIME``, seconds since 1970) and how many seconds
before that the scheduler sends its signal (``MEGATRON_PIXEL_LEAD``). The signal is answered after the step that is
under way, and the checkpoint takes its time too: so the lead has to be longer than a step and a save. Rank 0 measures
both, says when the lead is too short, and where it is, stops the run by its own clock.
"""

import time
from collections.abc import Callable, Mapping

END_TIME = "MEGATRON_PIXEL_END_TIME"
LEAD = "MEGATRON_PIXEL_LEAD"
FACTOR = 2.0
"""Lead asked for, in steps plus saves: the longest seen are not the longest there will be."""
MARGIN = 10.0
"""Seconds for what is neither step nor save: the way of the signal, the last words of the processes."""


class TimeLimit:
    """When a run has to stop, on the rank that measures.

    Args:
        environ: variables of the process; without an end of time the limit is never reached.
        now: clock, in seconds since 1970.
    """

    def __init__(self, environ: Mapping[str, str], now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._end = _number(environ, END_TIME)
        self._lead = _number(environ, LEAD)
        self._step: float | None = None
        self._save = 0.0
        self._told = 0.0

    def stepped(self, seconds: float) -> None:
        """Take the duration of a step, evaluation included. The first one warms up and does not count."""
        self._step = 0.0 if self._step is None else max(seconds, 0.9 * self._step)

    def saved(self, seconds: float) -> None:
        """Take the duration of a save, from its beginning until the checkpoint is whole on disk."""
        self._save = max(seconds, 0.9 * self._save)

    @property
    def needed(self) -> float:
        """Seconds before the end at which a run has to begin to stop."""
        return FACTOR * ((self._step or 0.0) + self._save)

    def reached(self) -> bool:
        """Whether the run has to stop now to be whole at the end of its time."""
        return self._end is not None and self._end - self._now() < self.needed + MARGIN

    def complaint(self) -> str | None:
        """A line that the lead asked of the scheduler is too short; again only when it is so by a quarter more."""
        if self._lead is None or self.needed <= max(self._lead, 1.25 * self._told):
            return None
        self._told = self.needed
        own = "the run stops by its own clock instead" if self._end is not None else "the run may be killed before"
        return (
            f"SLURM warns {self._lead:.0f} s before the job's end, but a step ({self._step or 0.0:.1f} s) and a save "
            f"({self._save:.1f} s) want {self.needed:.0f} s, twice their time; {own}: "
            f"set --signal=B:USR1@{_round_up(self.needed + MARGIN)} (submit.py: --cluster.lead)"
        )


def _number(environ: Mapping[str, str], name: str) -> float | None:
    try:
        return float(environ[name])
    except (KeyError, ValueError):
        return None


def _round_up(seconds: float) -> int:
    return int(seconds // 60 + 1) * 60
