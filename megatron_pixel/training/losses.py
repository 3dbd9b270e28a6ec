"""From sums over micro-batches to the losses of a step: means over the global batch, whatever the micro-batches."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from megatron_pixel.data.rows import Kind, MicroBatch, Modality
from megatron_pixel.model.objectives import LossSum, Objective
from megatron_pixel.parallel.mesh import Mesh

KEYS = {
    (Kind.TEXT, "token"): "loss_token_text",
    (Kind.PAIR, "token"): "loss_token_pair",
    (Kind.PIXEL, "patch"): "loss_patch_pixel",
    (Kind.PAIR, "patch"): "loss_patch_pair",
}
"""Key of metrics.jsonl for an objective on rows of a kind."""


class StepCounts:
    """What a step holds over all data-parallel ranks; known before its first forward pass.

    Attributes:
        targets: targets by objective.
        positions: positions that hold a token or a patch.
        patches: positions that hold a patch.
    """

    def __init__(
        self,
        batches: Sequence[MicroBatch],
        objectives: Sequence[Objective],
        end_patch: bool,
        group: dist.ProcessGroup,
        device: torch.device,
    ) -> None:
        local = [0, 0, 0, 0]
        for batch in batches:
            targets = batch.count_targets(end_patch)
            local[0] += targets.tokens
            local[1] += targets.patches
            local[2] += int((batch.modality != Modality.PADDING).sum())
            local[3] += int((batch.modality == Modality.PATCH).sum())
        total = torch.tensor(local, dtype=torch.int64, device=device)
        dist.all_reduce(total, group=group)
        tokens, patches, self.positions, self.patches = (int(value) for value in total.tolist())
        counts = {Modality.TOKEN: tokens, Modality.PATCH: patches}
        self.targets = {objective.name: counts[objective.modality] for objective in objectives}


def micro_batch_loss(
    terms: Mapping[str, LossSum],
    objectives: Sequence[Objective],
    targets: Mapping[str, int],
    data_parallel: int,
    accumulation: int,
) -> torch.Tensor:
    """The scalar whose backward pass a micro-batch contributes.

    DeepSpeed divides gradients by the data-parallel size and by the accumulation steps; times both, ::

        sum_k w_k * (local_sum_k / global_count_k) * data_parallel * accumulation

    gives the gradient of ``sum_k w_k * global_sum_k / global_count_k`` whatever the cut into micro-batches and ranks.
    """
    weights = {objective.name: objective.weight for objective in objectives}
    scale = float(data_parallel * accumulation)
    parts = [term.sum * (weights[name] * scale / max(1, targets[name])) for name, term in terms.items()]
    return torch.stack(parts).sum()


class LossTotals:
    """Sums and counts of losses by key of metrics.jsonl; sums stay on the device until :meth:`means` asks for them."""

    def __init__(self, device: torch.device) -> None:
        self._places = {key: place for place, key in enumerate(KEYS.values())}
        self._sums = torch.zeros(len(KEYS), dtype=torch.float64, device=device)
        self._counts = [0] * len(KEYS)

    def add(self, kind: Kind, terms: Mapping[str, LossSum]) -> None:
        """Add one micro-batch."""
        for name, term in terms.items():
            if term.count:
                place = self._places[KEYS[kind, name]]
                self._sums[place] += term.sum.detach()
                self._counts[place] += term.count

    def means(self, objectives: Sequence[Objective], mesh: Mesh) -> dict[str, float | None]:
        """Losses over all ranks by key; None without targets. ``loss`` is the weighted sum of the means.

        Collective, with the same answer on all ranks; in a pipeline only the last one has added anything.
        """
        totals = torch.stack([self._sums, self._sums.new_tensor(self._counts)], dim=1)
        dist.all_reduce(totals, group=mesh.data_group)
        mesh.sum_over_pipeline(totals)
        sums = dict(zip(self._places, totals.tolist(), strict=True))
        means: dict[str, float | None] = {"loss": 0.0}
        for key, (total, count) in sums.items():
            means[key] = total / count if count else None
        loss = 0.0
        for objective in objectives:
            parts = [sums[key] for (_, name), key in KEYS.items() if name == objective.name]
            count = sum(part[1] for part in parts)
            if count:
                loss += objective.weight * sum(part[0] for part in parts) / count
        means["loss"] = loss
        return means
