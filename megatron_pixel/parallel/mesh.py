"""The process mesh: every rank's place along pipeline, data and tensor parallelism.

Rank = (pipe * data_size + data) * tensor_size + tensor: ranks that share a layer are neighbours, on one node where they
can be. Megatron's default order and DeepSpeed's pipe-data-model topology give the same ranks.
"""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.parallel.host_memory import keep_freed_memory
from megatron_pixel.parallel.launch import Launch, meeting_seconds, read_launch
from megatron_pixel.parallel.layout import data_parallel_size
from megatron_pixel.parallel.meeting import meet

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others in one operation before the run ends."""


class ModelParallelUnit:
    """Megatron's ``parallel_state`` under the names that ``deepspeed.initialize(mpu=...)`` asks for.

    DeepSpeed's "model parallel" is megatron's "tensor model parallel"; every other name is passed on as it is.
    """

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return parallel_state.get_tensor_model_parallel_group()

    def get_model_parallel_world_size(self) -> int:
        return parallel_state.get_tensor_model_parallel_world_size()

    def get_model_parallel_rank(self) -> int:
        return parallel_state.get_tensor_model_parallel_rank()

    def __getattr__(self, name: str) -> Any:
        return getattr(parallel_state, name)


@dataclass(frozen=True)
class Mesh:
    """Where this process stands."""

    launch: Launch
    device: torch.device
    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    pipe_rank: int
    pipe_size: int
    data_rank: int
    data_size: int

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that talks."""
        return self.rank == 0

    @property
    def mpu(self) -> ModelParallelUnit:
        """The adapter for ``deepspeed.initialize(mpu=...)``."""
        return ModelParallelUnit()

    @property
    def data_group(self) -> dist.ProcessGroup:
        """Ranks that hold the same weights and read different rows."""
        return parallel_state.get_data_parallel_group()

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the heads: only there outputs and losses are known."""
        return self.pipe_rank == self.pipe_size - 1

    def sum_over_pipeline(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` summed in place over the ranks of this pipeline; collective.

        What only the last rank knows reaches all when the others bring zeros.
        """
        if self.pipe_size > 1:
            dist.all_reduce(tensor, group=parallel_state.get_pipeline_model_parallel_group())
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks that share this one's place along tensor parallelism; collective.

        Args:
            value: anything that pickles; the same on all tensor-parallel ranks.
        """
        values = _gathered(value, parallel_state.get_data_parallel_group())
        if self.pipe_size > 1:
            stages = _gathered(values, parallel_state.get_pipeline_model_parallel_group())
            values = [entry for stage in stages for entry in stage]
        return values


def start_mesh(parallel: ParallelConfig, timeout: timedelta = TIMEOUT) -> Mesh:
    """Join the processes that were started together; NCCL and one GPU each where there are GPUs, gloo otherwise.

    Args:
        parallel: sizes of tensor and pipeline parallelism; data parallelism takes what is left.
        timeout: how long to wait for the other ranks, to appear and in each operation, before an error ends the run.

    Raises:
        UserError: the environment is broken, ranks do not divide, or a node has fewer GPUs than processes.
    """
    launch = read_launch(os.environ)
    data_size = data_parallel_size(parallel, launch.world_size)
    device = _device(launch)
    if device.type == "cpu":
        keep_freed_memory()
    # Megatron's tensor-parallel layers count on kernels starting in the order of their launches.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    try:
        _join(launch, device, timeout)
    except (dist.DistStoreError, dist.DistNetworkError) as error:
        raise UserError(
            f"rank {launch.rank} of {launch.world_size} cannot meet the others at {launch.master_addr}:"
            f"{launch.master_port} ({launch.launcher}; MASTER_ADDR and MASTER_PORT name another place): {error}"
        ) from error
    # The timeout of the default group does not bound megatron's own groups.
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        distributed_timeout_minutes=timeout.total_seconds() / 60,
        create_gloo_process_groups=False,
    )
    return Mesh(
        launch=launch,
        device=device,
        rank=launch.rank,
        world_size=launch.world_size,
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel.tensor,
        pipe_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipe_size=parallel.pipeline,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=data_size,
    )


def stop_mesh() -> None:
    """Leave, all ranks together: rank 0 keeps the store that the others still talk to. A second call does nothing."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()
    parallel_state.destroy_model_parallel()
    # Process groups that linger in cycles would shut down after the interpreter has torn down what they need.
    gc.collect()
    if dist.is_initialized():
        # DeepSpeed keeps its groups in globals, where the next mesh of this process would find them.
        comm = sys.modules.get("deepspeed.comm")
        if comm is not None and comm.is_initialized():
            comm.destroy_process_group()
        else:
            dist.destroy_process_group()


@contextmanager
def mesh(parallel: ParallelConfig, timeout: timedelta = TIMEOUT) -> Iterator[Mesh]:
    """:func:`start_mesh` and :func:`stop_mesh` around a block.

    A rank that fails among several leaves without goodbye: the others may be waiting for it inside an operation, where
    a clean shutdown would wait for them in turn. They end when its connection breaks.
    """
    here = None
    try:
        here = start_mesh(parallel, timeout)
        yield here
    except BaseException:
        if here is None or here.world_size == 1:
            stop_mesh()
        raise
    stop_mesh()


def _gathered(value: Any, group: dist.ProcessGroup) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def _join(launch: Launch, device: torch.device, timeout: timedelta) -> None:
    options: dict[str, Any] = {"rank": launch.rank, "world_size": launch.world_size, "timeout": timeout}
    if device.type == "cuda":
        options["device_id"] = device
    backend = "nccl" if device.type == "cuda" else "gloo"
    if launch.launcher == "python":
        # Nobody to meet: no port is taken, and programs that this one starts do not take themselves for ranks.
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed insists on this one
        dist.init_process_group(backend, store=dist.HashStore(), **options)
        return
    os.environ.update(launch.variables())
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)  # DeepSpeed takes it for the number of the GPU
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun has opened a store
        dist.init_process_group(backend, **options)
        return
    with meet(launch, meeting_seconds(os.environ)) as store:
        dist.init_process_group(backend, store=store, **options)


def _device(launch: Launch) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    # srun --gpus-per-task=1 shows each process its own GPU as number 0.
    index = 0 if launch.launcher == "srun" and count == 1 else launch.local_rank
    if index >= count:
        raise UserError(
            f"rank {launch.rank} is process {launch.local_rank} of its node, which shows {count} GPU(s): "
            "start no more processes per node than GPUs"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device
