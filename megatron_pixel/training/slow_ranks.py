"""Which rank holds the others up: times of all ranks, compared with those that do the same work.

In synchronous training all ranks take as long as the slowest, so the length of a step names nobody. What a rank does
alone does: waiting for its rows, its forward passes, and a fixed multiplication of matrices in between (the probe),
which nobody else takes part in whatever the layout.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from megatron_pixel.config.schema import GuardsConfig
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.observation import RANK_COLUMNS

FILE = Path("logs", "ranks.jsonl")
OWN = {"data": "waits {:.3f} s a step for its rows", "forward": "takes {:.3f} s a step for its forward passes"}
PROBE = "takes {:.2g} s for the probe, which nobody else takes part in,"
LEAST_SHARE = 0.02
"""Of a step: less than that holds nobody up."""


class SlowRanks:
    """Sums up what the ranks tell, and reports now and then.

    Args:
        config: the guards of the run.
        mesh: where this process stands; ranks of one pipeline stage do the same work.
        hosts: of all ranks.
        folder: of the run, where rank 0 keeps a line a report; None on the others.
    """

    def __init__(self, config: GuardsConfig, mesh: Mesh, hosts: Sequence[str], folder: Path | None) -> None:
        self._every, self._factor = config.slow_ranks_every, config.slow_ranks_factor
        self._stages, self._hosts, self._folder = mesh.pipe_size, list(hosts), folder
        self._sums = torch.zeros(mesh.world_size, len(RANK_COLUMNS), dtype=torch.float64)
        self._count = 0

    def probes(self, step: int) -> bool:
        """Whether the ranks measure the probe after this step, for the report after the next."""
        return self._every > 0 and (step + 1) % self._every == 0

    def add(self, step: int, table: Tensor) -> list[str]:
        """Note the table of a step, :data:`RANK_COLUMNS` of all ranks; lines about slow ranks when a report is due."""
        if not self._every:
            return []
        if table[:, 0].min() > 0:  # in the first step of a run there is none before it to tell about
            self._sums += table
            self._count += 1
        if step % self._every or not self._count:
            return []
        means = self._sums / self._count
        means[:, RANK_COLUMNS.index("probe")] = table[:, RANK_COLUMNS.index("probe")]
        self._keep(step, means)
        self._sums.zero_()
        self._count = 0
        return self._slow(step, means)

    def _slow(self, step: int, means: Tensor) -> list[str]:
        found = []
        ranks = len(means) // self._stages
        for stage in range(self._stages):
            first = stage * ranks
            share = means[first : first + ranks]
            for column, wording in [*OWN.items(), ("probe", PROBE)]:
                values = share[:, RANK_COLUMNS.index(column)]
                worst, usual = int(values.argmax()), float(values.median())
                value, seconds = float(values[worst]), float(share[worst, 0])
                if ranks == 1 or value <= self._factor * usual:
                    continue
                if column != "probe" and value - usual < LEAST_SHARE * seconds:
                    continue
                rank = first + worst
                found.append(
                    f"slow rank: {rank} on {self._hosts[rank]} {wording.format(value)} where {usual:.2g} s are usual "
                    f"(up to step {step:,})"
                )
        return found

    def _keep(self, step: int, means: Tensor) -> None:
        if self._folder is None:
            return
        ranks = [
            {"rank": rank, "host": self._hosts[rank]}
            | {name: float(f"{value:.4g}") for name, value in zip(RANK_COLUMNS, row.tolist(), strict=True)}
            for rank, row in enumerate(means)
        ]
        path = self._folder / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "steps": self._count, "ranks": ranks}) + "\n")
