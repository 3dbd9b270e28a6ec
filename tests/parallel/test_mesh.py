"""What the mesh refuses; that it works is tested on two ranks in tests/distributed."""

import os

import pytest
import torch
import torch.distributed as dist

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.parallel.launch import Launch
from megatron_pixel.parallel.mesh import _device, mesh, start_mesh


def test_ranks_that_do_not_divide_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "6", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"parallel.tensor 2 x parallel.pipeline 2 = 4 does not divide the 6 process"):
        start_mesh(ParallelConfig(tensor=2, pipeline=2))


def test_one_process_leaves_no_rank_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it starts later must not take itself for a rank."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    before = {**os.environ, "CUDA_DEVICE_MAX_CONNECTIONS": "1", "LOCAL_RANK": "0"}
    with mesh(ParallelConfig()) as here:
        assert dict(os.environ) == before
        assert (here.rank, here.world_size, dist.get_world_size()) == (0, 1, 1)
    assert not dist.is_initialized()


def test_gpus_are_taken_by_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert _device(Launch("torchrun", 6, 8, 2, "head", 1)) == torch.device("cuda", 2)
    with pytest.raises(UserError, match=r"rank 7 is process 5 of its node, which shows 4 GPU"):
        _device(Launch("torchrun", 7, 8, 5, "head", 1))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _device(Launch("srun", 6, 8, 2, "head", 1)) == torch.device("cuda", 0), "srun may show each task its own"
    assert chosen == [torch.device("cuda", 2), torch.device("cuda", 0)]
