"""Whether, and from where, a run that died is started again. For whatever starts ranks; without torch."""

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from megatron_pixel.config.schema import RunConfig
from megatron_pixel.training import checkpoint_files as files
from megatron_pixel.training import sessions

JOB = "MEGATRON_PIXEL_JOB"
"""Variable by which a batch script names its job, which keeps its name when it starts the run again."""


class Restarts:
    """Counts the deaths of a run between two checkpoints.

    Args:
        config: of the run, as the user gave it.
        retries: deaths in a row, without a new checkpoint between them, after which the run is given up.
    """

    def __init__(self, config: RunConfig, retries: int) -> None:
        self._root = Path(config.run.dir) / "checkpoints"
        self._resume = config.checkpoint.resume
        self._retries = retries
        self._since = time.time()
        self._newest = newest_checkpoint(self._root)
        self.in_a_row = 0
        """Deaths since the last new checkpoint."""

    def again(self) -> bool:
        """Note a death; whether the run is to be started again."""
        newest = newest_checkpoint(self._root)
        if newest != self._newest:
            self._newest, self.in_a_row = newest, 0
        self.in_a_row += 1
        return self.in_a_row <= self._retries

    def words(self) -> list[str]:
        """What a restart adds to the command line.

        A run that begins anew, or from a checkpoint elsewhere, must not do so a second time once it has checkpoints of
        its own.
        """
        if self._resume == "auto" or self._newest is None:
            return []
        if (self._newest / files.MANIFEST).stat().st_mtime < self._since:
            return []
        return ["--checkpoint.resume", "auto"]

    def origin(self) -> str:
        """Where the next start begins, in words."""
        if self.words() or self._resume == "auto":
            return "step 1" if self._newest is None else self._newest.name
        return "step 1" if self._resume == "none" else self._resume


def resume_own(config: RunConfig, environ: Mapping[str, str]) -> None:
    """Set ``checkpoint.resume`` to ``auto`` where this job has started the run before and it has saved since then.

    A batch job starts its run again by the same command; the second time it is not to begin anew.
    """
    job, folder = environ.get(JOB), Path(config.run.dir)
    if config.checkpoint.resume == "auto" or not job:
        return
    starts = [event["time"] for event in sessions.read(folder) if event["event"] == "start" and event.get("job") == job]
    newest = newest_checkpoint(folder / "checkpoints")
    if starts and newest is not None:
        since = datetime.fromisoformat(starts[0]).timestamp()
        if (newest / files.MANIFEST).stat().st_mtime >= since:
            config.checkpoint.resume = "auto"


def newest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint below ``root`` that is whole, by its manifest and the sizes of its files."""
    return next(
        (folder for _, folder in files.list_checkpoints(root) if files.manifest_problem(folder)[1] is None), None
    )
