"""A checkpoint of any layout goes on in any other. One process is the truth: its tensors, its losses of later steps."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_pixel.config.schema import ParallelConfig
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.parallel.partitions import Partitions
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training import run as run_module
from megatron_pixel.training.canonical import TENSORS, open_source
from megatron_pixel.training.heldout import evaluate_run
from megatron_pixel.training.resharding import reshard
from megatron_pixel.training.run import Run
from tests.distributed.deviations import note
from tests.distributed.harness import run_ranks, use_store
from tests.distributed.tiny_run import tiny

WORDS = """
    --model.layers=2 --training.steps=6 --training.micro_batch_rows=2 --evaluation.rows=0
    --optimizer.eps=1e-4 --optimizer.clip_grad=0.1 --optimizer.weight_decay=0.1
    --checkpoint.every=3 --checkpoint.keep=0
""".split()
# Adam moves a weight by about its learning rate, whichever way the rounding of a gradient near zero falls; eps keeps
# such weights where they are.


@dataclasses.dataclass(frozen=True)
class Spread:
    """A layout of the grid."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    zero: str = "zero1"
    precision: str = "fp32"

    @property
    def processes(self) -> int:
        return self.tensor * self.pipeline * self.data

    def words(self) -> list[str]:
        return [
            f"--parallel.tensor={self.tensor}",
            f"--parallel.pipeline={self.pipeline}",
            f"--deepspeed_config=ds_configs/{self.zero}.json",
            f"--training.precision={self.precision}",
            "--checkpoint.allow_changes=training.precision",
        ]

    def __str__(self) -> str:
        precision = "" if self.precision == "fp32" else f"-{self.precision}"
        return f"tp{self.tensor}-pp{self.pipeline}-dp{self.data}-{self.zero}{precision}"


ONE = Spread()
BF16 = Spread(precision="bf16")
LAYOUTS = [
    Spread(tensor=2),
    Spread(pipeline=2),
    Spread(tensor=2, pipeline=2),
    Spread(data=2),
    Spread(data=2, zero="zero2"),
    Spread(data=2, zero="zero3"),
    Spread(data=2, zero="offload"),
    Spread(tensor=2, data=2, zero="zero3"),
]
BF16_LAYOUTS = [
    Spread(data=2, precision="bf16"),
    Spread(data=2, zero="zero2", precision="bf16"),
    Spread(data=2, zero="zero3", precision="bf16"),
    Spread(tensor=2, precision="bf16"),
]
EXACT = [
    Spread(pipeline=2),
    Spread(tensor=2, pipeline=2),
    Spread(data=2, zero="offload"),
    Spread(tensor=2, data=2, zero="zero3"),
]
"""Layouts that also go on from their own checkpoints, bit for bit."""
PAIRS = [
    (Spread(tensor=2, pipeline=2), Spread(data=2, zero="zero3")),
    (Spread(data=2, zero="zero3"), Spread(tensor=2)),
    (Spread(tensor=2), Spread(pipeline=2)),
    (Spread(tensor=2, data=2, zero="zero3"), Spread(data=2, zero="zero2")),
]
"""From, to: without the canonical form between them."""


def checkpoint(root: Path, spread: Spread, step: int) -> Path:
    return root / str(spread) / "checkpoints" / f"step-{step:08d}"


def write(root: Path, spread: Spread, here: Mesh, last: int) -> list[float]:
    """Checkpoints before the first step and after the third; the losses of the steps up to ``last``."""
    losses: list[float] = []
    with losses_to(losses), Run(tiny(root / str(spread), *WORDS, *spread.words()), here) as run:
        run._saver.save(0, {})
        run._last = last
        run.train()
    return losses


def read(root: Path, name: str, source: Path, spread: Spread, here: Mesh) -> dict[str, Any]:
    """Load ``source`` into a model of another seed, write it again at once, and take the three steps that follow."""
    folder = root / name
    differences: list[float] = []
    losses: list[float] = []
    config = tiny(folder, *WORDS, *spread.words(), f"--checkpoint.resume={source}")
    with other_seed(differences), losses_to(losses), Run(config, here) as run:
        run._saver.save(3, run._reader.consumed(3))
        if here.is_main:
            (folder / "checkpoints" / "step-00000003").rename(folder / "again")
        run.train()
        origin = run._resumed.origin if run._resumed else None
    return {"before": differences, "losses": losses, "origin": origin}


class losses_to:  # noqa: N801 (reads as the function that it would be)
    """Collects the loss of each step."""

    def __init__(self, losses: list[float]) -> None:
        self.losses, self.original = losses, Run._record

    def __enter__(self) -> None:
        def record(run: Run, record: Any, last: bool) -> None:
            self.losses.append(record["loss"])
            self.original(run, record, last)

        Run._record = record  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        Run._record = self.original  # type: ignore[method-assign]


