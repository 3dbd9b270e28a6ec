"""Where a run stands and whether it lives, from its folder alone: for a terminal, without torch, in a moment."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron_pixel.reporting.run_folder import TAIL_BYTES, Record, RunFolder, median
from megatron_pixel.training.progress import duration, losses_line, quantity

SILENCE = 60.0
"""Seconds without a sign of life after which the process of a run counts as dead; it gives one every ten."""
PATIENCE = 120.0
"""Seconds beyond ten steps after which a run that lives and takes no step counts as stuck."""
RECENT, BEFORE = 50, 200
"""Steps whose throughput is compared with that of the steps before them."""
PARTS = ("data", "forward", "backward", "optimizer", "pipeline")
GOOD = ("training", "starting", "finished", "stopped")
"""States in which nobody has to look."""


@dataclass(frozen=True)
class Status:
    """What there is to say; None where it is not known."""

    run: str
    state: str
    """``starting``, ``training``, ``finished``, ``stopped`` (whole, goes on when started again), ``stuck``, ``dead``,
    ``failed``, or ``unknown``."""
    why: str
    step: int
    steps: int | None
    seconds_left: float | None
    losses: str
    evaluation: str
    tokens_per_second: float | None
    patches_per_second: float | None
    mfu: float | None
    memory_gb: float | None
    trend: float | None
    """Throughput of the last steps against those before: 0.02 is two per cent faster."""
    rates: list[float] = field(repr=False)
    """Targets a second over the last steps, thinned out."""
    seconds_per_step: float | None
    parts: dict[str, float]
    """Share of a step's time."""
    checkpoint: int | None
    checkpoint_age: float | None
    checkpoint_bytes: int | None
    checkpoints: int
    starts: int
    troubles: list[tuple[str, str]]

    @property
    def good(self) -> bool:
        """Whether all is as it should be."""
        return self.state in GOOD


def status_of(path: Path, now: float | None = None) -> Status:
    """The state of the run in a folder.

    Args:
        path: the run's folder.
        now: seconds since 1970, by default those of the clock.

    Raises:
        UserError: it is no run.
    """
    now = time.time() if now is None else now
    run = RunFolder(path)
    steps, evaluations = run.lines(TAIL_BYTES)
    if not evaluations:
        _, evaluations = run.lines()
    last: Record = steps[-1] if steps else {}
    step = int(last.get("step", 0))
    total = run.setting("training.steps")
    seconds = _wall_seconds(steps)
    events = run.sessions()
    state, why = _state(run, events, step, total, seconds, now)
    rates = [_rate(record) for record in steps]
    recent, before = rates[-RECENT:], rates[-RECENT - BEFORE : -RECENT]
    newest = run.checkpoints()
    shares = {part: _share(steps[-RECENT:], part) for part in PARTS}
    middle, earlier = median(recent), median(before)
    return Status(
        run=str(path),
        state=state,
        why=why,
        step=step,
        steps=total,
        seconds_left=(total - step) * seconds if total is not None and seconds is not None else None,
        losses=losses_line(last) if steps else "",
        evaluation=f"step {evaluations[-1]['step']:,}: {losses_line(evaluations[-1], 'eval_')}" if evaluations else "",
        tokens_per_second=median([r["tokens_per_second"] for r in steps[-RECENT:] if r.get("tokens_per_second")]),
        patches_per_second=median([r["patches_per_second"] for r in steps[-RECENT:] if r.get("patches_per_second")]),
        mfu=median([r["mfu"] for r in steps[-RECENT:] if r.get("mfu")]),
        memory_gb=last.get("memory_gb"),
        trend=middle / earlier - 1 if middle and earlier else None,
        rates=_thinned(rates[-RECENT - BEFORE :], 32),
        seconds_per_step=seconds,
        parts={part: share for part, share in shares.items() if share},
        checkpoint=newest[-1].step if newest else None,
        checkpoint_age=now - newest[-1].time if newest else None,
        checkpoint_bytes=newest[-1].bytes if newest else None,
        checkpoints=len(newest),
        starts=sum(event["event"] == "start" for event in events),
        troubles=run.troubles()[-5:],
    )


def _state(
    run: RunFolder, events: Sequence[dict[str, Any]], step: int, total: int | None, seconds: float | None, now: float
) -> tuple[str, str]:
    """State and reason. The last event decides; behind a start, signs of life do."""
    last = events[-1] if events else {}
    if last.get("event") == "end":
        status, reason = last.get("status"), str(last.get("reason") or "")
        if status == 0 and (total is None or step >= total):
            return "finished", ""
        if status in (0, 75):
            return "stopped", f"by {reason}; start the same command again" if reason else "start the same command again"
        return "failed", reason or f"status {status}"
    if total is not None and step >= total and not last:
        return "finished", ""
    written = run.last_written()
    quiet = None if written is None else now - written
    beat = _beat(run.path, now)
    if beat is None:
        if last:
            return "dead", f"its process has left without an end; the last line is {_ago(quiet)}"
        lively = quiet is not None and quiet < PATIENCE + 10 * (seconds or 0.0)
        return ("training", f"last line {_ago(quiet)}") if lively else ("unknown", f"last line {_ago(quiet)}")
    if beat > SILENCE:
        return "dead", f"no sign of life for {duration(beat)}, its machine may be gone"
    if last.get("step", 0) == step and (quiet is None or quiet < 10 * PATIENCE):
        return "starting", f"since {last.get('time', '')}"
    if quiet is not None and quiet > PATIENCE + 10 * (seconds or 0.0):
        return "stuck", f"its process lives, but the last line is {_ago(quiet)} and a step takes {seconds or 0:.3g} s"
    return "training", f"last line {_ago(quiet)}"


