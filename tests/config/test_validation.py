import re
from pathlib import Path

import pytest

from megatron_pixel.config import RunConfig, UserError, apply_overrides, check_files, ranges, validate
from megatron_pixel.config.finetuning import FinetuningConfig
from megatron_pixel.config.keys import settings


def synthetic(*overrides: str) -> RunConfig:
    return apply_overrides(RunConfig, "", ["--data.synthetic", "--training.global_batch_rows=10240", *overrides])


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["--model.heads=5"], "model.heads: 5 heads do not divide model.hidden 1024 into even widths"),
        (["--model.heads=5"], "nearest valid: 1, 2, 4 or 8"),
        (["--model.heads=1024"], "model.heads: 1024 heads do not divide model.hidden 1024 into even widths"),
        (["--model.hidden=33"], "model.hidden: 33 is odd"),
        (
            ["--model.kv_heads=6"],
            "model.kv_heads: 6 key-value heads do not divide model.heads 16; nearest valid: 1, 2, 4 or 8",
        ),
        (["--model.layers=0"], "model.layers: 0 is too small; the least is 1"),
        (["--model.num_channels=2"], "model.num_channels: 2 channels; valid: 1 .* or 3"),
        (["--model.patch_size=2"], "model.patch_size: 2 is too small; the least is 4"),
        (["--model.norm_eps=0"], "model.norm_eps: 0.0 must be above 0"),
        (
            ["--parallel.tensor=3"],
            "parallel.tensor: 3 does not divide model.kv_heads 8, model.heads 16, .* 1, 2, 4 or 8",
        ),
        (["--parallel.tensor=2", "--model.vocab_size=257"], "parallel.tensor: 2 does not divide model.vocab_size 257"),
        (
            ["--parallel.pipeline=25"],
            "parallel.pipeline: 25 stages are more than model.layers 24, .*; nearest valid: 24",
        ),
        (
            ["--parallel.activation_checkpointing=some"],
            "activation_checkpointing: 'some': expected none, all, auto, or layers such as 1-12,24",
        ),
        (
            ["--parallel.activation_checkpointing=20-25"],
            "activation_checkpointing: '20-25' names layers that are not there; valid: 1-24",
        ),
        (
            ["--parallel.experimental=sequence_parallel"],
            "sequence_parallel goes with parallel.tensor 2 or more, which is 1",
        ),
        (
            ["--parallel.experimental=sequence_parallel", "--parallel.tensor=2", "--model.seq_length=1025"],
            "splits model.seq_length 1025, which parallel.tensor 2 does not divide; .* model.seq_length: 1024",
        ),
        (["--parallel.activation_checkpointing=0"], "'0' names layers that are not there; valid: 1-24"),
        (["--parallel.activation_checkpointing=5-3"], "'5-3' names layers that are not there; valid: 1-24"),
        (["--pair.patches=900"], "pair.patches 900 . pair.tokens 512 = 1412 .* model.seq_length 1024; .* 512 . 512"),
        (["--data.mixture=4:4"], "data.mixture: '4:4': expected rows of a step as text:pixel:pair"),
        (["--data.mixture=0:0:0"], "data.mixture: '0:0:0': expected"),
        (["--data.mixture=1:-1:0"], "data.mixture: '1:-1:0': expected"),
        (["--data.text=0:x"], "data.text: '0:x': expected prefix or weight:prefix with a weight above 0"),
        (["--data.text=nan:x"], "data.text: 'nan:x': expected"),
        (["--data.pixels=2:"], "data.pixels: '2:': expected"),
        (["--data.pairs="], "data.pairs: '': expected"),
        (["--data.workers=-1"], "data.workers: -1 is too small; the least is 0"),
        (["--data.rendering.font_size=0"], "data.rendering.font_size: 0.0 points is no size for text"),
        (["--data.rendering.dpi=0"], "data.rendering.dpi: 0 is too small; the least is 1"),
        (["--data.rendering.binary_threshold=257"], r"data.rendering.binary_threshold: 257 is outside 0 \.\. 256"),
        (["--data.rendering.patch_size=32"], "data.rendering.patch_size: 32 pixels, but model.patch_size is 16"),
        (["--data.rendering.seq_length=1"], r"data.rendering.seq_length: 1 patches are outside 2 \.\. .* 1024"),
        (["--data.rendering.seq_length=1025"], "data.rendering.seq_length: 1025 patches are outside"),
        (
            ["--data.rendering.mode=rgb", "--model.num_channels=1"],
            "data.rendering.mode: rgb, but model.num_channels is 1",
        ),
        (
            ["--training.global_batch_rows=77"],
            "global_batch_rows: 77 rows cannot be split 4:4:2; nearest valid: 75 or 80",
        ),
        (["--training.global_batch_rows=3"], "cannot be split 4:4:2; nearest valid: 5$"),
        (
            ["--training.global_batch_rows=20", "--training.micro_batch_rows=3"],
            "training.micro_batch_rows: 3 does not divide the 8 text rows, 8 pixel rows, 4 pair rows of a step; "
            "nearest valid: 1, 2 or 4",
        ),
        (["--optimizer.warmup_steps=20000"], "optimizer.warmup_steps: 20000 exceeds training.steps 10000"),
        (["--optimizer.lr=0"], "optimizer.lr: 0.0 must be above 0"),
        (["--optimizer.min_lr=1"], "optimizer.min_lr: 1.0 exceeds optimizer.lr 0.0005"),
        (["--optimizer.beta2=1"], "optimizer.beta2: 1.0 must be at least 0 and below 1"),
        (["--optimizer.clip_grad=-1"], "optimizer.clip_grad: -1.0 is too small; the least is 0"),
        (["--training.stop_after=10001"], r"training.stop_after: 10001 is outside 1 \.\. training.steps 10000"),
        (["--training.stop_after=0"], "training.stop_after: 0 is outside"),
        (["--training.seed=4294967296"], "training.seed: 4294967296 is too large; the largest is 4294967295"),
        (["--checkpoint.milestones", "0"], "checkpoint.milestones: 0 is no step"),
        (["--checkpoint.resume="], "checkpoint.resume: empty; valid: auto, none or a checkpoint folder"),
        (["--run.dir="], "run.dir: empty"),
        (
            ["--checkpoint.allow_changes=optimizer.lrr"],
            "no setting is called 'optimizer.lrr'; did you mean optimizer.lr",
        ),
        (["--loss.token_weight=0", "--loss.patch_weight=0"], "loss.token_weight: 0 leaves nothing to learn"),
        (["--loss.token_weight=0", "--data.mixture=1:0:0"], "loss.token_weight: 0 leaves nothing to learn"),
        (["--loss.patch_weight=0", "--data.mixture=0:1:0"], "loss.patch_weight: 0 leaves nothing to learn"),
    ],
)
def test_contradictions(overrides: list[str], problem: str) -> None:
    validate(synthetic())
    with pytest.raises(UserError) as caught:
        validate(synthetic(*overrides))
    assert re.search(problem, str(caught.value)), str(caught.value)
    assert "problems" not in str(caught.value), "one cause, one line"