class other_seed:  # noqa: N801
    """The model is drawn with another seed, and how far it is from the checkpoint's is measured before loading."""

    def __init__(self, differences: list[float]) -> None:
        self.differences = differences
        self.specs: Callable[..., Any] = run_module.stage_specs
        self.restore: Callable[..., Any] = run_module.checkpoint.restore

    def __enter__(self) -> None:
        def specs(model: Any, objectives: Any, seed: int, *rest: Any, **more: Any) -> Any:
            return self.specs(model, objectives, seed + 1, *rest, **more)

        def restore(engine: Any, found: Any, *rest: Any) -> Any:
            source, partitions = open_source(found.folder), Partitions(engine)
            for name, held in partitions.held.items():
                if held.piece is not None and "norm" not in name and "bias" not in name:
                    share = held.split.take(source.read(name, "fp32"), partitions.tensor_size, partitions.tensor_rank)
                    start, offset, count = held.piece.start, held.piece.offset, held.piece.count
                    mine = partitions.buffers[held.piece.buffer].detach()[offset : offset + count]
                    self.differences.append(float((mine - share.flatten()[start : start + count]).abs().max()))
            return self.restore(engine, found, *rest)

        run_module.stage_specs = specs  # type: ignore[assignment]
        run_module.checkpoint.restore = restore  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        run_module.stage_specs = self.specs  # type: ignore[assignment]
        run_module.checkpoint.restore = self.restore  # type: ignore[assignment]


def truth(folder: str) -> dict[str, Any]:
    """One process, undisturbed, in fp32 and bf16."""
    silence_libraries()
    root = Path(folder)
    with mesh(tiny(folder).parallel) as here:
        return {str(spread): write(root, spread, here, 6) for spread in (ONE, BF16)}


def grid(folder: str, groups: list[tuple[int, int]], processes: int) -> dict[str, Any]:
    """Every layout of so many processes writes and reads; one process group for layouts of equal cuts."""
    silence_libraries()
    root = Path(folder)
    result: dict[str, Any] = {}
    for number, (tensor, pipeline) in enumerate(groups):
        use_store(number)

        def here_only(spread: Spread, cut: tuple[int, int] = (tensor, pipeline)) -> bool:
            return spread.processes == processes and (spread.tensor, spread.pipeline) == cut

        with mesh(ParallelConfig(tensor=tensor, pipeline=pipeline)) as here:
            for spread in filter(here_only, [*LAYOUTS, *BF16_LAYOUTS]):
                if spread in LAYOUTS:
                    losses = write(root, spread, here, 6 if spread in EXACT else 3)
                if spread in EXACT:
                    own = read(root, f"own-{spread}", checkpoint(root, spread, 3), spread, here)
                    result[f"own-{spread}"] = {**own, "undisturbed": losses}
                canonical = root / f"canonical-{spread.precision}" / "step-00000003"
                result[f"read-{spread}"] = read(root, f"read-{spread}", canonical, spread, here)
            for start, goal in PAIRS:
                if here_only(goal):
                    name = f"from-{start}-to-{goal}"
                    result[name] = read(root, name, checkpoint(root, start, 3), goal, here)
    return result


