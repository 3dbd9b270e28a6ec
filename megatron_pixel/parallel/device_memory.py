"""How much memory the devices of a run have."""

from typing import Any

import torch
import torch.distributed as dist

from megatron_pixel.parallel.mesh import Mesh


def least_device(mesh: Mesh) -> tuple[str, int] | None:
    """Name and bytes of the device that has least, the same answer on all ranks; None on CPUs. Collective."""
    if mesh.device.type != "cuda":
        return None
    properties = torch.cuda.get_device_properties(mesh.device)
    devices: list[Any] = [None] * mesh.world_size
    dist.all_gather_object(devices, (properties.total_memory, properties.name))
    memory, name = min(devices)
    return name, memory
