"""Fine-tune a pretrained model on labelled texts. ``python megatron_pixel/finetune.py --help`` explains everything."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_pixel.config.errors import exit_on_user_error
from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.finetuning.arguments import parse
from megatron_pixel.finetuning.search_arguments import run_search
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training.arguments import rank_0_first


def main() -> None:
    """Parse, build, train, keep; or do so for all points of a grid."""
    with exit_on_user_error(), rank_0_first():
        if sys.argv[1:2] == ["search"]:
            raise SystemExit(run_search(sys.argv[2:]))
        config = parse(sys.argv[1:])
        silence_libraries()
        # torch, megatron-core and deepspeed take seconds to import: a mistake above is told at once.
        from megatron_pixel.finetuning.run import FinetuningRun
        from megatron_pixel.parallel.mesh import mesh
        from megatron_pixel.training.guards import StopSignals

        with mesh(ParallelConfig()) as here, FinetuningRun(config, here) as run:
            signals = StopSignals()
            try:
                run.train(signals)
            finally:
                signals.restore()


if __name__ == "__main__":
    main()
