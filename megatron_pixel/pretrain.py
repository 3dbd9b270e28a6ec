"""Pretrain TextGPT, PixelGPT, MonoGPT or DualGPT. ``python megatron_pixel/pretrain.py --help`` explains everything."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.parallel.environment import set_environment
from megatron_pixel.parallel.launch import read_launch
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training.arguments import parse, rank_0_first
from megatron_pixel.training.exit_codes import exit_code
from megatron_pixel.training.guards import StopSignals
from megatron_pixel.training.restarts import resume_own


def main() -> None:
    """Parse, build, train, close."""
    with exit_on_user_error(), rank_0_first():
        if "--dry-run" in sys.argv:
            from megatron_pixel.planning.command import dry_run

            dry_run(sys.argv[1:])
            return
        config = parse(sys.argv[1:])
        resume_own(config, os.environ)
        # A batch system may send its signal while the libraries below are imported.
        signals = StopSignals((signal.SIGTERM, signal.SIGUSR1))
        silence_libraries()
        set_environment(read_launch(os.environ))
        # torch, megatron-core and deepspeed take seconds to import: a mistake above is told at once.
        from megatron_pixel.parallel.device_memory import least_device
        from megatron_pixel.parallel.mesh import mesh
        from megatron_pixel.planning.choice import choose_here
        from megatron_pixel.training.run import Run

        with mesh(config.parallel) as here:
            config, why = choose_here(config, here.world_size, here.launch.here, least_device(here))
            with Run(config, here, signals, why) as run:
                stopped_by = run.train()
        sys.exit(exit_code(stopped_by))


if __name__ == "__main__":
    main()
