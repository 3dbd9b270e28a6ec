"""The same model on one process and in every other layout: losses, gradient norm and weights after five steps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_pixel.training.pages import list_pages, load_pages
from tests.distributed.cases import Case, Layout, Line, Share
from tests.distributed.deviations import note
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
COMPILED = ("--training.compile=layers",)
MORE = [
    # An optimizer on the host.
    Case("dualgpt", (1, 1, 2), "offload"),
    Case("dualgpt", (2, 1, 2), "offload"),
    # Activations computed again.
    Case("dualgpt", (1, 1, 1), words=ALL),
    Case("dualgpt", (1, 1, 2), "zero3", words=ALL),
    Case("dualgpt", (2, 2, 1), words=ALL),
    Case("dualgpt", (1, 2, 2), words=SECOND),
    # Compiled layers.
    Case("dualgpt", (1, 1, 2), "zero2", words=(*COMPILED, *SECOND)),
    Case("dualgpt", (1, 2, 1), words=COMPILED),
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
PACKING = ("--data.packing=documents",)
PACKED = [Case("dualgpt", layout, words=PACKING) for layout in [(1, 1, 1), (2, 1, 1), (1, 2, 2)]]
"""Rows of several documents that do not see each other; the first is what the others are compared with."""
LOOKING = ("--logging.pages=2", "--logging.attention=3")
PICTURED = [Case("dualgpt", layout, words=LOOKING) for layout in [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 1)]]
"""Held-out pages with predictions and attention; the first is what the others are compared with."""
BF16 = ("--training.precision=bf16",)
SAME_OPERATIONS = [
    Case("dualgpt", (1, 2, 1), "zero1", BF16),
    Case("dualgpt", (1, 1, 2), "zero1", BF16),
    Case("dualgpt", (1, 1, 2), "zero2", BF16),
    Case("dualgpt", (1, 2, 2), "zero1", BF16),
    Case("dualgpt", (1, 1, 2), "offload", BF16),
]
"""In bf16: each row meets the same operations as on one process, and gradients add up in fp32."""
OTHER_OPERATIONS = [
    Case("dualgpt", (2, 1, 1), "zero1", BF16),
    Case("dualgpt", (2, 1, 1), "zero3", BF16),
    Case("dualgpt", (2, 2, 1), "zero1", BF16),
    Case("dualgpt", (1, 1, 2), "zero3", BF16),
]
"""In bf16: partial sums are rounded before they are added; ZeRO 3 has a linear layer of its own."""
CASES = [*FP32, *MORE, *INNER, *PACKED, *PICTURED, Case("dualgpt", words=BF16), *SAME_OPERATIONS, *OTHER_OPERATIONS]

Result = dict[Case, list[Share]]
STEPS = 5
KEYS = ("loss", "loss_token_text", "loss_token_pair", "loss_patch_pixel", "loss_patch_pair", "grad_norm")
OBJECTS = ("loss_by_source", "grad_norm_by_stage")
EXACT = ("tokens", "patches", "lr", "skipped_steps")


def start(folder: Path, cases: Sequence[Case]) -> Result:
    """All cases in one start of four processes."""
    by_size: dict[int, list[Case]] = {1: [], 2: [], 4: []}
    for case in cases:
        by_size[int(np.prod(case.layout))].append(case)
    phases = [[by_size[size][world :: 4 // size] for world in range(4 // size)] for size in by_size]
    stores = sum(len({case.layout for case in world}) for worlds in phases for world in worlds)
    ranks = run_ranks("tests/distributed/layouts.py::work", 4, (str(folder), phases), timeout=55, stores=stores)
    return {case: [found[case] for found in ranks if case in found] for case in cases}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def found(folder: Path) -> Result:
    return start(folder, CASES)


def truth_of(case: Case) -> Case:
    """The run on one process that a case is compared with."""
    return next((cases[0] for cases in (INNER, PACKED) if case in cases), Case(case.system))


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
        for key in OBJECTS:
            mine_by, other_by = by_name(line, key), by_name(other, key)
            assert mine_by.keys() == other_by.keys()
            of_steps = max(of_steps, *(relative(value, other_by[name]) for name, value in mine_by.items()))
    for key in KEYS[:-1]:
        of_evaluation = max(of_evaluation, relative(lines[-1][f"eval_{key}"], expected[-1][f"eval_{key}"]))
    weights, others = whole(mine), whole(truth)
    assert weights.keys() == others.keys()
    # Biases that no row has touched are still zero.
    of_weights = max(float(np.linalg.norm(weights[n] - o) / (np.linalg.norm(o) or 1)) for n, o in others.items())
    return of_steps, of_evaluation, of_weights


def by_name(line: Line, key: str) -> dict[str, float | None]:
    """An object of a line: those of stages that rows of this system leave alone are zero, and left out."""
    found: Any = line[key]
    return {name: value for name, value in found.items() if value}


def relative(value: float | None, other: float | None) -> float:
    assert (value is None) == (other is None)
    return 0.0 if value is None or other is None else abs(value - other) / abs(other)


def show(columns: Sequence[str], table: dict[Case, tuple[float, ...]]) -> None:
    note(f"{'relative, of':60} " + " ".join(f"{name:>9}" for name in columns))
    for case, values in table.items():
        note(f"{case!s:60} " + " ".join(f"{value:9.1e}" for value in values))


def test_every_layout_is_one_process(found: Result) -> None:
    cases = [case for case in [*FP32, *MORE, *INNER, *PACKED] if case != truth_of(case)]
    table: dict[Case, tuple[float, ...]] = {case: deviations(found, case) for case in cases}
    show(["steps", "held-out", "weights"], table)
    for case, values in table.items():
        assert max(values) < 1e-5, str(case)


def steps_of(found: Result, case: Case) -> list[Line]:
    return next(share.lines for share in found[case] if share.lines)[:STEPS]


def bound(roundings: int, line: Line) -> float:
    """How far the loss or the gradient norm of a step may move by ``roundings`` to bf16 on the way of each target.

    A rounding is an error of at most ``u = 2^-8``. Errors of different operations are independent, so the relative
    error of a prediction is ``sqrt(roundings) * u``, and that of its loss at most twice as much (the loss is quadratic
    in a patch, and the slope of the cross entropy is at most 2). Errors of different targets are independent too, and
    loss and gradient are means over ``n`` of them.
    """
    targets = min(line["tokens"] or 0, line["patches"] or 0)
    return 2 * math.sqrt(roundings) * 2**-8 / math.sqrt(targets)


LAYERS = 3
AGAINST_FP32 = 2 * (10 * LAYERS + 4)
"""Norm, qkv, rotation, attention, projection, sum, norm, gate and up, product, down, sum; norms, embedding and head.
Twice: forward and backward."""
AGAINST_BF16 = 2 * 2 * LAYERS * 2
"""Two row-parallel layers, each with two partial sums."""


def bf16_deviations(found: Result, case: Case, truth: Case) -> tuple[float, float, float]:
    """Largest relative difference of losses, of gradient norms, and of either as a share of its bound."""
    roundings = AGAINST_BF16 if truth.words else AGAINST_FP32
    of_losses = of_norms = of_bound = 0.0
    for mine, other in zip(steps_of(found, case), steps_of(found, truth), strict=True):
        loss, norm = (relative(mine[key], other[key]) for key in ("loss", "grad_norm"))
        of_losses, of_norms = max(of_losses, loss), max(of_norms, norm)
        of_bound = max(of_bound, loss / bound(roundings, other), norm / bound(roundings, other))
    return of_losses, of_norms, of_bound


def test_bf16_stays_within_its_roundings(found: Result) -> None:
    truth = Case("dualgpt", words=BF16)
    table: dict[Case, tuple[float, ...]] = {truth: bf16_deviations(found, truth, Case("dualgpt"))}
    table |= {case: bf16_deviations(found, case, truth) for case in [*SAME_OPERATIONS, *OTHER_OPERATIONS]}
    show(["losses", "norms", "of bound"], table)
    assert table[truth][0] > 1e-6, "bf16 must not run in fp32"
    for case, values in table.items():
        assert values[2] < 1, str(case)


@pytest.mark.parametrize("case", SAME_OPERATIONS, ids=str)
def test_bf16_begins_as_on_one_process_where_operations_are_the_same(found: Result, case: Case) -> None:
    """Later steps start from weights whose last bits differ, and some of those bits change a rounding."""
    first, other = steps_of(found, case)[0], steps_of(found, Case("dualgpt", words=BF16))[0]
    for key in KEYS:
        assert relative(first[key], other[key]) < 1e-6, key


@pytest.mark.parametrize("case", PICTURED, ids=str)
def test_pages_and_attention_are_those_of_one_process(found: Result, folder: Path, case: Case) -> None:
    pages, others = (load_pages(list_pages(Path(of.config(folder).run.dir))[-1][1]) for of in (case, PICTURED[0]))
    assert len(pages) == len(others) == 2
    for page, other in zip(pages, others, strict=True):
        assert page.origin == other.origin
        assert page.attention is not None
        assert other.attention is not None
        np.testing.assert_array_equal(page.patches, other.patches)
        np.testing.assert_allclose(page.predictions.astype(int), other.predictions.astype(int), atol=1)
        np.testing.assert_allclose(page.errors, other.errors, rtol=1e-4)
        np.testing.assert_allclose(page.attention, other.attention, atol=1e-3)


def test_only_a_pipeline_waits_between_its_ranks(found: Result) -> None:
    for case in [*FP32, *PICTURED]:
        for line in steps_of(found, case):
            assert ((line["pipeline_seconds"] or 0) > 0) == (case.layout[1] > 1), str(case)
            parts = (line[f"{part}_seconds"] or 0 for part in ("data", "forward", "backward", "optimizer", "pipeline"))
            assert 0 < sum(parts) <= (line["seconds"] or 0)


def test_the_runs_move(found: Result) -> None:
    """Runs that do nothing would all be alike. Three systems meet the limit of the gradient norm, one stays below."""
    for system in SYSTEMS:
        lines = steps_of(found, Case(system))
        assert (lines[-1]["loss"] or 0) < 0.97 * (lines[0]["loss"] or 0)
        clipped = [(line["grad_norm"] or 0) > 1 for line in lines]
        assert not any(clipped) if system == "pixelgpt" else all(clipped)
