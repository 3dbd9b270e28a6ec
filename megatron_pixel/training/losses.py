"""From sums over micro-batches to the losses of a step: means over the global batch, whatever the micro-batches."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_pixel.data.rows import Kind, MicroBatch, Modality, rows_digest
from megatron_pixel.model.batch import move
from megatron_pixel.model.objectives import LossSum, Objective
from megatron_pixel.parallel.mesh import Mesh

KEYS = {
    (Kind.TEXT, "token"): "loss_token_text",
    (Kind.PAIR, "token"): "loss_token_pair",
    (Kind.PIXEL, "patch"): "loss_patch_pixel",
    (Kind.PAIR, "patch"): "loss_patch_pair",
}
"""Key of metrics.jsonl for an objective on rows of a kind."""


@dataclass(frozen=True)
class Tally:
    """What a micro-batch holds; sums over micro-batches and ranks are :class:`StepCounts`."""

    tokens: int
    """Targets that are tokens."""
    patches: int
    """Targets that are patches."""
    positions: int
    shown: int
    """Positions that hold a patch."""
    attended: int
    rows_digest: int


def tally(rows: MicroBatch, end_patch: bool) -> Tally:
    """Count a micro-batch; ``end_patch`` says whether the black end patch is a target."""
    targets = rows.count_targets(end_patch)
    content = rows.modality != Modality.PADDING
    seen = content.cumsum(1)
    # What stands before a document, which a position id of 0 begins, is not seen in it.
    unseen = np.maximum.accumulate(np.where(rows.position_ids == 0, seen - content, 0), axis=1)
    return Tally(
        targets.tokens,
        targets.patches,
        int(content.sum()),
        int((rows.modality == Modality.PATCH).sum()),
        int(((seen - unseen) * content).sum()),
        rows_digest(rows.rows),
    )


class StepCounts:
    """What a step holds over all data-parallel ranks, summed before its first forward pass.

    The losses take :attr:`divisors`, which stay on the device; the other attributes are numbers, and the first of them
    that is asked for waits for the device.

    Attributes:
        divisors: targets by objective and at least 1, as float64 scalars on the device.
        targets: targets by objective.
        positions: positions that hold a token or a patch.
        patches: positions that hold a patch.
        attended: pairs of a position and one that it attends to, itself among them: n (n + 1) / 2 in a row of n, and
            of each document of n where the row holds several that do not see each other.
        rows_digest: tells which rows they are, see :func:`megatron_pixel.data.rows.rows_digest`.
    """

    def __init__(
        self,
        tallies: Sequence[Tally],
        objectives: Sequence[Objective],
        group: dist.ProcessGroup,
        device: torch.device,
    ) -> None:
        local = [sum(column) for column in zip(*map(astuple, tallies), strict=True)]
        self._total = move(torch.tensor(local, dtype=torch.int64), device)
        dist.all_reduce(self._total, group=group)
        places = {Modality.TOKEN: 0, Modality.PATCH: 1}
        self._places = {objective.name: places[objective.modality] for objective in objectives}
        divisors = self._total.clamp(min=1).double()
        self.divisors = {name: divisors[place] for name, place in self._places.items()}

    @cached_property
    def _known(self) -> list[int]:
        return self._total.tolist()

    @property
    def targets(self) -> dict[str, int]:
        return {name: self._known[place] for name, place in self._places.items()}

    @property
    def positions(self) -> int:
        return self._known[2]

    @property
    def patches(self) -> int:
        return self._known[3]

    @property
    def attended(self) -> int:
        return self._known[4]

    @property
    def rows_digest(self) -> int:
        return self._known[5]


def loss_factors(
    objectives: Sequence[Objective], divisors: Mapping[str, Tensor], data_parallel: int, accumulation: int
) -> dict[str, Tensor]:
    """What each objective's sum over a micro-batch is multiplied with, fp32 scalars on the device; made once a step.

    DeepSpeed divides gradients by the data-parallel size and by the accumulation steps; times both, ::

        sum_k w_k * (local_sum_k / global_count_k) * data_parallel * accumulation

    gives the gradient of ``sum_k w_k * global_sum_k / global_count_k`` whatever the cut into micro-batches and ranks.
    """
    scale = float(data_parallel * accumulation)
    return {each.name: (each.weight * scale / divisors[each.name]).float() for each in objectives}


def micro_batch_loss(terms: Mapping[str, LossSum], factors: Mapping[str, Tensor]) -> torch.Tensor:
    """The scalar whose backward pass a micro-batch contributes; ``factors`` are :func:`loss_factors`."""
    return torch.stack([term.sum * factors[name] for name, term in terms.items()]).sum()


class LossTotals:
    """Sums and counts of losses by key of metrics.jsonl; sums stay on the device until they are asked for.

    Args:
        device: where they are.
        sources: names of the datasets of each kind, the same on all ranks. Where a kind has several, its losses are
            also summed by source, under keys such as ``loss_patch_pixel/english``.
    """

    def __init__(self, device: torch.device, sources: Mapping[Kind, Sequence[str]] | None = None) -> None:
        self._sources = sources or {}
        split = {kind: list(names) for kind, names in self._sources.items() if len(names) > 1}
        keys = [*KEYS.values(), *(source_key(kind, o, n) for kind, o in KEYS for n in split.get(kind, ()))]
        self._places = {key: place for place, key in enumerate(keys)}
        self._number = {kind: {name: i for i, name in enumerate(names)} for kind, names in split.items()}
        self._totals = torch.zeros(len(keys), 2, dtype=torch.float64, device=device)

    def add(self, kind: Kind, terms: Mapping[str, LossSum], rows: MicroBatch | None = None) -> None:
        """Add one micro-batch.

        Args:
            kind: of its rows.
            terms: from :func:`megatron_pixel.model.objectives.losses`.
            rows: the micro-batch, for the sums by source.
        """
        for name, term in terms.items():
            if not term.count:
                continue
            line = self._totals[self._places[KEYS[kind, name]]]
            line[0] += term.sum.detach()
            line[1] += term.count
            if rows is not None and kind in self._number and term.each is not None and term.positions is not None:
                self._add_by_source(kind, name, rows, term.each, term.positions)

    def _add_by_source(self, kind: Kind, name: str, rows: MicroBatch, each: Tensor, positions: Tensor) -> None:
        """Sums over rows, then over the rows of each source: every addition in a fixed order, on the device."""
        b, s = rows.modality.shape
        values = each.new_zeros(b * s, 2)
        values[positions] = torch.stack([each, torch.ones_like(each)], dim=1)
        by_row = values.view(b, s, 2).sum(1).double()
        numbers = self._number[kind]
        belongs = torch.zeros(len(numbers), b, dtype=torch.float64)
        for row, (source, _) in enumerate(rows.rows):
            if source in numbers:  # padding rows come from nowhere
                belongs[numbers[source], row] = 1.0
        first = self._places[source_key(kind, name, next(iter(numbers)))]
        self._totals[first : first + len(numbers)] += move(belongs, each.device) @ by_row

    def share(self, mesh: Mesh) -> Tensor:
        """What this rank adds to the sum over all ranks, float64 [keys, 2]: sums and counts.

        Tensor-parallel ranks know the same losses, which count once; in a pipeline only the last rank knows any.
        """
        return self._totals if mesh.tensor_rank == 0 else torch.zeros_like(self._totals)

    def read(self, totals: Tensor, objectives: Sequence[Objective]) -> "StepLosses":
        """Means from the sum of all ranks' :meth:`share`, on the host."""
        sums = dict(zip(self._places, totals.tolist(), strict=True))
        means = {key: total / count if count else None for key, (total, count) in sums.items()}
        by_kind = {"loss": _weighted(sums, objectives), **{key: means.pop(key) for key in KEYS.values()}}
        by_source = {key: mean for key, mean in means.items() if mean is not None}
        for (kind, name), key in KEYS.items():
            names = self._sources.get(kind, ())
            mean = by_kind[key]
            if len(names) == 1 and mean is not None:
                by_source[source_key(kind, name, names[0])] = mean
        return StepLosses(by_kind, by_source)

    def means(self, objectives: Sequence[Objective], mesh: Mesh) -> dict[str, float | None]:
        """Losses over all ranks by key; None without targets. ``loss`` is the weighted sum of the means.

        Collective, with the same answer on all ranks.
        """
        return self.collect(objectives, mesh).by_kind

    def collect(self, objectives: Sequence[Objective], mesh: Mesh) -> "StepLosses":
        """Losses over all ranks, by kind and by source; collective, with the same answer on all ranks."""
        (totals,) = sum_over_ranks([self.share(mesh)])
        return self.read(totals, objectives)


