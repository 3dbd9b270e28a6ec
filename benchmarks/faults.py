#!/usr/bin/env python
"""Does a kill at any moment cost a row, or change a loss? Training is killed again and again, and must not show it.

    python benchmarks/faults.py --kills 50 --folder faults
    python benchmarks/faults.py --kills 2 --forms "data 2" --json faults.json

For each form (1 to 4 processes in several layouts) an undisturbed run gives the losses to compare with. Then supervised
runs (launcher/supervise.py) lose a rank, drawn from a seed like the moment: SIGKILL while the ranks start, while they
train, or while a checkpoint is being written. The supervisor ends the other ranks and starts all again; a run is killed
up to four times before it may finish. Its metrics.jsonl must then hold every step once, with the losses and gradient
norms of the undisturbed run bit for bit, and with the rows that the sampler's formula gives that step.

What is done stands in --folder, and the same command goes on from there.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from megatron_pixel.config.errors import UserError, exit_on_user_error
from megatron_pixel.config.loader import load_config
from megatron_pixel.data.mixture import open_training
from megatron_pixel.data.rows import rows_digest
from megatron_pixel.training import sessions
from megatron_pixel.training.metrics import METRICS_FILE

RECIPE = "megatron_pixel/config/recipes/dualgpt-debug.yaml"
SETTINGS = """
    --training.steps=24 --training.global_batch_rows=30 --model.layers=2 --checkpoint.every=4 --checkpoint.keep=2
    --evaluation.every=12 --evaluation.rows=4 --logging.pages=0 --logging.progress_every=100
""".split()
FORMS: dict[str, tuple[int, list[str]]] = {
    "1": (1, []),
    "data 2": (2, ["--checkpoint.asynchronous=true"]),
    "tensor 2": (2, ["--parallel.tensor=2"]),
    "pipeline 2": (2, ["--parallel.pipeline=2", "--checkpoint.asynchronous=true"]),
    "data 3, ZeRO 2": (3, ["--deepspeed_config=ds_configs/zero2.json", "--checkpoint.asynchronous=true"]),
    "tensor 2 x data 2, bf16": (
        4,
        ["--parallel.tensor=2", "--training.micro_batch_rows=3", "--training.precision=bf16"],
    ),
    "tensor 2 x pipeline 2": (4, ["--parallel.tensor=2", "--parallel.pipeline=2"]),
}
"""Name of a form: its processes and settings."""
MOST_KILLS_OF_A_RUN = 4
MOMENTS = (("starting", 0.2), ("training", 0.45), ("saving", 0.35))
TIMES = ("time", "memory_gb", "tflops_per_device")
PATIENCE = 240.0
"""Seconds in which a run has to show the next sign of life."""


class Supervised:
    """One supervised run and what is seen of it from outside. Use it as a context manager: leaving it ends the run."""

    def __init__(self, form: str, folder: Path) -> None:
        self.ranks, words = FORMS[form]
        self.folder = folder
        self.said: list[tuple[float, str]] = []
        command = [sys.executable, str(ROOT / "launcher" / "supervise.py"), "--ranks", str(self.ranks)]
        command += ["--retries", "20", "--pause", "0", "--config", RECIPE, *SETTINGS, *words, f"--run.dir={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Supervised":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append((time.monotonic(), line.rstrip()))

    def pids(self) -> dict[int, int]:
        """The living ranks and their processes."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                found[int(child.environ().get("RANK", 0))] = child.pid
            except psutil.Error:
                continue
        return found

    def steps(self) -> int:
        """Bytes of metrics.jsonl, which grow with every step."""
        path = self.folder / METRICS_FILE
        return path.stat().st_size if path.exists() else 0

    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.folder / "checkpoints.writing").glob("step-*"))

    def await_that(self, what: Callable[[], bool], pause: float = 0.002) -> bool:
        """Until it is so; False when the run is over before."""
        end = time.monotonic() + PATIENCE
        while not what():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                raise SystemExit(f"error: {self.folder} gave no sign of life:\n" + "\n".join(t for _, t in self.said))
            time.sleep(pause)
        return True

    def finish(self) -> None:
        """Let it come to its end."""
        self.process.wait(PATIENCE)
        self._reader.join()
        if self.process.returncode:
            raise SystemExit("\n".join([f"error: status {self.process.returncode}", *(text for _, text in self.said)]))


