"""The peers of the training benchmark are the same model as ours, and its figures follow from what was measured."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import training, training_tables, training_variants
from benchmarks.remote import RemoteError
from benchmarks.training_ceiling import products
from benchmarks.training_memory import PeakMemory
from benchmarks.training_peers import HuggingFace, MegatronCore, PeerModel
from benchmarks.training_rounds import Rounds, Side, Work, ratio, reached
from benchmarks.training_side import Step
from megatron_pixel.config.schema import (
    DataConfig,
    LossConfig,
    ModelConfig,
    PairConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)
from megatron_pixel.data.mixture import open_training
from megatron_pixel.data.rows import Kind, MicroBatch
from megatron_pixel.interop.names import parameters
from megatron_pixel.model.batch import to_tensors
from megatron_pixel.model.objectives import losses, pretraining_objectives
from megatron_pixel.model.stages import build_stages
from megatron_pixel.parallel.mesh import mesh
from megatron_pixel.training.throughput import flops_per_step

MODEL = ModelConfig(layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, vocab_size=64, seq_length=32, patch_size=4)
OBJECTIVES = pretraining_objectives(MODEL, LossConfig())


@pytest.fixture(scope="module")
def ours() -> Iterator[nn.Sequential]:
    with mesh(ParallelConfig()):
        network = nn.Sequential(*build_stages(MODEL, OBJECTIVES, seed=3))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for parameter in network.parameters():  # norms are ones and biases zeros else
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        yield network


def rows_of(kind: Kind) -> MicroBatch:
    mixture = ":".join("1" if each == kind else "0" for each in Kind)
    training, pair = TrainingConfig(global_batch_rows=2, micro_batch_rows=2), PairConfig(patches=16, tokens=16)
    return open_training(DataConfig(mixture=mixture, synthetic=True), MODEL, pair, training, 1).micro_batch(0, 0, 0, 1)


def our_loss(network: nn.Sequential, rows: MicroBatch) -> float:
    batch = to_tensors(rows, OBJECTIVES)
    with torch.no_grad():
        terms = losses(network(batch.inputs), batch.labels, OBJECTIVES)
    return sum(float(term.sum) / term.count for term in terms.values())


def peer_loss(peer: PeerModel, rows: MicroBatch) -> float:
    with torch.no_grad():
        return float(peer(**peer.inputs(rows, end_patch=True)))


def as_hugging_face(network: nn.Sequential) -> HuggingFace:
    peer, weights = HuggingFace(MODEL), network.state_dict()
    theirs = dict(peer.llama.named_parameters())
    with torch.no_grad():
        for parameter in parameters(MODEL, "llama"):
            for part in parameter.parts:
                theirs[part.name].copy_(part.view(weights[parameter.name]).reshape(part.shape))
        peer.projection.load_state_dict({key: weights[f"0.patches.projection.{key}"] for key in ("weight", "bias")})
        peer.norm.load_state_dict({key: weights[f"0.patches.norm.{key}"] for key in ("weight", "bias")})
        peer.pixel_head.weight.copy_(weights[f"{MODEL.layers + 2}.heads.patch.linear.weight"])
    return peer


@pytest.mark.parametrize("kind", Kind)
def test_hugging_face_is_the_same_model(ours: nn.Sequential, kind: Kind) -> None:
    peer, rows = as_hugging_face(ours), rows_of(kind)
    assert sum(p.numel() for p in peer.parameters()) == sum(p.numel() for p in ours.parameters())
    assert peer_loss(peer, rows) == pytest.approx(our_loss(ours, rows), rel=1e-5)


def test_megatron_core_is_the_same_model(ours: nn.Sequential, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoTracker:
        """Its random states are a GPU's; there is no dropout here that would draw."""

        def fork(self) -> Any:
            return contextlib.nullcontext()

    monkeypatch.setattr("megatron.core.tensor_parallel.get_cuda_rng_tracker", NoTracker)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")
    hidden = torch.triu(torch.ones(MODEL.seq_length, MODEL.seq_length), diagonal=1).bool()
    monkeypatch.setattr("megatron.core.fusions.fused_softmax.get_default_causal_mask", lambda _: hidden)
    peer, weights, rows = MegatronCore(MODEL), ours.state_dict(), rows_of(Kind.TEXT)
    last = MODEL.layers + 2
    renamed = {
        "embedding.word_embeddings.weight": "0.tokens.weight",
        "decoder.final_layernorm.weight": f"{last - 1}.norm.weight",
        "output_layer.weight": f"{last}.heads.token.linear.weight",
    }
    with torch.no_grad():
        for name, parameter in peer.gpt.named_parameters():
            number, _, rest = name.removeprefix("decoder.layers.").partition(".")
            parameter.copy_(weights[renamed[name] if name in renamed else f"{int(number) + 1}.layer.{rest}"])
    assert peer_loss(peer, rows) == pytest.approx(our_loss(ours, rows), rel=1e-5)


