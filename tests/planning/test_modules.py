"""The modules that a plan counts are those that DeepSpeed's hooks meet."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

from megatron_pixel.parallel.mesh import Mesh
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.planning.modules import WHOLE, met_in_a_pass
from megatron_pixel.training.run import Run
from tests.distributed.cases import Case


@pytest.mark.parametrize(
    ("system", "words", "layers", "recompute"),
    [
        ("textgpt", ["--model.layers=1"], 1, ()),
        ("dualgpt", ["--model.layers=4", "--parallel.activation_checkpointing=2-3"], 4, (2, 3)),
    ],
)
def test_a_pass_meets_the_modules_that_are_counted(
    system: str,
    words: list[str],
    layers: int,
    recompute: tuple[int, ...],
    one_process: Mesh,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silence_libraries()
    met: list[Any] = []
    passes: list[Counter[str]] = []
    prologue = PartitionedParameterCoordinator.trace_prologue
    reset = PartitionedParameterCoordinator.reset_step

    def meet(self: Any, module: Any) -> None:
        met.append(module)
        prologue(self, module)

    def end_pass(self: Any) -> None:
        names = {module: name or WHOLE for name, module in run._execution.module.named_modules()}
        passes.append(Counter(names[module] for module in met))
        met.clear()
        reset(self)

    monkeypatch.setattr(PartitionedParameterCoordinator, "trace_prologue", meet)
    config = Case(system, zero="zero3", words=(*words, "--evaluation.rows=0", "--training.stop_after=1")).config(
        tmp_path
    )
    with Run(config, one_process) as run:
        monkeypatch.setattr(PartitionedParameterCoordinator, "reset_step", end_pass)
        run.train()
    expected = Counter(met_in_a_pass(layers, recompute))
    of_a_batch = [found for found in passes if found]
    assert len(of_a_batch) > 1
    for found in of_a_batch:
        assert found == expected
