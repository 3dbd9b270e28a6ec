"""The same model on one process and in every other layout: losses, gradient norm and weights after five steps."""

import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.distributed.cases import Case, Layout, Share
from tests.distributed.harness import run_ranks

SYSTEMS = ("textgpt", "pixelgpt", "monogpt", "dualgpt")
ZERO: dict[Layout, tuple[str, ...]] = {
    (1, 1, 1): ("zero1", "zero2", "zero3"),
    (2, 1, 1): ("zero1", "zero2", "zero3"),
    (1, 2, 1): ("zero1",),
    (1, 1, 2): ("zero1", "zero2", "zero3"),
    (2, 2, 1): ("zero1",),
    (2, 1, 2): ("zero1", "zero2", "zero3"),
    (1, 2, 2): ("zero1",),
}
"""Valid ZeRO stages by layout."""
FP32 = [Case(system, layout, zero) for layout, stages in ZERO.items() for zero in stages for system in SYSTEMS]

MICRO_2 = ("--training.micro_batch_rows=2",)
ALL = ("--parallel.activation_checkpointing=all",)
SECOND = ("--parallel.activation_checkpointing=2-3",)
MORE = [
    # An optimizer on the host.
    Case("dualgpt", (1, 1, 2), "offload"),
    Case("dualgpt", (2, 1, 2), "offload"),
    # Activations computed again.
    Case("dualgpt", (1, 1, 1), words=ALL),
    Case("dualgpt", (1, 1, 2), "zero3", words=ALL),
    Case("dualgpt", (2, 2, 1), words=ALL),
    Case("dualgpt", (1, 2, 2), words=SECOND),
    # Other micro-batches and other padding.
    Case("dualgpt", (1, 1, 1), words=MICRO_2),
    Case("dualgpt", (1, 2, 1), words=MICRO_2),
    Case("dualgpt", (1, 1, 1), padding=5),
    Case("dualgpt", (1, 1, 2), "zero2", padding=5),
    Case("dualgpt", (2, 2, 1), padding=3),
]
"""Compared with the same run as the cases above."""
RELEASED = ("--pair.layout=released",)
INNER = [Case("dualgpt", layout, words=RELEASED) for layout in [(1, 1, 1), (2, 1, 1), (1, 2, 2)]]
"""Padding inside the rows, which needs an attention mask; the first is what the others are compared with."""
CASES = [*FP32, *MORE, *INNER]

Result = dict[Case, list[Share]]
STEPS = 5
KEYS = ("loss", "loss_token_text", "loss_token_pair", "loss_patch_pixel", "loss_patch_pair", "grad_norm")
EXACT = ("tokens", "patches", "lr", "skipped_steps")


def free_ports(count: int) -> list[int]:
    """Numbers of ports that are free together with the few that follow them."""
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        if all(abs(port - other) > 8 for other in ports):
            ports.append(port)
    return ports


def start(folder: Path, cases: Sequence[Case]) -> Result:
    """All cases in one start of four processes."""
    by_size: dict[int, list[Case]] = {1: [], 2: [], 4: []}
    for case in cases:
        by_size[int(np.prod(case.layout))].append(case)
    phases = [[by_size[size][world :: 4 // size] for world in range(4 // size)] for size in by_size]
    ranks = run_ranks("tests/distributed/layouts.py::work", 4, (str(folder), phases, free_ports(7)), timeout=400)
    return {case: [found[case] for found in ranks if case in found] for case in cases}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return start(tmp_path_factory.mktemp("layouts"), CASES)


def truth_of(case: Case) -> Case:
    """The run on one process that a case is compared with."""
    return INNER[0] if case in INNER else Case(case.system)


def whole(shares: Sequence[Share]) -> dict[str, np.ndarray]:
    """The full weights; what several ranks hold must be the same on all of them."""
    split = {name: how for share in shares for name, how in share.split.items()}
    by_name: dict[str, dict[int, np.ndarray]] = {}
    for share in shares:
        for name, weight in share.weights.items():
            ranks = by_name.setdefault(name, {})
            known = ranks.setdefault(share.place[0] if name in split else 0, weight)
            np.testing.assert_array_equal(known, weight, err_msg=f"{name} differs between ranks")
    full = {}
    for name, ranks in by_name.items():
        shards = [ranks[rank] for rank in sorted(ranks)]
        dimension, stride = split.get(name, (0, 1))
        pieces = [np.split(shard, stride, axis=dimension) for shard in shards]
        full[name] = np.concatenate([rank[i] for i in range(stride) for rank in pieces], axis=dimension)
    return full


def deviations(found: Result, case: Case) -> tuple[float, float, float]:
    """Largest relative difference from one process: of losses and gradient norms, of the evaluation, of weights."""
    truth, mine = found[truth_of(case)], found[case]
    expected, lines = (next(share.lines for share in shares if share.lines) for shares in (truth, mine))
    assert [line["step"] for line in lines] == [*range(1, STEPS + 1), STEPS]
    of_steps, of_evaluation = 0.0, 0.0
    for line, other in zip(lines[:-1], expected[:-1], strict=True):
        assert {key: line[key] for key in EXACT} == {key: other[key] for key in EXACT}
        of_steps = max(of_steps, *(relative(line[key], other[key]) for key in KEYS))
    for key in KEYS[:-1]:
        of_evaluation = max(of_evaluation, relative(lines[-1][f"eval_{key}"], expected[-1][f"eval_{key}"]))
    weights, others = whole(mine), whole(truth)
    assert weights.keys() == others.keys()
    # Biases that no row has touched are still zero.
    of_weights = max(float(np.linalg.norm(weights[n] - o) / (np.linalg.norm(o) or 1)) for n, o in others.items())
    return of_steps, of_evaluation, of_weights


def relative(value: float | None, other: float | None) -> float:
    assert (value is None) == (other is None)
    return 0.0 if value is None or other is None else abs(value - other) / abs(other)


def test_every_layout_is_one_process(found: Result, capsys: pytest.CaptureFixture[str]) -> None:
    table = {case: deviations(found, case) for case in CASES if case != truth_of(case)}
    with capsys.disabled():
        print(f"\n{'largest relative deviation from one process':60} {'steps':>8} {'held-out':>8} {'weights':>8}")
        for case, values in table.items():
            print(f"{case!s:60} " + " ".join(f"{value:8.1e}" for value in values))
    for case, values in table.items():
        assert max(values) < 1e-5, str(case)


def test_the_runs_move(found: Result) -> None:
    """Runs that do nothing would all be alike."""
    for system in SYSTEMS:
        lines = found[Case(system)][0].lines
        assert (lines[4]["loss"] or 0) < (lines[0]["loss"] or 0) - 0.1
        assert all((line["grad_norm"] or 0) > 1 for line in lines[:5]), "the limit of 1 must be what clips here"