def test_the_ceiling_has_the_products_of_a_step() -> None:
    """All operations that MFU counts, but attention's."""
    n = 3 * MODEL.seq_length
    for kind, tokens in {"text": n, "pixel": 0, "pair": n // 2}.items():
        operations = sum(6.0 * m * k * w * count for (m, k, w), count in products(MODEL, 3, kind).items())
        assert operations == flops_per_step(MODEL, n, tokens, n - tokens, n - tokens, attended=0)


def test_ratios_are_medians_of_rounds_that_both_took() -> None:
    assert ratio({1: 2.0, 2: 9.0, 3: 5.0, 4: 1.0}, {1: 1.0, 2: 3.0, 3: 1.0}) == {
        "median": 3.0,
        "least": 2.0,
        "most": 5.0,
    }


class Turns:
    """Stands for a side's process and takes note of its turns."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name, self._log, self._number = name, log, 0

    def call(self, method: str, *arguments: Any) -> Any:
        if self._name == "bad":
            raise RemoteError("RuntimeError: no memory")
        if method == "head_seconds":
            return 0.125
        self._log.append(f"{method} {arguments[0]} {self._name}")
        self._number += 1
        parts = {"data": 0.0, "forward": 0.25, "backward": 0.5, "optimizer": 0.0}
        return 4 << 20 if method == "peak_memory" else Step(self._number, 2.0, parts, 7)


def test_sides_take_turns_and_one_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    said: list[str] = []
    reader: Any = SimpleNamespace(mixture=SimpleNamespace(micro_batch_rows=1))
    remotes: dict[str, Any] = {name: Turns(name, log) for name in ("ours", "bad", "hf", "limits")}
    sides = [Side(n, remotes[n], ("text",), 10, {"text": reader}) for n in ("ours", "bad", "hf")]
    rounds = Rounds(sides, remotes["limits"], RunConfig(), cuda=True, say=said.append)
    counted: list[int] = []
    work = Work(512, 500, 512, 0, 4e12, 2)
    monkeypatch.setattr(Rounds, "_count", lambda self, reader, step: counted.append(step) or work)
    rounds.warm_up(["text"])
    for _ in range(2):
        rounds.take(["text"])
    warm = ["warm_up text hf", "warm_up text ours", "peak_memory text hf", "peak_memory text ours"]
    assert log == [*warm, "step text ours", "step text hf", "step text hf", "step text ours"]
    assert counted == [3, 3, 4, 4]
    assert sides[1].failed == "RuntimeError: no memory"
    assert said.count("bad: left out from here on: RuntimeError: no memory") == 1
    assert rounds.head_seconds == {1: 0.125, 2: 0.125}
    assert 0 < rounds.next_seconds(["text"]) < 1
    found = reached(sides[0], "text", peak=8.0)
    assert found["positions_per_second"] == 256.0
    assert found["tflops"] == 2.0
    assert found["mfu"] == 0.25
    assert found["micro_batch_seconds"] == 0.375
    assert found["page_faults"] == 7
    assert found["peak_memory_gb"] == pytest.approx(0.004194304)


def test_ours_must_not_fail() -> None:
    remote: Any = Turns("bad", [])
    rounds = Rounds([Side("ours", remote, ("text",), 10, {})], remote, RunConfig(), cuda=True, say=lambda _: None)
    with pytest.raises(RemoteError, match="no memory"):
        rounds.take(["text"])


def test_peak_memory_is_what_is_held_and_what_a_step_adds() -> None:
    """On a CPU known to some megabytes: what is freed goes back to the system in its own time."""
    meter = PeakMemory(torch.device("cpu"))
    kept = torch.ones(32 << 20, dtype=torch.uint8)
    for _ in range(2):
        found = meter.during(lambda: torch.ones(64 << 20, dtype=torch.uint8))
        assert found == pytest.approx(96 << 20, abs=12 << 20)
    assert kept.sum() == 32 << 20


def test_variants_are_settings() -> None:
    assert training_variants.settings_of("rows_x2", 8) == ["--training.micro_batch_rows=16"]
    assert training_variants.settings_of("a.b=1, c.d=x", 8) == ["--a.b=1", "--c.d=x"]


def test_the_tables_show_what_was_measured() -> None:
    side = {
        "rows": 1, "micro_batches": 2, "step_seconds": 2.0, "positions_per_second": 1024.0,
        "targets_per_second": 1000.0, "tokens_per_second": 1024.0, "patches_per_second": 0.0,
        "tflops": 0.25, "mfu": None, "peak_memory_gb": 2.5, "page_faults": 1234,
        "split": {"data_seconds": 0.01, "forward_seconds": 0.6, "backward_seconds": 1.2, "optimizer_seconds": 0.19},
    }  # fmt: skip
    text = side | {
        "ratio_to_hf": 1.234,
        "ratio_to_hf_range": [1.1, 1.3],
        "share_of_ceiling": 0.75,
        "peers": {"hf": side},
    }
    text["variants"] = {"recompute": side | {"ratio_to_ours": 0.8}}
    head = {"ratio": 1.04, "text_step_seconds": 2.0, "head_seconds": 0.7, "pixel_step_seconds": 1.25}
    figures = {
        "device": "CPU", "precision": "fp32", "rounds": 4, "parameters": 114e6, "text": text,
        "model": {"layers": 4, "hidden": 1024, "seq_length": 1024}, "text_without_head_over_pixel": head,
        "variants_left_out": {"fp8": "ModuleNotFoundError: transformer_engine"},
    }  # fmt: skip
    page = training_tables.training(figures | {"bf16": figures})
    assert page.count("**1.23** (1.10 to 1.30)") == 2
    assert "| text rows, Hugging Face | 2 | 0.01 | 0.6 | 1.2 | 0.19 | 1,234 | 2.5 |" in page
    assert "| `recompute`, text rows | 1,024 | 1,000 | 0.25 | - | 2.5 | 1,234 | 0.800 |" in page
    assert "1.04 times as long as the pixel step" in page
    assert "Left out: `fp8`: ModuleNotFoundError: transformer_engine." in page


def test_the_program_measures_ours_and_a_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three processes: ours, Hugging Face's, and that of the ceiling."""
    words = ["--size=tiny", "--layers=1", "--precision=fp32", "--kinds=text", "--minutes=0.01", "--accumulation=1"]
    bad = ["--peers", "hf", "--variants", "data.packing=nonsense"]
    training.main([*words, *bad, f"--json={tmp_path / 'training.json'}"])
    found = json.loads((tmp_path / "training.json").read_text())
    text = found["text"]
    assert found["rounds"] == 1
    assert text["positions_per_second"] == pytest.approx(256 / text["step_seconds"], rel=1e-3)
    assert text["ratio_to_hf_range"][0] <= text["ratio_to_hf"] <= text["ratio_to_hf_range"][1]
    assert 0 < text["share_of_ceiling"] < 2
    assert 0 < text["peak_memory_gb"] < 2
    assert found["variants_left_out"].keys() == {"data.packing=nonsense"}
    assert "round 1  text  hf " in capsys.readouterr().out
