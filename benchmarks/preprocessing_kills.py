#!/usr/bin/env python
"""Does a kill at any moment cost a byte? Preprocessing is killed again and again, and must not show it.

    python benchmarks/preprocessing_kills.py --kills 50
    python benchmarks/preprocessing_kills.py --kills 4 --megabytes 2 --json kills.json

An undisturbed run over a small corpus (a file of JSON lines, and a compressed one, which is cut into parts first) gives
the bytes to compare with. Then, round by round: a run with 1 worker, with 2 workers or under ``mpirun -n 2`` begins
from nothing, all of its processes get SIGKILL at a moment drawn from a seed, the same command is given again, is
perhaps killed again, and so on; the last run of a round ends by itself, and every file is compared. A third of the
kills come while the parts are being joined, which would seldom be met by chance.
"""

import argparse
import gzip
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import result_file
from benchmarks.preprocessing import FORMS, command, environment, hashes, make_corpus

LANGUAGES = 0.1
PART_BYTES = 100_000
MOST_KILLS_OF_A_ROUND = 4
JOINING_SECONDS = 0.05
"""Of a small corpus."""


class Campaign:
    """The same command, over and over."""

    def __init__(self, folder: Path, megabytes: int, seed: int) -> None:
        self.folder = folder / "out"
        self.folder.mkdir()
        plain, packed = folder / "corpus.jsonl", folder / "corpus.jsonl.gz"
        make_corpus(plain, megabytes * 1_000_000, LANGUAGES)
        lines = plain.read_bytes().splitlines(keepends=True)
        plain.write_bytes(b"".join(lines[::2]))
        packed.write_bytes(gzip.compress(b"".join(lines[1::2]), mtime=0))
        self.words = ["pixels", "--input", str(plain), str(packed), "--output-prefix", str(self.folder / "set")]
        self.words += ["--part-bytes", str(PART_BYTES)]
        self.generator = random.Random(seed)
        self.kills: Counter[str] = Counter()
        """What the run was at."""
        self.forms: Counter[str] = Counter()
        started = time.monotonic()
        self.finish("1 worker")
        self.seconds = time.monotonic() - started
        self.expected = hashes(self.folder / "set")

    def clear(self) -> None:
        """Begin from nothing."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def start(self, form: str) -> subprocess.Popen[bytes]:
        """Begin a run in a session of its own."""
        return subprocess.Popen(
            command(form, self.words),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )

    def finish(self, form: str) -> None:
        """Let a run end by itself."""
        process = self.start(form)
        _, said = process.communicate()
        if process.returncode:
            raise SystemExit(f"error: {form} ended with status {process.returncode}:\n{said.decode()}")

    def kill(self, form: str) -> bool:
        """Begin a run and kill it; False if it was done before."""
        before = self.joined()
        process = self.start(form)
        joining = self.generator.random() < 1 / 3
        deadline = time.monotonic() + self.generator.uniform(0.2, 1.2) * self.seconds
        pause = self.generator.uniform(0, JOINING_SECONDS)
        while process.poll() is None:
            if joining and self.joined() != before:
                time.sleep(pause)
                break
            if not joining and time.monotonic() > deadline:
                break
            time.sleep(0.001)
        done = process.poll() is not None
        kill_tree(process)
        if done and process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"error: {form} ended with status {process.returncode}")
        if not done:
            self.kills[self.state()] += 1
            self.forms[form] += 1
        return not done

    def joined(self) -> list[tuple[str, int]]:
        """What the joining of the parts has touched."""
        out = self.folder / "set.work" / "out"
        found = []
        for path in (out, *out.glob("*")):
            try:
                found.append((path.name, path.stat().st_mtime_ns))
            except FileNotFoundError:
                continue
        return sorted(found)

    def state(self) -> str:
        """What a run that was killed was at."""
        work = self.folder / "set.work"
        names = {path.name for path in work.iterdir()} if work.is_dir() else set()
        if "commit.json" in names:
            return "naming the files"
        if "out" in names:
            return "joining the parts"
        if any(name.startswith("part-") for name in names):
            return "converting"
        if any(name.startswith(("spool-", "parts")) for name in names):
            return "cutting and sampling"
        return "starting" if names or not list(self.folder.iterdir()) else "ending"

    def round(self, kills: int) -> bool:
        """Kill a run so many times at most, let it end; returns whether the bytes are the expected ones."""
        self.clear()
        for _ in range(kills):
            self.kill(self.generator.choice(list(FORMS)))
            if (self.folder / "set.manifest.json").exists() and not (self.folder / "set.work").exists():
                break  # it was killed after its last act, or was done before
        else:
            self.finish(self.generator.choice(list(FORMS)))
        return hashes(self.folder / "set") == self.expected


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that it started, in whatever groups; returns when they are gone."""
    try:
        tree = psutil.Process(process.pid)
        family = [tree, *tree.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for each in family:
        try:
            os.kill(each.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()
    psutil.wait_procs(family)


def main() -> None:
    """Kill, compare, print, and write the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills at the least (50)")
    parser.add_argument("--megabytes", type=int, default=8, help="size of the corpus (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (0)")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    result_file.add_json_argument(parser)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        campaign = Campaign(Path(name), arguments.megabytes, arguments.seed)
        print(
            f"an undisturbed run takes {campaign.seconds:.1f} s and writes {len(campaign.expected)} files", flush=True
        )
        rounds = wrong = 0
        while (left := arguments.kills - campaign.kills.total()) > 0:
            equal = campaign.round(campaign.generator.randint(1, min(left, MOST_KILLS_OF_A_ROUND)))
            rounds += 1
            wrong += not equal
            print(f"round {rounds}: {campaign.kills.total()} kills, {'equal' if equal else 'OTHER BYTES'}", flush=True)
    for state, count in campaign.kills.most_common():
        print(f"  killed while {state}: {count}")
    figures = {
        "kills": campaign.kills.total(),
        "rounds": rounds,
        "rounds_with_other_bytes": wrong,
        "killed_while": dict(campaign.kills.most_common()),
        "killed_forms": dict(campaign.forms.most_common()),
        "undisturbed_seconds": campaign.seconds,
        "seconds": time.monotonic() - started,
        "seed": arguments.seed,
    }
    result_file.write(arguments.json, figures, libraries=("mpi4py",))
    if wrong:
        raise SystemExit(f"error: {wrong} rounds ended with other bytes")


if __name__ == "__main__":
    main()