def _beat(folder: Path, now: float) -> float | None:
    """Seconds since the process of a run gave a sign of life; None where none holds its folder."""
    try:
        lock = folder / "run.lock"
        held = bool(json.loads(lock.read_text(encoding="utf-8")))
        return now - lock.stat().st_mtime if held else None
    except (OSError, ValueError):
        return None


def _wall_seconds(steps: Sequence[Record]) -> float | None:
    """Seconds from step to step, what happens between them included; from the last steps of one process."""
    times = [(record["step"], record["time"]) for record in steps[-RECENT - BEFORE :] if record.get("time")]
    gaps = [(later - earlier) / (n - m) for (m, earlier), (n, later) in pairwise(times) if n > m]
    middle = median(gaps)
    if middle is None:
        return median([record["seconds"] for record in steps[-RECENT:] if record.get("seconds")])
    # A gap of a restart is no step; evaluations and checkpoints are part of the way.
    usual = [gap for gap in gaps if gap < 50 * middle + 600]
    return sum(usual) / len(usual)


def _rate(record: Record) -> float:
    return (record.get("tokens_per_second") or 0.0) + (record.get("patches_per_second") or 0.0)


def _share(steps: Sequence[Record], part: str) -> float:
    whole = sum(record.get("seconds") or 0.0 for record in steps)
    return sum(record.get(f"{part}_seconds") or 0.0 for record in steps) / whole if whole else 0.0


def _thinned(values: Sequence[float], count: int) -> list[float]:
    size = max(1, -(-len(values) // count))
    return [sum(part) / len(part) for i in range(0, len(values), size) if (part := values[i : i + size])]


def _ago(seconds: float | None) -> str:
    return "not there" if seconds is None else f"{duration(seconds)} ago"


def sparkline(values: Sequence[float]) -> str:
    """Values as a row of bars, from zero."""
    high = max(values, default=0.0)
    bars = "▁▂▃▄▅▆▇█"
    return "".join(bars[round(value / high * (len(bars) - 1))] for value in values) if high else ""


def block(status: Status) -> str:
    """One run in full."""
    s = status
    lines = {"state": s.state + (f", {s.why}" if s.why else "")}
    done = f"step {s.step:,}"
    if s.steps:
        width = 24
        full = round(min(1.0, s.step / s.steps) * width)
        done += f" of {s.steps:,}  {'█' * full}{'░' * (width - full)}  {s.step / s.steps:.1%}"
    lines["progress"] = done
    if s.seconds_left and s.state in ("training", "starting"):
        end = datetime.fromtimestamp(time.time() + s.seconds_left)
        lines["ETA"] = f"{duration(s.seconds_left)}, {end:%A %d %B %H:%M}"
    if s.losses:
        lines["losses"] = s.losses
    if s.evaluation:
        lines["held-out"] = s.evaluation
    rates = [f"{quantity(rate)} {unit}" for rate, unit in _rates(s)]
    if rates:
        trend = "" if s.trend is None else f", {s.trend:+.1%} against the steps before"
        mfu = f", MFU {s.mfu:.1%}" if s.mfu else ""
        lines["throughput"] = f"{', '.join(rates)}{mfu}  {sparkline(s.rates)}{trend}"
    if s.seconds_per_step is not None:
        parts = "".join(f", {name} {share:.0%}" for name, share in s.parts.items())
        lines["time"] = f"{s.seconds_per_step:.3g} s from step to step{parts}"
    if s.memory_gb:
        lines["memory"] = f"{s.memory_gb:.3g} GB at the most on a rank"
    if s.checkpoint is None:
        lines["checkpoint"] = "none yet"
    else:
        age, size = duration(s.checkpoint_age or 0.0), quantity(float(s.checkpoint_bytes or 0))
        lines["checkpoint"] = f"step {s.checkpoint:,}, {age} ago, {size}B; {s.checkpoints} in all"
    lines["restarts"] = str(max(0, s.starts - 1))
    text = [s.run, *(f"  {name:<11} {value}" for name, value in lines.items())]
    text += [f"  {'troubles' if i == 0 else '':<11} {when}  {said}" for i, (when, said) in enumerate(s.troubles)]
    return "\n".join(text)


def table(statuses: Sequence[Status]) -> str:
    """Several runs, a line each."""
    rows = [("run", "state", "step", "", "ETA", "loss", "throughput", "trend", "checkpoint", "restarts")]
    for s in statuses:
        rates = " ".join(f"{quantity(rate)} {unit}" for rate, unit in _rates(s))
        left = duration(s.seconds_left) if s.seconds_left is not None and s.state in ("training", "starting") else ""
        share = f"{s.step / s.steps:.0%}" if s.steps else ""
        trend = "" if s.trend is None else f"{s.trend:+.0%}"
        kept = "none" if s.checkpoint is None else f"{s.checkpoint:,}"
        loss = s.losses.partition(" (")[0].removeprefix("loss ")
        restarts = str(max(0, s.starts - 1))
        rows.append((s.run, s.state, f"{s.step:,}", share, left, loss, rates, trend, kept, restarts))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_json(statuses: Sequence[Status]) -> str:
    """All of it for programs."""
    return json.dumps([asdict(status) for status in statuses], indent=1)


def _rates(s: Status) -> list[tuple[float, str]]:
    pairs = ((s.tokens_per_second, "tok/s"), (s.patches_per_second, "patch/s"))
    return [(rate, unit) for rate, unit in pairs if rate]
