"""Processes of several machines that preprocess together: MPI ranks, started by mpirun or srun.

MPI carries the beginning, the errors and the end; the work itself is shared through the work folder. Without such a
launcher there is one rank, and mpi4py is never imported.
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from megatron_pixel.config.errors import UserError

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 0.05
_SECONDS_FOR_LAST_WORDS = 1.0


class Ranks:
    """One process alone."""

    rank = 0
    size = 1

    def lead(self, action: Callable[[], T]) -> T:
        """Let rank 0 do something; all get its result, or its error raised."""
        return action()

    def together(self, action: Callable[[], None], watch: Callable[[], None]) -> None:
        """Let every rank do its share; returns when all have. If one fails all raise, the first error of any.

        ``watch`` is called while the others are waited for.
        """
        action()


class MpiRanks(Ranks):
    """All processes that mpirun or srun started."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self.rank = communicator.Get_rank()
        self.size = communicator.Get_size()
        self.agreed = False
        """Whether all ranks are about to raise the same error."""

    def lead(self, action: Callable[[], T]) -> T:
        outcome: tuple[Any, Exception | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = action(), None
            except Exception as error:
                outcome = None, _portable(error)
        self._wait(lambda: None)
        result, failure = self._communicator.bcast(outcome, root=0)
        if failure is not None:
            self.agreed = True
            raise failure
        return result

    def together(self, action: Callable[[], None], watch: Callable[[], None]) -> None:
        failure: Exception | None = None
        try:
            action()
        except Exception as error:
            failure = _portable(error)
        self._wait(watch)
        failures = [error for error in self._communicator.allgather(failure) if error is not None]
        if failures:
            self.agreed = True
            raise failures[0]

    def end_all(self, error: BaseException) -> NoReturn:
        """End all ranks for an error of this one, or for a signal that all have got."""
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
            status = 2
        elif not isinstance(error, SystemExit):
            traceback.print_exception(error)
        elif self.rank:
            time.sleep(_SECONDS_FOR_LAST_WORDS)  # rank 0 has something to say
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # what started the ranks ends the others

    def _wait(self, watch: Callable[[], None]) -> None:
        """Until all ranks are here, without the busy loop that MPI's own waiting is."""
        request = self._communicator.Ibarrier()
        while not request.Test():
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            watch()


def _portable(error: Exception) -> Exception:
    """An error as it can travel: what a user can mend as it is, everything else with its traceback."""
    return error if isinstance(error, UserError) else RuntimeError("".join(traceback.format_exception(error)))


def tasks_started(environ: Mapping[str, str]) -> int:
    """How many processes a launcher started together, by the environment of one of them."""
    # A batch script runs outside any step, although SLURM_NTASKS holds the size of the job.
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        if environ.get(name, "").isdecimal():
            return int(environ[name])
    return 1


def connect() -> Ranks:
    """The ranks that this process is one of. Raises UserError where MPI does not know of them."""
    started = tasks_started(os.environ)
    if started == 1:
        return Ranks()
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_size() != started:
        raise UserError(
            f"{started} processes were started together, but MPI sees {MPI.COMM_WORLD.Get_size()}: start with the "
            f"mpirun of the same MPI library, or tell srun its interface (srun --mpi=pmi2; srun --mpi=list shows all)"
        )
    return MpiRanks(MPI.COMM_WORLD)


@contextmanager
def one_voice(ranks: Ranks) -> Iterator[None]:
    """Let an error that all ranks know be told by rank 0 alone; end all of them where one fails by itself."""
    try:
        yield
    except BaseException as error:
        if not isinstance(ranks, MpiRanks):
            raise
        if not ranks.agreed:
            ranks.end_all(error)
        if ranks.rank:
            raise SystemExit(2 if isinstance(error, UserError) else 1) from None
        raise
