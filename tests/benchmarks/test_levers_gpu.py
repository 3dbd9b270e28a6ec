"""What is measured on a GPU, tried on a CPU: each part runs or says why not, and none costs another."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import levers_gpu, training_tables
from benchmarks import levers_gpu_parts as parts
from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import ModelConfig
from megatron_pixel.model import compiling, token_loss
from tests.alone import RANKS, alone

CPU = torch.device("cpu")
MODEL = ModelConfig(layers=1, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_length=16, patch_size=4)
SETUP = parts.Setup(MODEL, 2, torch.bfloat16, CPU, 100)
MEASURED = ("optimizer", "attention", "head", "patches", "compiled")
LEFT_OUT = ("graph", "fp8", "transformer_engine")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a terminal, on a CPU; layers are traced, which shows what is to be shown, and not written as code."""
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    monkeypatch.setattr(levers_gpu, "TINY", MODEL)


def main(json_file: Path, *words: str) -> dict[str, Any]:
    options = ["--device", "cpu", "--size", "tiny", "--rows", "1", "--parameters", "100", "--repeats", "1"]
    levers_gpu.main([*options, "--json", str(json_file), *words])
    found: dict[str, Any] = json.loads(json_file.read_text())
    return found


def test_each_part_is_measured_or_says_why_not(
    called: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = main(tmp_path / "levers.json")
    assert tuple(found["parts"]) == MEASURED
    assert tuple(found["left_out"]) == LEFT_OUT
    assert found["left_out"]["graph"] == "CUDA graphs want a CUDA device"
    assert "compute capability 8.9" in found["left_out"]["fp8"]
    rows = {name: row for part in found["parts"].values() for name, row in part.items()}
    assert len(rows) == 3 + len(parts.CHUNKS) + 1
    for row in rows.values():
        assert row["before_ms"] > 0
        assert row["after_ms"] > 0
        assert row["ratio"] == pytest.approx(row["before_ms"] / row["after_ms"], rel=1e-3)
    shown = capsys.readouterr().out
    assert all(f"{name}: " in shown for name in rows)
    assert "left out: graph: CUDA graphs want a CUDA device" in shown
    page = training_tables.levers_gpu(found)
    assert page.count("\n| ") == 2 + len(rows)
    assert "Left out: `graph`: CUDA graphs want a CUDA device." in page


def test_a_part_that_fails_costs_only_what_it_has_not_measured(
    called: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(setup: parts.Setup) -> Iterator[parts.Change]:
        yield parts.Change("first", lambda: None, lambda: None)
        raise RuntimeError("no kernel\nand more")

    monkeypatch.setitem(parts.ALL, "attention", failing)
    found = main(tmp_path / "levers.json", "--parts", "attention", "patches")
    assert set(found["parts"]) == {"attention", "patches"}
    assert set(found["parts"]["attention"]) == {"first"}
    assert found["left_out"] == {"attention": "RuntimeError: no kernel"}


def test_the_next_call_goes_on_behind_what_ended_the_program(
    called: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ending(setup: parts.Setup) -> Iterator[parts.Change]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setitem(parts.ALL, "attention", ending)
    file = tmp_path / "levers.json"
    with pytest.raises(KeyboardInterrupt):
        main(file, "--parts", "patches", "attention", "optimizer")
    first = json.loads(file.read_text())
    assert first["left_out"] == {"attention": levers_gpu.NEVER_ENDED}
    found = main(file, "--parts", "patches", "attention", "optimizer", "--go-on")
    assert found["parts"]["patches"] == first["parts"]["patches"]
    assert set(found["parts"]) == {"patches", "optimizer"}
    assert found["left_out"] == {"attention": levers_gpu.NEVER_ENDED}


def test_no_part_is_begun_when_the_time_is_up(called: None, tmp_path: Path) -> None:
    found = main(tmp_path / "levers.json", "--minutes", "0", "--parts", "patches")
    assert found["parts"] == {}
    assert found["left_out"] == {"patches": "no time was left for it"}


def test_errors_of_the_call() -> None:
    with pytest.raises(UserError, match="name it with --json"):
        levers_gpu.main(["--go-on"])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device here"):
            levers_gpu.main([])


def test_both_sides_of_a_part_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with alone():
        stage = SETUP.stage(1)
        state = SETUP.travelling(2)
        graphable = parts.Graphable(stage)(state.hidden, parts._angles(stage, state))
        torch.testing.assert_close(graphable, stage(tuple(state))[0], rtol=0, atol=0)
    monkeypatch.setattr(parts, "passes", lambda call, wanted: call)
    for change in (*parts.attention(SETUP), *parts.patches(SETUP)):
        torch.testing.assert_close(change.before(), change.after())


def test_the_token_head_works_in_the_chunks_that_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, head = token_loss.CHUNK, token_loss.linear_cross_entropy
    taken: list[int] = []

    def watched(*arguments: torch.Tensor) -> token_loss.HeadLoss:
        taken.append(token_loss.CHUNK)
        return head(*arguments)

    monkeypatch.setattr(token_loss, "linear_cross_entropy", watched)
    with alone():
        for change in parts.head(SETUP):
            change.before(), change.after()
    assert taken == [size for other in parts.CHUNKS for size in (ours, other)]
    assert ours == token_loss.CHUNK


@pytest.mark.parametrize("rowwise", [False, True])
def test_fp8_gives_the_product_back(rowwise: bool) -> None:
    """Each factor is rounded to 4 bits, so a product of many is near the exact one."""
    a, b = torch.randn(32, 64), torch.randn(48, 64)
    (left, left_scale), (right, right_scale) = (parts.as_fp8(matrix, rowwise) for matrix in (a, b))
    assert left.dtype == torch.float8_e4m3fn
    assert left_scale.shape == ((32, 1) if rowwise else ())
    again = (left.float() * left_scale) @ (right.float() * right_scale).t()
    assert torch.linalg.norm(again - a @ b.t()) < 0.06 * torch.linalg.norm(a @ b.t())
    if not rowwise:  # what a CPU multiplies
        found = parts.scaled_product((left, left_scale), (right, right_scale)).float()
        torch.testing.assert_close(found, again, rtol=2e-2, atol=2e-1)
