"""The folder of a run that never was: curves, restarts, pages, checkpoints, in a moment."""

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from megatron_pixel.config.loader import load_config, save_config
from megatron_pixel.training.metrics import EVALUATION_KEYS, STEP_KEYS
from megatron_pixel.training.pages import PredictedPage, save_pages

RECIPE = "megatron_pixel/config/recipes/dualgpt-debug.yaml"
BEGIN = 1_800_000_000.0
"""Seconds since 1970 of its first start."""
SECONDS = 2.0
"""Of a step."""


def step_record(step: int) -> dict[str, Any]:
    loss = 4.0 * math.exp(-step / 80) + 1.5
    kinds = {
        "loss": 2 * loss,
        "loss_token_text": loss,
        "loss_token_pair": loss + 0.1,
        "loss_patch_pixel": loss / 4,
        "loss_patch_pair": loss / 4 + 0.02,
    }
    by_source = {f"loss_patch_pixel/{name}": loss / 4 + shift for name, shift in (("english", 0.0), ("<greek>", 0.1))}
    known = {
        **kinds,
        "step": step,
        "time": BEGIN + 10 + SECONDS * step,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "tokens": 900,
        "patches": 1000,
        "seconds": SECONDS,
        "tokens_per_second": 450.0,
        "patches_per_second": 500.0,
        "mfu": 0.4,
        "memory_gb": 3.5,
        "skipped_steps": 0,
        "checkpoint_stall_seconds": 0.5 if step % 50 == 1 and step > 1 else 0.0,
        "data_seconds": 0.1,
        "forward_seconds": 0.6,
        "backward_seconds": 1.1,
        "optimizer_seconds": 0.1,
        "loss_by_source": by_source,
        "grad_norm_by_stage": {"embedding_patches": 0.5, "layers_1": 0.7, "head_patch": 0.2},
    }
    return {key: known.get(key, 0.0) for key in STEP_KEYS}


def evaluation_record(step: int) -> dict[str, Any]:
    train = step_record(step)
    record = {f"eval_{key}": train[key] for key in train if key.startswith("loss")} | {"step": step}
    return {key: record.get(key, train["time"]) for key in EVALUATION_KEYS}


def page(number: int, step: int, attention: bool = True) -> PredictedPage:
    draw = np.random.default_rng(number)
    patches = draw.integers(0, 256, (60, 16, 16, 1), dtype=np.uint8)
    errors = draw.random(60).astype(np.float32) * 100 / step
    errors[0] = np.nan
    looks = np.tril(np.ones((60, 60))) / np.arange(1, 61)[:, None]
    shown = looks.astype(np.float16) if attention else None
    return PredictedPage(("pixel:english", number), patches, patches // 2, errors, shown, 2 if attention else None)


def event(kind: str, seconds: float, **facts: Any) -> dict[str, Any]:
    return {"event": kind, "time": datetime.fromtimestamp(BEGIN + seconds, UTC).isoformat(timespec="seconds"), **facts}


def make(folder: Path, steps: int = 150, of: int = 300, *words: str) -> Path:
    """A run that was killed once after step 100 and stands at ``steps`` now."""
    config = load_config(RECIPE, [f"--run.dir={folder}", f"--training.steps={of}", *words])
    (folder / "logs").mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(step_record(step))
        if step % 50 == 0:
            lines.append(evaluation_record(step))
            save_pages(folder, step, [page(number, step, attention=number == 0) for number in range(2)])
            saved = folder / "checkpoints" / f"step-{step:08d}"
            saved.mkdir(parents=True)
            files = {"a.pt": {"bytes": 4_000_000, "sha256": ""}}
            (saved / "manifest.json").write_text(json.dumps({"format_version": 2, "step": step, "files": files}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "logs" / "pretrain.log").write_text(
        "2027-01-15T09:00:00  megatron_pixel 0.1.0  DualGPT  runs/x\n"
        "  layout      1 process on CPU: data 1, tensor 1, pipeline 1, ZeRO 1, fp32\n"
        "  machine     errors would be told here\n"
        "  model       316k parameters\n"
        "2027-01-15T09:00:02  step 1/300  loss 5.0\n"
        "2027-01-15T09:03:00  step 90 skipped: gradients are not finite\n"
    )
    events = [
        event("start", 0, host="node1", pid=11, processes=4, step=0),
        event("failure", 230, rank=2, ranks=4, cause="SIGKILL <i>"),
        event("start", 240, host="node2", pid=12, processes=4, step=100),
    ]
    write_sessions(folder, events)
    return folder


def write_sessions(folder: Path, events: list[dict[str, Any]]) -> None:
    (folder / "logs" / "sessions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in events))


def alive(folder: Path, now: float, beat: float = 0.0, quiet: float = 0.0) -> None:
    """A lock whose holder gave a sign of life ``beat`` seconds ago, and a last line ``quiet`` seconds ago."""
    (folder / "run.lock").write_text(json.dumps({"token": "x", "host": "node2", "pid": 12}) + "\n")
    os.utime(folder / "run.lock", (now - beat, now - beat))
    for name in ("metrics.jsonl", "logs/pretrain.log"):
        os.utime(folder / name, (now - quiet, now - quiet))
