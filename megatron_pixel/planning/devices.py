"""What a GPU can do, from its maker's data sheets."""

import re
from dataclasses import dataclass, replace

from megatron_pixel.config.errors import UserError

GB = 10**9


@dataclass(frozen=True)
class Device:
    """One GPU and its links; rates of data go one way."""

    title: str
    memory: float
    """Bytes."""
    bf16: float
    """Peak of dense matrix products, 10^12 operations a second."""
    fp32: float
    """Likewise in fp32, without TF32."""
    bandwidth: float
    """Of the memory, bytes a second."""
    link: float
    """To the other GPUs of its node, bytes a second."""
    network: float
    """To other nodes, bytes a second: its share of the node's adapters."""
    source: str
    efficiency: float = 0.6
    """Share of the peak that large matrix products reach: fitted on published runs of A100, H100 and H200
    (``benchmarks/scaling_published.py``), else assumed."""
    cuda: bool = True
    """Whether it runs CUDA's kernels; those of CPUs keep more for the backward pass."""

    def peak(self, bf16: bool) -> float:
        """Operations a second."""
        return (self.bf16 if bf16 else self.fp32) * 1e12


_DGX_A100 = "NVIDIA A100 data sheet (2022); DGX A100: NVLink 600 GB/s both ways, 8 x HDR 200 Gb/s a node"
_DGX_H100 = "NVIDIA H100 data sheet (2023); DGX H100: NVLink 900 GB/s both ways, 8 x NDR 400 Gb/s a node"
_DGX_H200 = "NVIDIA H200 data sheet (2024); DGX H200: NVLink 900 GB/s both ways, 8 x NDR 400 Gb/s a node"
_DGX_B200 = "NVIDIA DGX B200 data sheet (2024): NVLink 1.8 TB/s both ways, 8 x NDR 400 Gb/s a node"
_PCIE = "PCIe 4.0 x16 64 GB/s both ways; the network, 100 Gb/s for each GPU, is assumed"

AMPERE, HOPPER = 0.87, 0.72
"""Shares of their peaks that the largest devices of a generation reach; Blackwell's is taken to be Hopper's."""

DEVICES = {
    "a100": Device("A100 80 GB SXM", 80e9, 312, 19.5, 2039e9, 300e9, 25e9, _DGX_A100, AMPERE),
    "a100-40gb": Device("A100 40 GB SXM", 40e9, 312, 19.5, 1555e9, 300e9, 25e9, _DGX_A100, AMPERE),
    "h100": Device("H100 80 GB SXM", 80e9, 989, 67, 3350e9, 450e9, 50e9, _DGX_H100, HOPPER),
    "h200": Device("H200 141 GB SXM", 141e9, 989, 67, 4800e9, 450e9, 50e9, _DGX_H200, HOPPER),
    "b200": Device("B200 180 GB SXM", 180e9, 2250, 75, 8000e9, 900e9, 50e9, _DGX_B200, HOPPER),
    "l40s": Device("L40S 48 GB", 48e9, 362, 91.6, 864e9, 32e9, 12.5e9, f"NVIDIA L40S data sheet (2023); {_PCIE}"),
    "a10": Device("A10 24 GB", 24e9, 125, 31.2, 600e9, 32e9, 12.5e9, f"NVIDIA A10 data sheet (2021); {_PCIE}"),
    "l4": Device("L4 24 GB", 24e9, 121, 30.3, 300e9, 32e9, 12.5e9, f"NVIDIA L4 data sheet (2023); {_PCIE}"),
}
"""By the name that ``--gpu`` takes."""


OTHER = Device("another GPU", 0, 312, 19.5, 2039e9, 300e9, 25e9, "rates of an A100")
CPU = Device("a CPU", 0, 1, 0.5, 50e9, 10e9, 10e9, "round figures", cuda=False)
"""Both for comparing settings of one run on the same device, where their rates hardly matter; not for times."""


def device_here(name: str | None, memory: float) -> Device:
    """The device that a run is on.

    Args:
        name: as torch calls it, such as ``NVIDIA A100-SXM4-80GB``; None for a CPU.
        memory: its bytes.
    """
    words = [] if name is None else re.split(r"[\s-]+", name.lower())
    known = next((device for key, device in DEVICES.items() if key in words), OTHER)
    return replace(CPU, memory=memory) if name is None else replace(known, title=name or "", memory=memory)


def find_device(name: str) -> Device:
    """The device of a name; case and spaces do not matter.

    Raises:
        UserError: it is not in the table.
    """
    found = DEVICES.get(name.lower().replace(" ", "-"))
    if found is None:
        raise UserError(f"--gpu: {name!r} is not in the table; valid: {', '.join(DEVICES)}")
    return found