@dataclasses.dataclass
class Found:
    root: Path
    truth: dict[str, list[float]]
    """Losses of six steps by layout."""
    read: dict[str, list[dict[str, Any]]]
    """By name, what each rank found."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("resharding")
    losses = run_ranks(truth, 1, (str(root),), timeout=120)[0]
    for spread in (ONE, BF16):
        reshard(checkpoint(root, spread, 3), root / f"canonical-{spread.precision}")
    reads: dict[str, list[dict[str, Any]]] = {}
    # In this order: the later ones read what the earlier ones have written.
    for processes, groups in ((4, [(2, 2), (2, 1)]), (2, [(1, 1), (2, 1), (1, 2)])):
        work = str(root), groups, processes
        ranks = run_ranks(grid, processes, work, timeout=240, stores=len(groups))
        reads |= {name: [rank[name] for rank in ranks] for name in ranks[0]}
    return Found(root, losses, reads)


@dataclasses.dataclass(frozen=True)
class Deviation:
    """Of one checkpoint's weights, or moments of one kind, from another's."""

    largest: float
    """Of any value."""
    relative: float
    """Likewise, as a share of the largest value of its tensor."""
    name: str
    """The tensor of ``relative``."""


def deviations(one: Path, other: Path) -> dict[str, Deviation]:
    a, b = open_source(one), open_source(other)
    assert list(a.shapes.items()) == list(b.shapes.items())
    assert a.steps == b.steps
    worst = {}
    for what in TENSORS:
        largest, relative = 0.0, (0.0, "")
        for name in a.shapes:
            expected, value = a.read(name, what), b.read(name, what)
            difference = float((expected - value).abs().max())
            largest = max(largest, difference)
            relative = max(relative, (difference / (float(expected.abs().max()) or 1.0), name))
        worst[what] = Deviation(largest, *relative)
    return worst


def check_equal(one: Path, other: Path) -> None:
    assert all(found.largest == 0 for found in deviations(one, other).values()), deviations(one, other)


@pytest.mark.parametrize("spread", LAYOUTS, ids=str)
def test_written_tensors_are_those_of_one_process(found: Found, spread: Spread) -> None:
    check_equal(checkpoint(found.root, ONE, 0), checkpoint(found.root, spread, 0))
    after = deviations(checkpoint(found.root, ONE, 3), checkpoint(found.root, spread, 3))
    shown = (f"{what} {d.largest:.1e}, {d.relative:.1e} of {d.name}" for what, d in after.items())
    note(f"{spread} after 3 steps: " + "; ".join(shown))
    for what, deviation in after.items():
        assert deviation.largest < 1e-6, what
        # A bias that starts at zero has moved by 3e-3 at the most; squared gradients are small all over.
        assert deviation.relative < 2e-4, (what, deviation.name)


def test_the_steps_between_have_changed_everything(found: Found) -> None:
    """Else the comparison above would prove nothing."""
    a, b = (open_source(checkpoint(found.root, ONE, step)) for step in (0, 3))
    for name in a.shapes:
        for what in TENSORS:
            assert (a.read(name, what) != b.read(name, what)).any(), (name, what)


def check_read(found: Found, name: str, source: Path, truth: list[float], bound: float) -> None:
    check_equal(source, found.root / name / "again")
    for result in found.read[name]:
        assert result["origin"] is not None, "not through the canonical form"
        assert min(result["before"]) > 1e-2, "the model was the same before it was loaded"
        worst = max(abs(a / b - 1) for a, b in zip(result["losses"], truth[3:], strict=True))
        assert worst < bound, (result["losses"], truth)
    note(f"{name}: losses of steps 4 to 6 {worst:.1e}")


@pytest.mark.parametrize("spread", EXACT, ids=str)
def test_the_same_layout_goes_on_bit_for_bit(found: Found, spread: Spread) -> None:
    check_equal(checkpoint(found.root, spread, 3), found.root / f"own-{spread}" / "again")
    check_equal(checkpoint(found.root, spread, 6), found.root / f"own-{spread}" / "checkpoints" / "step-00000006")
    for result in found.read[f"own-{spread}"]:
        assert result["origin"] is None, "not by each rank's own files"
        assert min(result["before"]) > 1e-2
        assert result["losses"] == result["undisturbed"][3:]


@pytest.mark.parametrize("spread", LAYOUTS, ids=str)
def test_the_canonical_form_goes_on_in_every_layout(found: Found, spread: Spread) -> None:
    source = found.root / "canonical-fp32" / "step-00000003"
    check_read(found, f"read-{spread}", source, found.truth[str(ONE)], 1e-5)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0]}-to-{pair[1]}")
def test_a_layout_goes_on_in_another(found: Found, pair: tuple[Spread, Spread]) -> None:
    start, goal = pair
    check_read(found, f"from-{start}-to-{goal}", checkpoint(found.root, start, 3), found.truth[str(ONE)], 1e-5)


@pytest.mark.parametrize("spread", BF16_LAYOUTS, ids=str)
def test_bf16_weights_come_from_the_fp32_ones(found: Found, spread: Spread) -> None:
    source = found.root / "canonical-bf16" / "step-00000003"
    check_read(found, f"read-{spread}", source, found.truth[str(BF16)], 1e-3)


def test_evaluation_reads_any_layout(found: Found) -> None:
    one = evaluate_run(found.root / str(ONE), checkpoint(found.root, ONE, 3), rows=2)[0].losses
    canonical = found.root / "canonical-fp32" / "step-00000003"
    assert evaluate_run(found.root / str(ONE), canonical, rows=2)[0].losses == one
    for spread in (Spread(tensor=2, pipeline=2), Spread(tensor=2, data=2, zero="zero3")):
        losses = evaluate_run(found.root / str(spread), checkpoint(found.root, spread, 3), rows=2)[0].losses
        assert losses == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("zero", ["zero1", "zero3"])
def test_deepspeeds_converter_finds_the_same_tensors(found: Found, zero: str, tmp_path: Path) -> None:
    """An opinion from outside, where its converter works."""
    source = checkpoint(found.root, Spread(data=2, zero=zero), 3)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(source), "--output_folder", str(tmp_path / "universal")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    folder = reshard(source, tmp_path / "canonical")
    names = {path.name for path in (tmp_path / "universal" / "zero").iterdir() if path.is_dir()}
    assert names == set(open_source(folder).shapes)
    for name in names:
        for what in TENSORS:
            mine = torch.load(folder / "zero" / name / f"{what}.pt")["param"]
            theirs = torch.load(tmp_path / "universal" / "zero" / name / f"{what}.pt", weights_only=False)
            theirs = theirs if zero == "zero3" else theirs["param"]  # flat, without more
            assert torch.equal(mine.flatten(), theirs.flatten()), (name, what)
