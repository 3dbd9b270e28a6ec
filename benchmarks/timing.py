"""What benchmarks of single parts of a step share: their options, the device and its clock, medians of times."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import result_file
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.parallel.quiet import silence_libraries

Work = Callable[[], object]


def parser_of(about: str | None, repeated: str) -> argparse.ArgumentParser:
    """``--precision``, ``--repeats`` of what is ``repeated``, ``--clock`` and ``--json``."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"], help="default: both")
    add("--repeats", type=int, default=5, help=f"the median of so many{repeated} (default: %(default)s)")
    add("--clock", choices=["wall", "processor"], default="wall", help="default: %(default)s")
    result_file.add_json_argument(parser)
    return parser


class Timer:
    """Medians of times of some work.

    Args:
        clock: seconds.
        device: that does the work.
        repeats: how often.
    """

    def __init__(self, clock: Callable[[], float], device: Any, repeats: int) -> None:
        self._clock, self.repeats = clock, repeats
        self.device = device

    def seconds(self, work: Work) -> float:
        """Median after one run that warms up."""
        return statistics.median([self.once(work) for _ in range(self.repeats + 1)][1:])

    def once(self, work: Work) -> float:
        """One run."""
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        start = self._clock()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._clock() - start


@contextmanager
def measuring(arguments: argparse.Namespace, figures: dict[str, Any]) -> Iterator[tuple[Timer, dict[str, Any]]]:
    """A timer on this process's device and the dtypes by precision; then ``figures`` are written, if asked for."""
    silence_libraries()
    import torch

    from megatron_pixel.parallel.mesh import mesh

    figures["threads"] = torch.get_num_threads()
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    clock = time.process_time if arguments.clock == "processor" else time.perf_counter
    with mesh(ParallelConfig()) as here:
        yield Timer(clock, here.device, arguments.repeats), {name: dtypes[name] for name in arguments.precision}
    result_file.write(arguments.json, figures, ("torch", "megatron-core"))