def test_what_looks_odd_and_is_fine() -> None:
    validate(synthetic("--pair.patches=900", "--data.mixture=1:1:0"))  # no pair rows, no caps
    validate(synthetic("--checkpoint.allow_changes", "optimizer", "training.seed"))
    validate(synthetic("--training.stop_after=10000", "--optimizer.warmup_steps=10000"))
    validate(synthetic("--loss.patch_weight=0"))
    validate(synthetic("--checkpoint.resume=runs/x/checkpoints/step-00000120"))


def test_all_problems_with_their_places() -> None:
    config = synthetic("--model.kv_heads=6", "--optimizer.lr=0", "--data.mixture=x")
    with pytest.raises(UserError) as caught:
        validate(config, {"optimizer.lr": "mine.yaml:7"})
    lines = str(caught.value).splitlines()
    assert lines[0] == "3 problems in the configuration:"
    assert "  mine.yaml:7: optimizer.lr: 0.0 must be above 0" in lines


def test_kinds_with_rows_need_data() -> None:
    config = apply_overrides(RunConfig, "", ["--training.global_batch_rows=10240", "--data.text=a"])
    with pytest.raises(UserError) as caught:
        validate(config)
    message = str(caught.value)
    assert "data.pixels: no dataset, but data.mixture 4:4:2 has pixel rows; give --data.pixels PREFIX" in message
    assert "data.pairs: no dataset" in message
    assert "data.text: no dataset" not in message


def test_missing_datasets_are_listed_with_the_command_that_makes_them(tmp_path: Path) -> None:
    (tmp_path / "there.manifest.json").write_text("{}")
    words = ["--data.mixture=1:1:0", "--data.text", f"2:{tmp_path}/there", f"{tmp_path}/a", f"{tmp_path}/b"]
    config = apply_overrides(RunConfig, "", [*words, f"--data.pixels={tmp_path}/there", "--data.pairs=unused"])
    with pytest.raises(UserError) as caught:
        check_files(config)
    message = str(caught.value)
    assert message.startswith(f"data.text: no dataset at {tmp_path}/a, {tmp_path}/b (no PREFIX.manifest.json there)")
    assert "python data_tools/preprocess.py text --tokenizer tokenizer.model --input FILE..." in message
    assert "unused" not in message
    config.data.synthetic = True
    check_files(config)


def test_every_range_is_of_a_setting_that_there_is() -> None:
    known = {*settings(RunConfig), *settings(FinetuningConfig)}
    ranges_of = [*ranges.AT_LEAST, *ranges.ABOVE_ZERO, *ranges.BELOW_ONE]
    assert [key for key in ranges_of if key not in known] == []
