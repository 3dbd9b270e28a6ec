import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.config.schema import OptimizerConfig, TrainingConfig
from megatron_pixel.parallel.deepspeed_file import DeepSpeedFile
from megatron_pixel.parallel.engine import merged_config, parameter_groups

TRAINING = TrainingConfig(global_batch_rows=64, micro_batch_rows=4, precision="bf16")
OPTIMIZER = OptimizerConfig(clip_grad=1.0)
ROOT = Path(__file__).resolve().parents[2]


def file_of(tmp_path: Path, content: Any) -> DeepSpeedFile:
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return DeepSpeedFile(str(path))


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.name)
def test_our_own_files_contradict_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    file = DeepSpeedFile(f"ds_configs/{path.name}")  # found below the project's root from anywhere
    file.check(TRAINING, OPTIMIZER, 16)
    assert file.zero_stage in (1, 2, 3)


@pytest.mark.parametrize(
    ("key", "value", "ours"),
    [
        ("train_batch_size", 32, "training.global_batch_rows is 64"),
        ("train_micro_batch_size_per_gpu", 8, "training.micro_batch_rows is 4"),
        ("gradient_accumulation_steps", 2, "what training.* gives for this layout is 16"),
        ("gradient_clipping", 0.5, "optimizer.clip_grad is 1.0"),
        ("bf16", {"enabled": False}, "training.precision is bf16"),
        ("optimizer", {"type": "Lion"}, "this is set by optimizer.*"),
        ("scheduler", {"type": "WarmupLR"}, "this is set by optimizer.schedule"),
        ("data_types", {"grad_accum_dtype": "bf16"}, "this is set by training.precision"),
    ],
)
def test_contradictions_name_both_places_and_values(tmp_path: Path, key: str, value: Any, ours: str) -> None:
    file = file_of(tmp_path, {"zero_optimization": {"stage": 1}, key: value})
    with pytest.raises(UserError) as error:
        file.check(TRAINING, OPTIMIZER, 16)
    message = str(error.value)
    assert f"ds.json:5: {key}" in message
    assert ours in message
    assert json.dumps(value["enabled"] if key == "bf16" else value) in message


def test_the_same_value_twice_is_no_contradiction(tmp_path: Path) -> None:
    same = {
        "train_batch_size": 64,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 16,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "fp16": {"enabled": False},
    }
    file_of(tmp_path, same).check(TRAINING, OPTIMIZER, 16)


def test_fp16_is_refused_in_one_plain_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fp16 is not supported") as error:
        file_of(tmp_path, {"fp16": {"enabled": True}}).check(TRAINING, OPTIMIZER, 16)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("stage", [0, 4, "1", None])
def test_stages_that_do_not_work_are_refused(tmp_path: Path, stage: Any) -> None:
    file = file_of(tmp_path, {"zero_optimization": {"stage": stage}})
    with pytest.raises(UserError, match="valid: 1, 2 or 3"):
        _ = file.zero_stage


@pytest.mark.parametrize("text", ["{", "[1]", '"zero"'])
def test_files_that_hold_no_object_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"ds\.json"):
        file_of(tmp_path, text)


def test_a_missing_file_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no file nowhere\.json; the project has .*zero1\.json"):
        DeepSpeedFile("nowhere.json")


def test_the_merged_configuration_is_the_config_trees(tmp_path: Path) -> None:
    file = file_of(tmp_path, {"wall_clock_breakdown": True, "train_batch_size": 64})
    optimizer = OptimizerConfig(lr=1e-3, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, clip_grad=0.5)
    merged = merged_config(file, TRAINING, optimizer, 16, cuda=False)
    assert merged["train_micro_batch_size_per_gpu"] == 4
    assert merged["gradient_accumulation_steps"] == 16
    assert merged["gradient_clipping"] == 0.5
    assert merged["optimizer"]["params"] == {
        "lr": 1e-3,
        "betas": [0.8, 0.9],
        "eps": 1e-6,
        "weight_decay": 0.1,
        "torch_adam": True,
        "fused": True,
    }
    assert merged["zero_optimization"] == {"stage": 1}
    assert merged["bf16"] == {"enabled": True}
    assert merged["data_types"] == {"grad_accum_dtype": "fp32"}
    assert merged["communication_data_type"] == "fp32"
    assert merged["wall_clock_breakdown"] is True
    assert "train_batch_size" not in merged


def test_fp32_and_offload(tmp_path: Path) -> None:
    fp32 = TrainingConfig(precision="fp32")
    offload = file_of(tmp_path, {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    merged = merged_config(offload, fp32, OPTIMIZER, 1, cuda=True)
    assert merged["bf16"] == {"enabled": False}
    assert "data_types" not in merged
    assert "torch_adam" not in merged["optimizer"]["params"]
    assert "fused" not in merged["optimizer"]["params"]
    assert merged_config(offload, fp32, OPTIMIZER, 1, cuda=False)["optimizer"]["params"]["torch_adam"] is True


@pytest.mark.parametrize(("name", "touches"), [("zero1", False), ("zero2", False), ("zero3", True), ("offload", True)])
def test_where_every_parameter_must_take_part(name: str, touches: bool) -> None:
    assert DeepSpeedFile(f"ds_configs/{name}.json").touches_all is touches


def test_only_matrices_decay() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    decayed, plain = parameter_groups(module.parameters(), 0.1)
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 3)]
    assert [tuple(p.shape) for p in plain["params"]] == [(2,), (2,), (2,)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert len(parameter_groups([torch.nn.Parameter(torch.zeros(2))], 0.1)) == 1
