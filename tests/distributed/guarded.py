"""Runs that go wrong on purpose, in many layouts, in one start of four processes: what happens in each rank."""

import itertools
import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.mesh import Mesh, mesh
from megatron_pixel.parallel.quiet import silence_libraries
from megatron_pixel.training import guarding, loop, start
from megatron_pixel.training.guards import GuardError
from megatron_pixel.training.run import Run
from megatron_pixel.training.watchdog import SUMMARY, Watchdog
from tests.distributed.harness import sign_of_life, use_store
from tests.distributed.layouts import forget_zero_3
from tests.distributed.tiny_run import lines, tiny

BF16 = ("--training.precision=bf16", "--training.micro_batch_rows=2")
LAYOUTS: dict[str, list[str]] = {
    "data 4, ZeRO 2": ["--deepspeed_config=ds_configs/zero2.json"],
    "data 4, ZeRO 3": ["--deepspeed_config=ds_configs/zero3.json"],
    "tensor 2 x pipeline 2": ["--parallel.tensor=2", "--parallel.pipeline=2", "--training.micro_batch_rows=4"],
    "tensor 2 x data 2, bf16": ["--parallel.tensor=2", *BF16],
    "pipeline 2 x data 2, bf16": ["--parallel.pipeline=2", *BF16],
}
"""Each takes five micro-batches of its rows a step."""
WORDS = ["--model.layers=2", "--evaluation.rows=0", "--optimizer.warmup_steps=2"]
WATCHED = ("data 4, ZeRO 2", "data 4, ZeRO 3", "tensor 2 x pipeline 2")
"""Layouts in which ranks hang and are slow: each takes its seconds."""
STOPPED = "data 4, ZeRO 2"
"""Of them, where the rank that hangs does so because its process is stopped."""
SLEEPER = 1
LIMIT = 2.0


def everything(folder: str) -> dict[str, dict[str, Any]]:
    silence_libraries()
    stores = itertools.count()
    found: dict[str, dict[str, Any]] = {}
    for name in LAYOUTS:
        use_store(next(stores))
        forget_zero_3()
        root = Path(folder) / name.replace(" ", "_")
        with mesh(config(root, name).parallel) as here:
            found[name] = {
                "skipped": skipped(root / "skipped", name, here),
                "stopped": stopped(root / "stop", name, here),
            }
            found[name]["rewound"] = rewound(root, name, here)
            if name in WATCHED:
                found[name]["hung"] = hung(root / "hung", name, here)
            if name == "data 4, ZeRO 2":
                found[name]["folders"] = folders(root, here)
    return found


def config(folder: Path, name: str, *words: str) -> Any:
    sign_of_life()
    forget_zero_3()
    return tiny(folder, *WORDS, *LAYOUTS[name], *words)


def skipped(folder: Path, name: str, here: Mesh) -> dict[str, Any]:
    """On the last rank alone a gradient that is no number in step 2, and what the backward pass begins with in 3."""
    at = {"step": 1}
    weights: list[list[Tensor]] = []

    class Watched(Run):
        def _record(self, record: Any, last: bool) -> None:
            super()._record(record, last)
            at["step"] = int(record["step"]) + 1
            parameters = self._engine.module.parameters()
            weights.append([getattr(value, "ds_tensor", value).detach().clone() for value in parameters])

    with Watched(config(folder, name, "--training.steps=6"), here) as run:
        if here.rank == here.world_size - 1:
            break_gradients(run._engine.module, lambda: at["step"] == 2)
            break_losses(lambda: at["step"] == 3)
        try:
            run.train()
        finally:
            loop.micro_batch_loss = MICRO_BATCH_LOSS
    same = [all(map(torch.equal, a, b)) for a, b in itertools.pairwise(weights)]
    return {"same": same, "lines": lines(folder), "log": log(folder), "skipped": run._engine.skipped_steps}


MICRO_BATCH_LOSS = loop.micro_batch_loss


def break_losses(when: Callable[[], bool]) -> None:
    def broken(*args: Any) -> Tensor:
        return MICRO_BATCH_LOSS(*args) * (math.nan if when() else 1.0)

    loop.micro_batch_loss = broken


def break_gradients(module: torch.nn.Module, when: Callable[[], bool]) -> None:
    """The gradient of what the first part computes becomes not a number."""

    def hook(_: Any, __: Any, output: Any) -> None:
        if when() and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.nan)

    for part in module.modules():
        if not list(part.children()):
            part.register_forward_hook(hook)