@dataclass(frozen=True)
class StepLosses:
    """Losses of a step, or of an evaluation, over all ranks."""

    by_kind: dict[str, float | None]
    """``loss`` and the keys of ``KEYS``; None without targets."""
    by_source: dict[str, float]
    """Keys such as ``loss_patch_pixel/english``, of those that had targets."""


def source_key(kind: Kind, objective: str, source: str) -> str:
    """``loss_patch_pixel/english`` of the source ``pixel:english``."""
    return f"{KEYS[kind, objective]}/{source.partition(':')[2]}"


def sum_over_ranks(parts: Sequence[Tensor]) -> list[Tensor]:
    """Each of some tensors summed over all ranks, as float64 on the host; one collective and one wait for all of them.

    Args:
        parts: the same shapes on all ranks.
    """
    flat = torch.cat([part.detach().double().flatten() for part in parts])
    dist.all_reduce(flat)
    summed = flat.cpu().split([part.numel() for part in parts])
    return [values.view(part.shape) for values, part in zip(summed, parts, strict=True)]


def _weighted(sums: Mapping[str, Sequence[float]], objectives: Sequence[Objective]) -> float:
    """``sum_k weight_k * sum_k / count_k``, kinds of rows taken together."""
    loss = 0.0
    for objective in objectives:
        parts = [sums[key] for (_, name), key in KEYS.items() if name == objective.name]
        count = sum(part[1] for part in parts)
        if count:
            loss += objective.weight * sum(part[0] for part in parts) / count
    return loss
