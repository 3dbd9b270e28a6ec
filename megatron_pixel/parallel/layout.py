"""Whether a run fits the processes it is given; answered before anything is built, and without torch."""

from megatron_pixel.config.automatic import ROWS, automatic, least
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ParallelConfig, RunConfig
from megatron_pixel.data.mixture import Mixture
from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile


def check_layout(config: RunConfig, processes: int) -> None:
    """Refuse what cannot run, all of it in one error with the nearest values that can.

    The shape of the model against ``parallel.*`` is checked with the rest of the config tree. Settings that are still
    ``auto`` pass if the least that they can become does.

    Args:
        config: the checked config tree.
        processes: how many there are, or will be.

    Raises:
        UserError: processes, batch, DeepSpeed file and pipeline do not go together.
    """
    problems = []
    names, config = automatic(config), least(config)
    try:
        size = data_parallel_size(config.parallel, processes)
        mixture = Mixture.from_config(config.data, config.training, size)
        accumulation = len(mixture.schedule(size))
    except UserError as error:
        problems.append(str(error))
        accumulation = None
    try:
        file = DeepSpeedFile(config.deepspeed_config)
        file.check_pipeline(config.parallel)
        file.check_compiling(config.training)
        if ROWS in names:
            file.check_automatic()
        if accumulation is not None:
            file.check(config.training, config.optimizer, accumulation)
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def data_parallel_size(parallel: ParallelConfig, processes: int) -> int:
    """Ranks that hold the same weights and read different rows.

    Raises:
        UserError: tensor and pipeline parallelism do not divide the processes.
    """
    group = parallel.tensor * parallel.pipeline
    if processes % group:
        below = processes // group * group
        counts = " or ".join(str(count) for count in (below, below + group) if count)
        divisors = ", ".join(str(size) for size in range(1, processes + 1) if processes % size == 0)
        raise UserError(
            f"parallel.tensor {parallel.tensor} x parallel.pipeline {parallel.pipeline} = {group} does not divide the "
            f"{processes} process(es) of this run; nearest valid: {counts} processes, or a product of {divisors}"
        )
    return processes // group