class Campaign:
    """The kills, and what they did; kept in a folder.

    Args:
        folder: for the runs and the state of the campaign.
        forms: names of ``FORMS``.
        seed: of the moments.
    """

    def __init__(self, folder: Path, forms: Sequence[str], seed: int) -> None:
        self.folder, self.forms, self.seed = folder, list(forms), seed
        folder.mkdir(parents=True, exist_ok=True)
        self._state = folder / "campaign.json"
        self.runs: list[dict[str, Any]] = json.loads(self._state.read_text()) if self._state.exists() else []

    @property
    def kills(self) -> int:
        return sum(sum(run["kills"].values()) for run in self.runs)

    def next_run(self, left: int) -> dict[str, Any]:
        """Take a run to its end, killing it on the way, and judge it."""
        number = len(self.runs)
        form = self.forms[number % len(self.forms)]
        generator = random.Random(f"{self.seed}/{number}")
        expected, seconds = self.undisturbed(form)
        folder = self.folder / f"run-{number:03d}"
        shutil.rmtree(folder, ignore_errors=True)
        kills: Counter[str] = Counter()
        longest = 0.0
        with Supervised(form, folder) as run:
            for _ in range(generator.randint(1, min(left, MOST_KILLS_OF_A_RUN))):
                moment, _ = generator.choices(MOMENTS, [weight for _, weight in MOMENTS])[0]
                after, victim = generator.random(), generator.randrange(run.ranks)
                if not self._reach(run, moment, after, seconds):
                    break
                took = self._kill(run, victim)
                if took is None:
                    break
                kills[moment] += 1
                longest = max(longest, took)
            run.finish()
        result = {"form": form, "ranks": run.ranks, "kills": dict(kills), "seconds_to_end": longest}
        result |= compare(folder, expected, self.expected_rows(form))
        self.runs.append(result)
        part = self._state.with_suffix(".part")
        part.write_text(json.dumps(self.runs, indent=1))
        part.replace(self._state)
        shutil.rmtree(folder)
        return result

    def undisturbed(self, form: str) -> tuple[list[dict[str, Any]], float]:
        """The lines of a run without a kill, and the seconds from its start to its first step."""
        folder = self.folder / ("undisturbed-" + re.sub(r"\W+", "-", form))
        kept = folder / "seconds.json"
        if not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)
            begin = time.monotonic()
            with Supervised(form, folder) as run:
                run.await_that(lambda: run.steps() > 0)
                seconds = time.monotonic() - begin
                run.finish()
            kept.write_text(json.dumps(seconds))
        return lines(folder), json.loads(kept.read_text())

    def expected_rows(self, form: str) -> list[int]:
        """The digest of the rows of each step by the sampler's formula, without any run."""
        config = load_config(ROOT / RECIPE, [*SETTINGS, *FORMS[form][1]])
        reader = open_training(config.data, config.model, config.pair, config.training, 1)
        digests = []
        for step in range(config.training.steps):
            batches = [reader.micro_batch(step, index, 0, 1) for index in range(reader.num_micro_batches(1))]
            digests.append(sum(rows_digest(batch.rows) for batch in batches))
        return digests

    def _reach(self, run: Supervised, moment: str, after: float, startup: float) -> bool:
        """Wait for the moment of a kill; False when the run is over before it."""
        if not run.await_that(lambda: len(run.pids()) == run.ranks):
            return False
        if moment == "starting":
            time.sleep(after * 0.9 * startup)
            return run.process.poll() is None
        before = run.steps()
        if not run.await_that(lambda: run.steps() > before):
            return False
        if moment == "training":
            time.sleep(after * 2)
            return run.process.poll() is None
        if not run.await_that(run.saving, pause=0.0005):
            return False
        time.sleep(after * 0.15)
        return run.process.poll() is None

    def _kill(self, run: Supervised, victim: int) -> float | None:
        """SIGKILL to a rank; the seconds until all are ended. None where it had gone already."""
        pids = run.pids()
        if victim not in pids:
            return None
        told = len(run.said)
        begin = time.monotonic()
        os.kill(pids[victim], signal.SIGKILL)
        pattern = re.compile(rf"rank {victim} of {run.ranks} \(process {pids[victim]}\) was killed by SIGKILL")

        def named() -> bool:
            return any(pattern.search(text) for _, text in run.said[told:])

        if not run.await_that(named):
            return None  # it died after its last act
        return next(moment for moment, text in run.said[told:] if pattern.search(text)) - begin


