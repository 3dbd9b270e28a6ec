"""All guards of a run on one rank, built from its settings, and what they say of a step."""

import os
import socket
from pathlib import Path

import torch.distributed as dist

from megatron_pixel.config.schema import GuardsConfig
from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.training.guards import LossGuard, SpikeError, SpikeGuard, Verdict
from megatron_pixel.training.slow_ranks import SlowRanks
from megatron_pixel.training.watchdog import Watchdog


class Guards:
    """Watches one rank's steps from construction to :meth:`close`; construction is collective.

    Args:
        config: the guards of the run.
        folder: of the run.
        mesh: where this process stands.

    Attributes:
        watchdog: gets a sign of life from whatever takes time.
        slow_ranks: gets the times of all ranks.
        spikes: knows where a spike began.
    """

    def __init__(self, config: GuardsConfig, folder: Path, mesh: Mesh) -> None:
        self._config = config
        self._losses = LossGuard(config.max_skipped)
        self.spikes = SpikeGuard(config)
        places = [("", 0)] * mesh.world_size
        dist.all_gather_object(places, (socket.gethostname(), os.getpid()))
        hosts = [host for host, _ in places]
        self.slow_ranks = SlowRanks(config, mesh, hosts, folder if mesh.is_main else None)
        self.watchdog = Watchdog(folder / "logs", config.hang_seconds, mesh.rank, places)

    def judge(self, step: int, loss: float | None, finite: bool, skipped: bool, rows: str) -> Verdict:
        """What is to be done after a step; the same on all ranks, as all know the same of it.

        Args:
            step: its number.
            loss: over all ranks.
            finite: whether that is a number.
            skipped: whether DeepSpeed left the weights as they were.
            rows: the rows behind a loss that is no number.
        """
        verdict = self._losses.check(step, finite, skipped, rows)
        if verdict.error is not None or skipped or not self.spikes.check(step, loss):
            return verdict
        begin = self.spikes.begin
        if self._config.spike == "rewind":
            return Verdict(warning=f"step {step}: the loss is {loss:.4g}, a spike since step {begin}", rewind=True)
        return Verdict(
            error=SpikeError(
                f"step {step}: the loss is {loss:.4g}, a spike since step {begin}. Resume from a checkpoint before it, "
                "with guards.skip_steps for the steps since, a lower optimizer.lr, or guards.spike rewind"
            )
        )

    def close(self) -> None:
        """End the watch."""
        self.watchdog.close()
