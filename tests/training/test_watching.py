"""What a run leaves behind of itself: gradient norms, time, traces, histograms, pictures, another service."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_pixel.config.loader import load_config
from megatron_pixel.reporting.report_page import report_page
from megatron_pixel.training.pages import list_pages, load_pages
from megatron_pixel.training.profiling import BACKWARD_TRACK, backward_on_its_own_track
from tests.distributed.cases import RECIPES
from tests.distributed.harness import run_ranks

Event = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    (result,) = run_ranks("tests/training/watched_run.py::watched", 1, (str(folder),), timeout=120)
    return result  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def steps(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [line for line in found["lines"] if "loss" in line]


def test_gradient_norms_by_stage_are_those_of_autograd(found: dict[str, Any], steps: list[dict[str, Any]]) -> None:
    norms = steps[0]["grad_norm_by_stage"]
    assert norms == pytest.approx(found["truth"], rel=1e-5)
    assert list(norms) == list(found["truth"])
    for line in steps:
        whole = sum(norm**2 for norm in line["grad_norm_by_stage"].values()) ** 0.5
        assert whole == pytest.approx(line["grad_norm"], rel=1e-9)
    assert steps[0]["grad_norm"] > 1, "the optimizer must have seen a clipped gradient for this to say anything"
    assert found["hooks"] == 0, "after training the optimizer is left alone"


def test_the_parts_of_a_step_are_within_its_time(steps: list[dict[str, Any]]) -> None:
    for line in steps:
        parts = [line[f"{part}_seconds"] for part in ("data", "forward", "backward", "optimizer")]
        assert all(part > 0 for part in parts)
        assert 0.5 * line["seconds"] < sum(parts) <= line["seconds"] or line["step"] in (3, 4), "two steps are profiled"
        assert line["pipeline_seconds"] == 0
    times = [line["time"] for line in steps]
    assert times == sorted(times)
    assert [line["evaluation_seconds"] > 0 for line in steps] == [False, False, True, False]


@pytest.fixture(scope="module")
def events(found: dict[str, Any], folder: Path) -> list[Event]:
    (path,) = (folder / "run" / "profile").iterdir()
    assert path.name == "steps-3-4.rank-0.json.gz"
    with gzip.open(path, "rt") as file:
        return [event for event in json.load(file)["traceEvents"] if event.get("ph") == "X"]


@pytest.fixture(scope="module")
def named(events: list[Event]) -> list[Event]:
    """What has a name of ours, in the order of time."""
    ours = [e for e in events if e.get("cat") == "user_annotation" and not e["name"].startswith(("gloo:", "Optimizer"))]
    return sorted(ours, key=lambda e: e["ts"])


STAGES = [f"layer {number}" for number in range(1, 8)]


def test_the_trace_names_stages_and_parts(named: list[Event]) -> None:
    counts = Counter(event["name"] for event in named)
    per_batch = [
        "rows to tensors",
        "forward",
        "backward",
        "optimizer step",
        "embedding",
        *STAGES,
        "norm",
        "heads",
        "loss",
    ]
    backward = [f"{stage} backward" for stage in (*STAGES, "norm", "heads")]
    expected = dict.fromkeys([*per_batch, *backward], 2 * 10)  # two steps of ten micro-batches
    assert counts == {**expected, "step 3": 1, "step 4": 1, "wait for rows": 1}


def test_regions_of_the_trace_are_nested(events: list[Event]) -> None:
    """Viewers drop what overlaps on one track without one holding the other."""
    tracks: dict[Any, list[Event]] = {}
    for event in events:
        tracks.setdefault((event["pid"], event["tid"]), []).append(event)
    for track, on_track in tracks.items():
        open_until: list[float] = []
        for event in sorted(on_track, key=lambda e: (e["ts"], -e["dur"])):
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            end = event["ts"] + event["dur"]
            assert not open_until or end <= open_until[-1] + 0.01, f"{event['name']} on {track}"
            open_until.append(end)
    (own,) = {event["tid"] for event in events if event["name"] == "layer 3 backward"}
    assert str(own).endswith("stages backward")


@pytest.mark.parametrize("between", [" ", "\n    "])
def test_the_backward_pass_moves_however_the_lines_are_broken(between: str) -> None:
    """Versions of PyTorch differ in it."""
    events = [f'"name": "{name}", "pid": 1,{between}"tid": 7,\n' for name in ("heads backward", "heads")]
    written = "".join(backward_on_its_own_track("".join(events).splitlines(keepends=True)))
    moved = events[0].replace("7", f'"7 {BACKWARD_TRACK}"')
    assert written == moved + events[1]


def test_stages_run_in_order_and_go_back_in_the_other(named: list[Event]) -> None:
    def within(part: str) -> list[str]:
        first = next(event for event in named if event["name"] == part)
        end = first["ts"] + first["dur"]
        return [event["name"] for event in named if first["ts"] < event["ts"] < end]

    assert within("forward") == ["embedding", *STAGES, "norm", "heads", "loss"]
    assert within("backward") == [f"{stage} backward" for stage in ("heads", "norm", *reversed(STAGES))]


def test_tensorboard_has_everything(found: dict[str, Any], folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run" / "tensorboard"), size_guidance={"histograms": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    for tag in (
        "train/loss_patch_pixel",
        "train_sources/loss_patch_pixel/synthetic",
        "eval_sources/loss_token_pair/synthetic",
        "gradients/layers_3-4",
        "gradients/head_patch",
        "time/backward_seconds",
        "time/checkpoint_stall_seconds",
        "speed/tokens_per_second",
        "speed/memory_gb",
    ):
        assert tag in tags["scalars"], tag
    assert {"gradients/norm", "weights/embedding_tokens"} <= set(tags["histograms"])
    weights = events.Histograms("weights/layers_1-2")
    assert [entry.step for entry in weights] == [2, 4]
    # Two layers of 32 wide with 48 in the feed-forward: qkv, proj, fc1, fc2 and two norms each.
    assert weights[0].histogram_value.num == sum(weights[0].histogram_value.bucket) > 2 * 3 * 32 * 48
    assert [image.step for image in events.Images("heldout/page-1")] == [2, 4]
    assert [image.step for image in events.Images("heldout/attention-0")] == [2, 4]


def test_pages_are_kept_with_predictions_and_attention(found: dict[str, Any], folder: Path) -> None:
    files = list_pages(folder / "run")
    assert [step for step, _ in files] == [2, 4]
    first, last = (load_pages(path) for _, path in files)
    assert len(first) == len(last) == 2
    for page, later in zip(first, last, strict=True):
        assert page.origin == later.origin
        assert np.array_equal(page.patches, later.patches)
        assert not np.array_equal(page.predictions, later.predictions)
        assert page.layer == 3
        assert page.attention is not None
        weights = page.attention.astype(np.float32)
        assert weights.shape == (len(page.patches),) * 2
        assert np.allclose(weights.sum(1), 1, atol=2e-3)
        assert not np.triu(weights, 1).any(), "nobody looks ahead"
        assert np.isnan(page.errors[0])
        assert np.isfinite(page.errors[1:]).all()


def test_the_other_service_gets_the_same(found: dict[str, Any], folder: Path, steps: list[dict[str, Any]]) -> None:
    options, *told = [json.loads(line) for line in (folder / "wandb.log").read_text().splitlines()]
    assert options["project"] == "pixels"
    assert options["id"] == (folder / "run" / "wandb_id").read_text().strip() == "abc123"
    assert options["resume"] == "allow"
    assert options["config"]["training"]["steps"] == 4
    assert told.pop() == "finished"
    first = next(values for step, values in told if step == 1)
    assert first["train/loss"] == steps[0]["loss"]
    assert first["gradients/head_patch"] == steps[0]["grad_norm_by_stage"]["head_patch"]
    pictures = [(step, name) for step, values in told for name in values if name.startswith("heldout/")]
    assert (2, "heldout/page-0") in pictures
    assert (4, "heldout/attention-1") in pictures


def test_the_report_reads_a_real_run(found: dict[str, Any], folder: Path) -> None:
    page = report_page(folder / "run")
    for said in ("Gradient norm by stage", "Sample pages", "Attention of layer 3 at step 4", "Time of a step"):
        assert said in page


@pytest.mark.parametrize("steps", ["", "0:3", "5:4", "1-3", "a"])
def test_steps_to_profile_that_are_no_range_are_refused(steps: str) -> None:
    with pytest.raises(Exception, match=r"profile\.steps.*10:13"):
        load_config(f"{RECIPES}/dualgpt-debug.yaml", [f"--profile.steps={steps}"])


def test_a_layer_that_is_not_there_has_no_attention() -> None:
    with pytest.raises(Exception, match=re.escape("logging.attention: 9 is no layer of the model; valid: 1 to 4")):
        load_config(f"{RECIPES}/dualgpt-debug.yaml", ["--logging.attention=9"])