def compare(folder: Path, expected: Sequence[dict[str, Any]], digests: Sequence[int]) -> dict[str, Any]:
    """Steps that are missing or doubled, that read other rows, or whose numbers are not those expected."""
    found = lines(folder)
    steps = [line for line in found if "loss" in line]
    counts = Counter(line["step"] for line in steps)
    return {
        "steps_missing": sum(counts[step] == 0 for step in range(1, len(digests) + 1)),
        "steps_repeated": sum(count - 1 for count in counts.values()),
        "steps_with_other_rows": sum(line["rows_digest"] != digests[line["step"] - 1] for line in steps),
        "lines_with_other_losses": sum(a != b for a, b in zip(found, expected, strict=False))
        + abs(len(found) - len(expected)),
        "restarts": sum(event["event"] == "start" for event in sessions.read(folder)) - 1,
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without times, speeds and memory."""
    found = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key not in TIMES and not key.endswith(("seconds", "_per_second"))}
        for line in found
    ]


FAULTS = ("steps_missing", "steps_repeated", "steps_with_other_rows", "lines_with_other_losses")


def figures(campaign: Campaign) -> dict[str, Any]:
    """What goes into the result file."""
    done = {run["form"] for run in campaign.runs}
    by_form: dict[str, Counter[str]] = {form: Counter() for form in FORMS if form in done}
    for run in campaign.runs:
        counts = {"runs": 1, "kills": sum(run["kills"].values()), **run["kills"], "restarts": run["restarts"]}
        by_form[run["form"]].update(counts | {fault: run[fault] for fault in FAULTS})
    keys = ("runs", "kills", *(name for name, _ in MOMENTS), "restarts", *FAULTS)
    return {
        "seed": campaign.seed,
        "kills": campaign.kills,
        "runs": len(campaign.runs),
        "longest_seconds_to_end": max((run["seconds_to_end"] for run in campaign.runs), default=0.0),
        "forms": {
            form: {"ranks": FORMS[form][0]} | {key: counts[key] for key in keys} for form, counts in by_form.items()
        },
    }


def main(words: Sequence[str]) -> int:
    """Kill, compare, print, and write the figures if asked to; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all (50)")
    parser.add_argument(
        "--forms", nargs="+", default=list(FORMS), help=f"layouts to take in turn (all: {', '.join(FORMS)})"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--folder", type=Path, help="where to work, and to go on from (a temporary folder)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args(words)
    unknown = [form for form in arguments.forms if form not in FORMS]
    if unknown:
        raise UserError(f"--forms: there is no {unknown[0]!r}; there are {', '.join(map(repr, FORMS))}")
    with tempfile.TemporaryDirectory() as temporary:
        campaign = Campaign(arguments.folder or Path(temporary), arguments.forms, arguments.seed)
        while (left := arguments.kills - campaign.kills) > 0:
            run = campaign.next_run(left)
            fine = not any(run[fault] for fault in FAULTS)
            told = ", ".join(f"{count} while {moment}" for moment, count in run["kills"].items()) or "none"
            print(
                f"run {len(campaign.runs)} ({run['form']}): kills: {told}; {'equal' if fine else f'NOT EQUAL {run}'}; "
                f"{campaign.kills} of {arguments.kills} kills",
                flush=True,
            )
    found = figures(campaign)
    print(f"{'form':26} ranks  runs  kills  missing  repeated  other rows  other losses")
    for form, counts in found["forms"].items():
        wrong = [counts[fault] for fault in FAULTS]
        print(
            f"{form:26} {counts['ranks']:5} {counts['runs']:5} {counts['kills']:6} {wrong[0]:8} {wrong[1]:9} "
            f"{wrong[2]:11} {wrong[3]:13}"
        )
    print(f"a killed rank had ended all others after {found['longest_seconds_to_end']:.1f} s at the most")
    result_file.write(arguments.json, found, libraries=("torch", "deepspeed", "megatron-core"))
    return int(any(counts[fault] for counts in found["forms"].values() for fault in FAULTS))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the run under way is ended, too
    with exit_on_user_error():
        sys.exit(main(sys.argv[1:]))
