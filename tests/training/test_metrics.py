import json
import math
from pathlib import Path

import numpy as np
import pytest

from megatron_pixel.training.metrics import EVALUATION_KEYS, STEP_KEYS, MetricsLog, drop_after

DECISION = (
    "step loss loss_token_text loss_token_pair loss_patch_pixel loss_patch_pair lr grad_norm tokens patches seconds "
    "tokens_per_second patches_per_second tflops_per_device mfu memory_gb skipped_steps "
    "checkpoint_stall_seconds"
).split()


def record(step: int, **values: float | None) -> dict[str, float | int | None]:
    return {**dict.fromkeys(STEP_KEYS, 1.5), "step": step, **values}


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
    assert list(evaluation) == ["step", *(f"eval_{key}" for key in DECISION[1:6])]
    assert scalars(tmp_path, "train/loss") == [(1, 1.5)]
    assert scalars(tmp_path, "eval/loss_token_text") == [(1, 2.0)]


def test_values_that_are_no_numbers_are_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, 0, every=1)
    log.step(record(1, loss=math.nan, grad_norm=math.inf))
    log.close()
    assert lines(tmp_path)[0]["loss"] is None
    assert lines(tmp_path)[0]["grad_norm"] is None


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


@pytest.mark.parametrize("key", STEP_KEYS)
def test_a_record_without_a_key_is_an_error(tmp_path: Path, key: str) -> None:
    log = MetricsLog(tmp_path, 0, every=1)
    incomplete = {name: value for name, value in record(1).items() if name != key}
    with pytest.raises(KeyError):
        log.step(incomplete)
    log.close()
