"""Whether, and from where, a run that died is started again. For whatever starts ranks; without torch."""

import time
from pathlib import Path

from megatron_pixel.config.schema import RunConfig
from megatron_pixel.training import checkpoint_files as files


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


def newest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint below ``root`` that is whole, by its manifest and the sizes of its files."""
    return next(
        (folder for _, folder in files.list_checkpoints(root) if files.manifest_problem(folder)[1] is None), None
    )
