"""What the roofline takes of hardware and software besides data sheets: shares of peaks, passes over memory.

Those of :class:`Constants` and each device's share of its peak are fitted on published training throughput, and judged
on rows that the fit has not seen: ``benchmarks/scaling_published.py``, docs/scaling.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from megatron_pixel.data.rows import Kind

LATENCY = {"node": 10e-6, "network": 25e-6}
"""Seconds of an operation of no size. Assumed."""


@dataclass(frozen=True)
class Constants:
    """Of :func:`megatron_pixel.planning.speed.speed`; the defaults are fitted, but for ``launch``."""

    efficiency: float | None = None
    """Share of the peak that large matrix products reach; None for the device's own."""
    attention: float = 0.3
    """How fast the two products of attention are beside the others."""
    traffic: float = 9.5
    """How often a byte between two operations of a layer is moved: written once, read a few times in both passes."""
    node: float = 1.0
    """Share of the links of a node that rings reach."""
    network: float = 0.76
    """Likewise, of the network."""
    hidden: float = 0.31
    """The most of a communication that computing hides: it begins late, ends late, and both want the memory."""
    launch: float = 0.4e-3
    """Seconds that the host takes to start all operations of a decoder layer in both passes: the least that a layer
    takes, however few its rows. Assumed."""
    measured: Mapping[Kind, float] = field(default_factory=dict)
    """Where one device was measured: how many times as long as by the roofline a micro-batch of a kind takes there."""
    optimizer: float = 1.0
    """Likewise, an optimizer step."""