def stopped(folder: Path, name: str, here: Mesh) -> dict[str, Any]:
    """A learning rate that throws the weights out of range: every step after the first is skipped."""
    words = ("--training.steps=8", "--optimizer.lr=1e18", "--optimizer.warmup_steps=0", "--guards.max_skipped=2")
    try:
        with Run(config(folder, name, *words), here) as run:
            run.train()
    except GuardError as error:
        return {"error": str(error), "status": error.exit_status, "log": log(folder)}
    return {"error": None}


def rewound(root: Path, name: str, here: Mesh) -> dict[str, Any]:
    """The loss of step 5 looks like a spike the first time; beside a run that never takes the rows of that step."""
    words = ["--training.steps=7"]
    judge = guarding.Guards.judge
    seen = []

    def judged(self: Any, step: int, loss: float, *rest: Any) -> Any:
        if step == 5 and not seen:
            seen.append(step)
            loss = 1e6
        return judge(self, step, loss, *rest)

    guarding.Guards.judge = judged  # type: ignore[method-assign]
    try:
        rewind = (
            "--checkpoint.every=2",
            "--checkpoint.keep=0",
            "--guards.spike=rewind",
            "--guards.spike_window=3",
            "--guards.spike_patience=1",
            "--guards.spike_deviations=1000",
        )
        with Run(config(root / "rewound", name, *words, *rewind), here) as run:
            run.train()
    finally:
        guarding.Guards.judge = judge  # type: ignore[method-assign]
    with Run(config(root / "without", name, *words, "--guards.skip_steps=5"), here) as run:
        run.train()
    return {"rewound": lines(root / "rewound"), "without": lines(root / "without"), "log": log(root / "rewound")}


def hung(folder: Path, name: str, here: Mesh) -> dict[str, Any]:
    """One rank sleeps or is stopped in its forward pass of step 3 until the watchdog has told; it is slow in step 2."""
    ends: list[int] = []
    at = {"step": 1}
    reports = folder / "logs" / "hang-step-00000003"

    def watchdog(*args: Any) -> Watchdog:
        return Watchdog(*args, end=ends.append)

    class Watched(Run):
        def _record(self, record: Any, last: bool) -> None:
            super()._record(record, last)
            at["step"] = int(record["step"]) + 1

    def hook(_: Any, __: Any) -> None:
        if here.rank != SLEEPER:
            return
        if at["step"] == 2:
            time.sleep(0.2)
        if at["step"] == 3 and name == STOPPED and not reports.exists():
            os.kill(os.getpid(), signal.SIGSTOP)
        end = time.monotonic() + 30
        while at["step"] == 3 and not (reports / SUMMARY).exists() and time.monotonic() < end:
            time.sleep(0.05)

    guarding.Watchdog = watchdog  # type: ignore[assignment, misc]
    measured = loop.probe
    loop.probe = lambda device: 1.0 if here.rank == SLEEPER else 0.1
    try:
        words = (f"--guards.hang_seconds={LIMIT}", "--guards.slow_ranks_every=3", "--training.steps=4")
        with Watched(config(folder, name, *words), here) as run:
            run._engine.module.register_forward_pre_hook(hook)
            run.train()
    finally:
        guarding.Watchdog = Watchdog  # type: ignore[misc]
        loop.probe = measured
    stacks = (reports / f"rank-{here.rank:05d}.txt").read_text() if reports.exists() else ""
    told = (reports / SUMMARY).read_text() if (reports / SUMMARY).exists() else ""
    ranks = [json.loads(line) for line in (folder / "logs" / "ranks.jsonl").read_text().splitlines()]
    return {"ends": ends, "stacks": stacks, "summary": told, "log": log(folder), "ranks": ranks}


def folders(root: Path, here: Mesh) -> dict[str, Any]:
    """A run's folder that cannot be made; that one rank cannot write to; that is in use."""
    said = {}
    if here.is_main:
        root.mkdir(parents=True, exist_ok=True)
        (root / "file").touch()
        (root / "taken").mkdir()
        (root / "taken" / f".rank-{SLEEPER}").mkdir()
    for case in ("file/run", "taken"):
        try:
            start.take_folder(root / case, here)
        except UserError as error:
            said[case] = str(error)
    lock = start.take_folder(root / "used", here)
    try:
        start.take_folder(root / "used", here)
    except UserError as error:
        said["used"] = str(error)
    if lock is not None:
        lock.release()
    return said | {"pid": os.getpid()}


def log(folder: Path) -> str:
    path = folder / "logs" / "pretrain.log"
    return path.read_text() if path.exists() else ""
