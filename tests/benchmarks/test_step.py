"""The roofline of a layer and the changes of the step: each part runs, and figures follow from what was measured."""

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks import levers, levers_layer, roofline, step_tables, timing
from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.parallel.mesh import Mesh
from tests.alone import alone

MODEL = ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_length=16, patch_size=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_process() -> Iterator[Mesh]:
    with alone() as here:
        yield here


class OneSecond(timing.Timer):
    """Everything that runs takes a second; the two measurements of the machine are not run."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0, CPU, repeats=1)
        self.asked = 0

    def seconds(self, work: Callable[[], object]) -> float:
        self.asked += 1
        if self.asked > 2:
            work()
        return 1.0


def test_every_operation_runs_and_has_its_bound() -> None:
    found = roofline.measure(MODEL, 2, torch.bfloat16, OneSecond())
    rate, bandwidth = 2 * 2048**3 / 1e9, 2 * 4 * 2**26 / 1e9
    assert (found["gflops"], found["gigabytes_per_second"]) == (rate, bandwidth)
    n, h, f = 2 * 16, 32, 48
    up = found["operations"]["gate and up"]
    assert up["gflop"] == pytest.approx(6e-9 * n * h * 2 * f)
    assert up["megabytes"] == pytest.approx(2e-6 * 3 * (n * h + h * 2 * f + n * 2 * f))
    for name, row in found["operations"].items():
        least = 1e3 * max(row["gflop"] / rate, row["megabytes"] / 1e3 / bandwidth)
        assert row["least_ms"] == pytest.approx(least), name
        assert row["reached"] == pytest.approx(least / 1e3), name
    products = [row for name, row in found["operations"].items() if row["gflop"] and name in ("gate and up", "down")]
    whole = found["operations"]["the layer as a whole"]
    assert sum(row["gflop"] for row in products) < whole["gflop"]
    shown = step_tables.roofline({"rows": 2, "threads": 1, "bf16": found})
    assert shown.count("\n") == len(found["operations"]) + 3


def test_every_change_runs_and_those_about_memory_keep_less() -> None:
    of = MODEL, torch.float32, CPU
    parts = [*levers.levers(*of), *levers_layer.between_products(*of), levers.adamw(100, CPU)]
    ticks = iter(range(1000))
    timer = timing.Timer(lambda: float(next(ticks)), CPU, repeats=1)
    found = levers.measure(parts, timer)
    assert [row["ratio"] for row in found.values()] == [1.0] * len(parts)
    for name, row in found.items():
        if "SwiGLU" in name or "norm:" in name:
            assert row["after_megabytes"] < row["before_megabytes"]
    assert step_tables.levers({"fp32": found}).count("\n") == len(parts) + 1
