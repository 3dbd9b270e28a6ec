"""DeepSpeed's pipeline schedule, and how long it takes: ticks, and the clock of every rank.

One forward, one backward (Narayanan et al. 2019, arXiv 1806.03377; DeepSpeed's ``TrainSchedule``). Of ``p`` ranks and
``m`` micro-batches, rank ``r`` runs the forward pass of micro-batch ``i`` in tick ``2 i + r`` and its backward pass in
tick ``2 (i + p) - 1 - r``: so it holds ``p - r`` micro-batches at most, and of ``2 (m + p - 1)`` ticks of a step it
waits in ``2 (p - 1)``, its bubble. Before a tick's pass a rank hands on what the tick before has made, and receives
what the pass needs; a test holds all of it against runs of 2 and 4 processes.

Ticks are not seconds: stages differ, and so do micro-batches. :func:`simulate` lets every rank work through its list
with the times of its own passes; a send and its receive begin when both ranks have come to them, and end together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["forward", "backward", "send activation", "receive activation", "send gradient", "receive gradient"]
OPPOSITE: dict[Kind, Kind] = {
    "send activation": "receive activation",
    "receive activation": "send activation",
    "send gradient": "receive gradient",
    "receive gradient": "send gradient",
}


class Instruction(NamedTuple):
    """What a rank does for a micro-batch in a tick."""

    tick: int
    kind: Kind
    micro_batch: int


def ticks(ranks: int, micro_batches: int) -> int:
    """Of a step: 2 (m + p - 1)."""
    return 2 * (micro_batches + ranks - 1)


def bubble_ticks(ranks: int) -> int:
    """In which a rank runs no pass: 2 (p - 1), the same for each."""
    return 2 * (ranks - 1)


def schedule(ranks: int, micro_batches: int, rank: int) -> Iterator[Instruction]:
    """What a rank does, in order.

    Args:
        ranks: of the pipeline, p.
        micro_batches: of the step, m.
        rank: from 0, which embeds, to p - 1, which has the heads.
    """
    first, last = rank == 0, rank == ranks - 1
    before: Instruction | None = None
    for tick in range(ticks(ranks, micro_batches)):
        forward = tick % 2 == rank % 2
        number = (tick - rank) // 2 if forward else (tick + 1 + rank) // 2 - ranks
        now = Instruction(tick, "forward" if forward else "backward", number)
        valid = 0 <= number < micro_batches
        # Forward and backward ticks take turns. In a forward one a rank sends first, in a backward one it receives
        # first: its neighbors do the opposite, so none waits for ever.
        if forward:
            if before and not first:
                yield Instruction(tick, "send gradient", before.micro_batch)
            if valid and not first:
                yield Instruction(tick, "receive activation", number)
        else:
            if valid and not last:
                yield Instruction(tick, "receive gradient", number)
            if before and not last:
                yield Instruction(tick, "send activation", before.micro_batch)
        if valid:
            yield now
        before = now if valid else None


@dataclass(frozen=True)
class Passes:
    """Seconds of a rank's passes, by micro-batch."""

    forward: Sequence[float]
    backward: Sequence[float]


@dataclass(frozen=True)
class Times:
    """Seconds of a step's passes and sends."""

    seconds: float
    """From the first pass to the last one."""
    busy: Sequence[float]
    """By rank: in passes."""


def simulate(passes: Sequence[Passes], activation: float = 0.0, gradient: float = 0.0) -> Times:
    """Let every rank work through its schedule.

    Args:
        passes: of each rank.
        activation: seconds to send hidden states to the next rank.
        gradient: seconds to send their gradients back.
    """
    ranks, count = len(passes), len(passes[0].forward)
    lists = [list(schedule(ranks, count, rank)) for rank in range(ranks)]
    clocks, places = [0.0] * ranks, [0] * ranks
    ready = list(range(ranks))
    while ready:
        rank = ready.pop()
        while places[rank] < len(lists[rank]):
            _, kind, number = lists[rank][places[rank]]
            if kind == "forward" or kind == "backward":
                clocks[rank] += getattr(passes[rank], kind)[number]
                places[rank] += 1
                continue
            ahead = kind in ("send activation", "receive gradient")
            other = rank + 1 if ahead else rank - 1
            if places[other] == len(lists[other]) or lists[other][places[other]][1:] != (OPPOSITE[kind], number):
                break  # the other rank wakes this one when it comes to its side
            seconds = activation if kind.endswith("activation") else gradient
            clocks[rank] = clocks[other] = max(clocks[rank], clocks[other]) + seconds
            places[rank] += 1
            places[other] += 1
            ready.append(other)
    assert all(place == len(done) for place, done in zip(places, lists, strict=True)), "ranks wait for each other"
    return Times(max(clocks), [sum(each.forward) + sum(each.backward) for each in passes])
