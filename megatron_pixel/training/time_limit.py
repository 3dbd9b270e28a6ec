"""The end of a job's time, known beforehand: the run stops and saves before the scheduler kills it.

A batch script tells when the job will be ended (``MEGATRON_PIXEL_END_TIME``, seconds since 1970) and how many seconds
before that the scheduler sends its signal (``MEGATRON_PIXEL_LEAD``). The signal is answered after the step that is
under way, and the checkpoint takes its time too: so the lead has to be longer than a step and a save. Rank 0 measures
both, says when the lead is too short, and where it is, stops the run by its own clock.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

END_TIME = "MEGATRON_PIXEL_END_TIME"
LEAD = "MEGATRON_PIXEL_LEAD"
FACTOR = 2.0
"""Lead asked for, in steps plus saves: the longest seen are not the longest there will be."""
MARGIN = 10.0
"""Seconds for what is neither step nor save: the way of the signal, the last words of the processes."""
FILE = Path("logs", "durations.json")
"""What a run keeps of its step and save, so that the next start can judge its time before it has taken a step."""


class TimeLimit:
    """When a run has to stop, on the rank that measures.

    Args:
        environ: variables of the process; without an end of time the limit is never reached.
        folder: of the run.
        now: clock, in seconds since 1970.
        clock: of durations, in seconds.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        folder: Path,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now, self._clock = now, clock
        self._end, self._lead = _number(environ, END_TIME), _number(environ, LEAD)
        self._file = folder / FILE
        self._step, self._save = self._read()
        self._since: float | None = None
        self._told = 0.0

    def stepped(self) -> None:
        """A step has ended: what passed since the one before, saves aside, is what a signal may have to wait for.

        The first step of a process warms up and is not measured.
        """
        now = self._clock()
        if self._since is not None:
            self._step = max(now - self._since, 0.9 * self._step)
        self._since = now

    def saved(self, held_up: float, seconds: float) -> None:
        """A save has ended, or has begun behind the training.

        Args:
            held_up: for how long no step was taken.
            seconds: of the last save, from its beginning until the checkpoint was whole on disk.
        """
        if self._since is not None:
            self._since += held_up
        self._save = max(held_up, seconds, 0.9 * self._save)
        self._write()

    @property
    def needed(self) -> float:
        """Seconds before the end at which a run has to begin to stop."""
        return FACTOR * (self._step + self._save)

    def reached(self) -> bool:
        """Whether the run has to stop now to be whole at the end of its time."""
        return self._end is not None and self._end - self._now() < self.needed + MARGIN

    def complaint(self) -> str | None:
        """A line that the lead asked of the scheduler is too short; again only when it is so by a quarter more."""
        if self._lead is None or self.needed <= max(self._lead, 1.25 * self._told):
            return None
        self._told = self.needed
        own = "the run will stop by its own clock" if self._end is not None else "the run may be killed before that"
        return (
            f"SLURM warns {self._lead:.0f} s before the job's end, but a step ({self._step:.1f} s) and a save "
            f"({self._save:.1f} s) want twice their time, {self.needed:.0f} s; {own}. Give more with "
            f"--signal=B:USR1@{int((self.needed + MARGIN) // 60 + 1) * 60} (submit.py: --cluster.lead)"
        )

    def _read(self) -> tuple[float, float]:
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._file.read_text(encoding="utf-8"))
            return float(kept["step"]), float(kept["save"])
        return 0.0, 0.0

    def _write(self) -> None:
        if self._end is None and self._lead is None:
            return
        temporary = self._file.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a nicety, which must not end a run
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"step": self._step, "save": self._save}) + "\n", encoding="utf-8")
            temporary.replace(self._file)


def _number(environ: Mapping[str, str], name: str) -> float | None:
    try:
        return float(environ[name])
    except (KeyError, ValueError):
        return None
