"""What the supervisor decides, with ranks that end as told. Real ones die in tests/distributed/test_faults.py."""

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher import supervise
from megatron_pixel.config.errors import UserError
from megatron_pixel.parallel.local_ranks import RankEnd
from megatron_pixel.training import checkpoint_files, exit_codes, sessions

RECIPE = "megatron_pixel/config/recipes/dualgpt-debug.yaml"
KILLED = RankEnd(1, 4711, -signal.SIGKILL)


class Fake:
    """Stands for the ranks: every start ends as the next entry says; what is callable is called before."""

    def __init__(self, script: Sequence[RankEnd | Callable[[], None] | None]) -> None:
        self.script = list(script)
        self.commands: list[list[str]] = []
        self.signals: list[int] = []

    def __call__(self, command: list[str], count: int, log: Path) -> "Fake":
        self.commands.append(command)
        return self

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self, grace: float) -> RankEnd | None:
        while callable(entry := self.script.pop(0)):
            entry()
        return entry

    def signal(self, number: int) -> None:
        self.signals.append(number)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, script: Sequence[Any], *words: str) -> tuple[int, Fake]:
    fake = Fake(script)
    monkeypatch.setattr(supervise, "LocalRanks", fake)
    options = ["--ranks", "2", "--pause", "0", "--config", RECIPE, "--run.dir", str(folder)]
    return supervise.main([*options, *words]), fake


def new_checkpoint(folder: Path, step: int) -> Callable[[], None]:
    def write() -> None:
        path = folder / "checkpoints" / checkpoint_files.folder_name(step)
        path.mkdir(parents=True)
        checkpoint_files.write_durably(path / checkpoint_files.STATE, json.dumps({"config": {}}))
        checkpoint_files.write_manifest(path, step, checkpoint_files.describe_files(path, [checkpoint_files.STATE]))

    return write


def test_a_death_is_named_kept_and_followed_by_another_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, fake = run(monkeypatch, tmp_path, [new_checkpoint(tmp_path, 3), KILLED, None])
    assert status == exit_codes.FINISHED
    assert len(fake.commands) == 2
    assert fake.commands[0][-4:] == ["--config", RECIPE, "--run.dir", str(tmp_path)]
    assert fake.commands[1] == fake.commands[0]
    err = capsys.readouterr().err
    assert "rank 1 of 2 (process 4711) was killed by SIGKILL; all ranks are ended" in err
    assert "start again from step-00000003" in err
    (event,) = sessions.read(tmp_path)
    assert (event["event"], event["rank"], event["cause"]) == ("failure", 1, "was killed by SIGKILL")


def test_it_is_given_up_after_so_many_deaths_without_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = [KILLED, KILLED, new_checkpoint(tmp_path, 1), KILLED, KILLED, RankEnd(0, 1, 1), None]
    status, fake = run(monkeypatch, tmp_path, script, "--retries", "2")
    assert status == exit_codes.CRASHED
    assert len(fake.commands) == 5, "the new checkpoint sets the count back"
    assert "given up after 3 deaths in a row without a new checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("code", [exit_codes.BAD_INPUT, exit_codes.GUARD, exit_codes.REQUEUE])
def test_some_ends_are_final(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    status, fake = run(monkeypatch, tmp_path, [RankEnd(0, 1, code)])
    assert (status, len(fake.commands)) == (code, 1)


def test_a_hang_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, fake = run(monkeypatch, tmp_path, [RankEnd(0, 1, exit_codes.HANG), None])
    assert (status, len(fake.commands)) == (0, 2)


def test_a_run_that_begins_anew_does_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [KILLED, new_checkpoint(tmp_path, 3), KILLED, None]
    _, fake = run(monkeypatch, tmp_path, script, "--checkpoint.resume", "none")
    assert [command[-2:] for command in fake.commands] == [
        ["--checkpoint.resume", "none"],
        ["--checkpoint.resume", "none"],
        ["--checkpoint.resume", "auto"],
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def send() -> None:
        os.kill(os.getpid(), number)

    status, fake = run(monkeypatch, tmp_path, [send, RankEnd(0, 1, exit_codes.REQUEUE)])
    assert (status, fake.signals) == (exit_codes.REQUEUE, [signal.SIGTERM])
    status, fake = run(monkeypatch, tmp_path, [send, KILLED])
    assert (status, len(fake.commands)) == (exit_codes.CRASHED, 1), "who was asked to end starts nothing"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--ranks", "0", "--config", RECIPE], "at least one process"),
        (["--ranks", "3", "--config", RECIPE, "--parallel.tensor", "2"], "does not divide the 3 process"),
        (["--ranks", "1", "--config", RECIPE, "--run.dir", "/dev/null/run"], "cannot be made"),
    ],
)
def test_mistakes_are_told_before_a_rank_is_started(words: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        supervise.main(words)
