"""What a watched run gives back. Starts without torch: tests import it, ranks do the work."""

from collections import Counter
from dataclasses import dataclass, field

from megatron_pixel.data.rows import Kind

Sent = Counter[tuple[str, int]]
"""Bytes by operation and size of the group."""


@dataclass
class Watched:
    """What one rank has done and held."""

    place: tuple[int, int, int]
    """Ranks along tensor, pipeline and data parallelism."""
    kinds: list[Kind] = field(default_factory=list)
    targets: list[tuple[int, int]] = field(default_factory=list)
    """Token and patch targets of each micro-batch of the step."""
    sent: Sent = field(default_factory=Counter)
    """By model and engine."""
    around: Sent = field(default_factory=Counter)
    """By the loop around them."""
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    instructions: list[tuple[int, str, int]] = field(default_factory=list)
    """Of a pipeline: tick, kind and micro-batch of every pass, send and receive."""
    ticks: int = 0
    """Of a pipeline's schedule."""
    headers_asked_for: int = 0
    """Of a pipeline: how often the stages copied a header to the host, which waits for a device."""
    saved: list[int] = field(default_factory=list)
    """Bytes that each micro-batch keeps for its backward pass."""
