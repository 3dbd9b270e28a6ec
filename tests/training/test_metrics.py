import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_pixel.training.gradients import Histograms
from megatron_pixel.training.metrics import EVALUATION_KEYS, STEP_KEYS, MetricsLog, Record, curves, drop_after

DECISION = (
    "step loss loss_token_text loss_token_pair loss_patch_pixel loss_patch_pair lr grad_norm tokens patches seconds "
    "tokens_per_second patches_per_second tflops_per_device mfu memory_gb skipped_steps rows_digest "
    "checkpoint_stall_seconds evaluation_seconds data_seconds forward_seconds backward_seconds optimizer_seconds "
    "pipeline_seconds time loss_by_source grad_norm_by_stage"
).split()


def record(step: int, **values: Any) -> Record:
    nested = {"loss_by_source": {"loss_token_text/a": 2.0}, "grad_norm_by_stage": {"norm": 0.5}}
    return {**dict.fromkeys(STEP_KEYS, 1.5), **nested, "step": step, **values}


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_a_line_has_exactly_the_agreed_keys(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, every=1)
    log.step(record(1, loss_patch_pair=None, mfu=None, extra=3.0))
    log.evaluation({**dict.fromkeys(EVALUATION_KEYS, 2.0), "step": 1})
    log.close()
    step, evaluation = lines(tmp_path)
    assert list(step) == DECISION
    assert step["loss_patch_pair"] is None
    assert list(evaluation) == ["step", *(f"eval_{key}" for key in DECISION[1:6]), "eval_loss_by_source", "time"]
    assert scalars(tmp_path, "train/loss") == [(1, 1.5)]
    assert scalars(tmp_path, "eval/loss_token_text") == [(1, 2.0)]


def test_values_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, every=1)
    log.step(record(1, loss=math.nan, grad_norm=math.inf, loss_by_source={"a/b": math.nan, "a/c": 1.0}))
    log.close()
    assert lines(tmp_path)[0]["loss"] is None
    assert lines(tmp_path)[0]["grad_norm"] is None
    assert lines(tmp_path)[0]["loss_by_source"] == {"a/b": None, "a/c": 1.0}


def test_lines_between_are_left_out_but_never_the_last(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, every=3)
    for step in range(1, 6):
        log.step(record(step), last=step == 5)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [3, 5]


def test_a_restart_never_doubles_a_curve(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, every=1)
    for step in (1, 2, 3, 4):
        log.step(record(step, loss=float(step)))
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    log = MetricsLog(tmp_path, 2, every=1)
    log.step(record(3, loss=30.0))
    log.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert (tmp_path / "metrics.superseded.jsonl").read_text().count("\n") == 3
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_nothing_to_move_aside_leaves_the_file_alone(tmp_path: Path) -> None:
    assert drop_after(tmp_path, 0) == 0
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert drop_after(tmp_path, 1) == 0
    assert not (tmp_path / "metrics.superseded.jsonl").exists()


def test_pictures_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path, 0, every=1)
    log.picture("heldout/page-0", np.zeros((4, 6, 3), np.uint8), 7)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    (image,) = events.Images("heldout/page-0")
    assert (image.step, image.width, image.height) == (7, 6, 4)


def test_curves_are_grouped_by_what_they_tell() -> None:
    found = dict(curves(record(1, mfu=None)))
    assert found["train/loss_token_text"] == 1.5
    assert found["train_sources/loss_token_text/a"] == 2.0
    assert found["gradients/norm"] == 0.5
    assert found["time/data_seconds"] == found["speed/tokens_per_second"] == 1.5
    assert not {name for name in found if name.endswith(("/step", "/time", "/mfu"))}
    evaluation = {"step": 1, "eval_loss": 3.0, "eval_loss_by_source": {"loss_token_text/a": 4.0}, "time": 1.0}
    assert dict(curves(evaluation)) == {"eval/loss": 3.0, "eval_sources/loss_token_text/a": 4.0}


def test_histograms_reach_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = Histograms(["embedding", "heads"], torch.device("cpu"))
    found.add("gradients", 1, torch.tensor([-0.5, 0.0, 0.25, 0.25]))
    log = MetricsLog(tmp_path, 0, every=1)
    log.histograms(found, 7)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["histograms"] == ["gradients/heads"]
    (event,) = events.Histograms("gradients/heads")
    value = event.histogram_value
    assert (event.step, value.num, value.sum, value.sum_squares) == (7, 4, 0.0, 0.375)
    counts = {limit: count for limit, count in zip(value.bucket_limit, value.bucket, strict=True) if count}
    assert list(counts.values()) == [1, 1, 2]
    negative, zero, positive = counts
    assert -0.5 <= negative < -0.5 / 1.34
    assert zero == 0.0
    assert 0.25 <= positive < 0.25 * 1.34


@pytest.mark.parametrize("key", STEP_KEYS)
def test_a_record_without_a_key_is_an_error(tmp_path: Path, key: str) -> None:
    log = MetricsLog(tmp_path, 0, every=1)
    incomplete = {name: value for name, value in record(1).items() if name != key}
    with pytest.raises(KeyError):
        log.step(incomplete)
    log.close()
