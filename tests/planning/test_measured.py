"""Plans against what happens: bytes that a step sends, weights, gradients, optimizer state, saved activations."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.planning.activations import kept
from megatron_pixel.planning.communication import group_size, traffic
from megatron_pixel.planning.memory import gradient_bytes, optimizer_bytes, weight_bytes
from megatron_pixel.planning.pipeline import bubble_ticks, schedule, ticks
from megatron_pixel.planning.setting import Setting
from megatron_pixel.planning.speed import bubble
from tests.distributed.cases import Case
from tests.distributed.harness import run_ranks
from tests.planning.findings import Sent, Watched

pytestmark = pytest.mark.processes

WORDS = ("--evaluation.rows=0", "--training.steps=3")
BF16 = ("--training.precision=bf16",)
ALL = ("--parallel.activation_checkpointing=all",)
SECOND = ("--parallel.activation_checkpointing=2",)
CASES = [
    Case(system, layout, zero, WORDS + words)
    for system, layout, zero, words in [
        ("dualgpt", (1, 1, 1), "zero1", ()),
        ("dualgpt", (1, 1, 1), "zero2", ()),
        ("dualgpt", (1, 1, 1), "zero3", ()),
        ("dualgpt", (1, 1, 1), "zero1", BF16),
        ("dualgpt", (1, 1, 1), "zero1", ALL),
        ("pixelgpt", (1, 1, 1), "zero1", SECOND),
        ("dualgpt", (1, 1, 1), "zero1", ("--data.packing=documents",)),
        ("dualgpt", (1, 1, 2), "zero1", ()),
        ("textgpt", (1, 1, 2), "zero1", ()),
        ("dualgpt", (1, 1, 2), "zero1", BF16),
        ("dualgpt", (1, 1, 2), "zero2", ()),
        ("textgpt", (1, 1, 2), "zero2", BF16),
        ("dualgpt", (1, 1, 2), "zero3", ()),
        ("textgpt", (1, 1, 2), "zero3", ()),
        ("textgpt", (1, 1, 2), "zero3", BF16),
        ("dualgpt", (1, 1, 2), "offload", ()),
        ("dualgpt", (2, 1, 1), "zero1", ()),
        ("dualgpt", (2, 1, 1), "zero1", BF16),
        ("dualgpt", (2, 1, 1), "zero3", ALL),
        ("dualgpt", (1, 2, 1), "zero1", ()),
        ("dualgpt", (1, 2, 1), "zero1", (*BF16, *SECOND)),
        ("dualgpt", (1, 4, 1), "zero1", ("--model.layers=4",)),
        ("textgpt", (1, 4, 1), "zero1", (*BF16, "--model.layers=4", "--training.global_batch_rows=2")),
        ("dualgpt", (2, 2, 1), "zero1", ()),
        ("dualgpt", (2, 2, 1), "zero1", BF16),
        ("monogpt", (1, 2, 2), "zero1", ()),
        ("dualgpt", (2, 1, 2), "zero2", ()),
        ("dualgpt", (2, 1, 2), "zero3", ()),
    ]
]
Found = dict[Case, list[Watched]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """All cases in one start of four processes."""
    by_size: dict[int, list[Case]] = {1: [], 2: [], 4: []}
    for case in CASES:
        by_size[int(np.prod(case.layout))].append(case)
    phases = [[by_size[size][world :: 4 // size] for world in range(4 // size)] for size in by_size]
    stores = sum(len({case.layout for case in world}) for worlds in phases for world in worlds)
    folder = str(tmp_path_factory.mktemp("watched"))
    ranks = run_ranks("tests/planning/watched.py::work", 4, (folder, phases), timeout=55, stores=stores)
    return {case: [found[case] for found in ranks if case in found] for case in CASES}


def setting_of(case: Case) -> Setting:
    return Setting.of(case.config(Path()), int(np.prod(case.layout)), node=8)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_that_a_step_sends(found: Found, case: Case) -> None:
    setting = setting_of(case)
    for watched in found[case]:
        assert tuple(watched.kinds) == setting.kinds
        expected: Sent = Counter()
        for part in traffic(setting, watched.place[1], watched.targets):
            # DeepSpeed sends through the group of all ranks.
            group = "world" if part.operation == "send" else part.group
            expected[part.operation, group_size(setting, group)] += part.bytes
        assert watched.sent + watched.around == expected, watched.place


@pytest.mark.parametrize("case", [case for case in CASES if case.layout[1] > 1], ids=str)
def test_ticks_of_a_pipeline(found: Found, case: Case) -> None:
    """Every pass, send and receive in its tick, and so the bubble: the ticks without a pass."""
    setting = setting_of(case)
    count = len(setting.kinds)
    for watched in found[case]:
        assert watched.instructions == list(schedule(setting.pipeline, count, watched.place[1])), watched.place
        assert watched.ticks == ticks(setting.pipeline, count)
        busy = {tick for tick, kind, _ in watched.instructions if kind in ("forward", "backward")}
        assert watched.ticks - len(busy) == bubble_ticks(setting.pipeline)
        assert bubble_ticks(setting.pipeline) / watched.ticks == pytest.approx(bubble(setting))


def test_no_rank_of_a_pipeline_waits_for_a_header(found: Found) -> None:
    asked = [(case, watched.place) for case in CASES for watched in found[case] if watched.headers_asked_for]
    assert asked == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bytes_of_weights_gradients_and_optimizer(found: Found, case: Case) -> None:
    setting = setting_of(case)
    for watched in found[case]:
        _, pipe, data = watched.place
        expected = weight_bytes(setting, pipe), gradient_bytes(setting, pipe, data), optimizer_bytes(setting, pipe)
        assert (watched.weights, watched.gradients, watched.optimizer) == expected, watched.place


@pytest.mark.parametrize("case", [case for case in CASES if case.zero == "zero1"], ids=str)
def test_activations_are_those_that_autograd_saves(found: Found, case: Case) -> None:
    setting = setting_of(case)
    for watched in found[case]:
        pipe = watched.place[1]
        for kind, targets, saved in zip(watched.kinds, watched.targets, watched.saved, strict=True):
            assert kept(setting, pipe, kind, targets, cuda=False) == pytest.approx(saved, rel=0.1), (kind, pipe)
