"""Whole runs on several GPUs; what can be tested without them is in the other files."""

from pathlib import Path

import pytest
import torch

from tests.distributed.cases import Case
from tests.distributed.test_parity import STEPS, relative, start, steps_of

pytestmark = [
    pytest.mark.multigpu,
    pytest.mark.skipif(torch.cuda.device_count() < 4, reason="no four CUDA devices"),
]
BY_POSITION = ("--parallel.experimental=sequence_parallel",)
RECOMPUTED = (*BY_POSITION, "--parallel.activation_checkpointing=all")
CASES = [
    Case("dualgpt", (2, 1, 1)),
    Case("dualgpt", (2, 1, 1), words=BY_POSITION),
    Case("dualgpt", (2, 1, 1), "zero3", BY_POSITION),
    Case("dualgpt", (2, 2, 1), words=BY_POSITION),
    Case("dualgpt", (2, 1, 2), words=RECOMPUTED),
]


def test_sequence_parallelism_is_tensor_parallelism_alone(tmp_path: Path) -> None:
    found = start(tmp_path, CASES)
    truth = steps_of(found, CASES[0])
    assert len(truth) == STEPS
    for case in CASES[1:]:
        for line, other in zip(steps_of(found, case), truth, strict=True):
            for key in ("loss", "grad_norm"):
                assert relative(line[key], other[key]) < 1e-5, (str(case), line["step"], key)
