#!/usr/bin/env python
"""Train on this machine and see to it that the run gets done: start the ranks, watch them, start them again.

    python launcher/supervise.py --ranks 2 --config megatron_pixel/config/recipes/dualgpt-debug.yaml
    python launcher/supervise.py --ranks 8 --retries 10 --config RECIPE --run.dir runs/first

Everything but the options below goes to megatron_pixel/pretrain.py, whose --help explains it. When a rank dies, however
that comes about, the others are ended within --grace seconds, a line names the rank, and all start again from the
newest whole checkpoint. After --retries deaths without a new checkpoint between them the run is given up. A run that is
done, was stopped by a guard, or cannot begin as its settings are wrong is not started again.

SIGTERM, SIGUSR1 and Ctrl-C are handed on to the ranks: they finish their step, save a checkpoint and end, and so does
this program. Its exit status is that of the run: 0 done, 75 stopped by a signal, 65 by a guard, 2 settings, 1 given up.
"""

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from megatron_pixel.config.command_line import read_command_line
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.schema import RunConfig
from megatron_pixel.parallel.layout import check_layout
from megatron_pixel.parallel.local_ranks import LocalRanks
from megatron_pixel.training import exit_codes, preflight, sessions
from megatron_pixel.training.restarts import Restarts

LONGEST_PAUSE = 60.0
"""Seconds between a death and the next start at the most."""


class Supervisor:
    """Takes one run to its end.

    Args:
        config: of the run.
        words: the command line of ``pretrain.py``.
        ranks: processes.
        retries, grace, pause: see ``--help``.
    """

    def __init__(
        self, config: RunConfig, words: Sequence[str], ranks: int, retries: int, grace: float, pause: float
    ) -> None:
        self._folder = Path(config.run.dir)
        self._words, self._count = list(words), ranks
        self._grace, self._pause = grace, pause
        self._restarts = Restarts(config, retries)
        self._ranks: LocalRanks | None = None
        self._signalled = False

    def run(self) -> int:
        """Start the ranks until there is no more to do; the exit status."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._hand_on)
        program = str(ROOT / "megatron_pixel" / "pretrain.py")
        while True:
            command = [sys.executable, "-u", program, *self._words, *self._restarts.words()]
            with LocalRanks(command, self._count, self._folder / "logs" / "ranks.log") as self._ranks:
                if self._signalled:
                    self._ranks.signal(signal.SIGTERM)
                end = self._ranks.wait(self._grace)
            if end is None:
                return exit_codes.FINISHED
            if end.status == exit_codes.REQUEUE or end.status in exit_codes.FINAL:
                return end.status
            sessions.note(self._folder, "failure", {"rank": end.rank, "ranks": self._count, "cause": end.cause()})
            self._say(f"rank {end.rank} of {self._count} (process {end.pid}) {end.cause()}; all ranks are ended")
            if self._signalled:
                return exit_codes.CRASHED
            if not self._restarts.again():
                self._say(
                    f"given up after {self._restarts.in_a_row} deaths in a row without a new checkpoint; "
                    f"{self._folder / 'logs' / 'ranks.log'} keeps what the ranks said"
                )
                return exit_codes.CRASHED
            self._rest()

    def _rest(self) -> None:
        number = self._restarts.in_a_row
        pause = min(self._pause * (number - 1), LONGEST_PAUSE)
        self._say(f"start again from {self._restarts.origin()}" + (f" in {pause:g} s" if pause else ""))
        end = time.monotonic() + pause
        while time.monotonic() < end and not self._signalled:
            time.sleep(0.1)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True
        if self._ranks is not None:
            self._ranks.signal(signal.SIGTERM)

    def _say(self, text: str) -> None:
        print(f"supervise: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Read the command line, check it, supervise; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--ranks", type=int, required=True, help="processes to start; one a GPU where there are GPUs")
    parser.add_argument("--retries", type=int, default=3, help="deaths in a row without a new checkpoint between (3)")
    parser.add_argument(
        "--grace", type=float, default=10.0, help="seconds for the other ranks to end by themselves after a death (10)"
    )
    parser.add_argument(
        "--pause", type=float, default=5.0, help="seconds before the second restart in a row, and so on growing (5)"
    )
    options, words = parser.parse_known_args(arguments)
    if options.ranks < 1:
        raise UserError(f"--ranks {options.ranks}: at least one process is needed")
    config = read_command_line("See python megatron_pixel/pretrain.py --help.", words)
    check_layout(config, options.ranks)
    preflight.preflight(config)
    return Supervisor(config, words, options.ranks, options.retries, options.grace, options.pause).run()


if __name__ == "__main__":
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
