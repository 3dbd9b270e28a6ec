"""The lock of a run's folder: refused while another process lives, free as soon as it is dead."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_pixel.config.errors import UserError
from megatron_pixel.training import run_lock
from megatron_pixel.training.run_lock import RunLock, holder

ROOT = Path(__file__).resolve().parents[2]
HOLD = "from megatron_pixel.training.run_lock import *; l = RunLock(Path('{}')); print('held', flush=True); input()"


@contextmanager
def another_process(folder: Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    code = HOLD.format(folder)
    pipes = {"stdout": subprocess.PIPE, "stdin": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, env=os.environ | environment, **pipes)  # type: ignore[call-overload]
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def of_another_machine(folder: Path) -> None:
    record = {"token": "x", "host": "node-7", "machine": "another", "pid": 1, "job": "55", "since": "noon"}
    (folder / run_lock.NAME).write_text(json.dumps(record))


def test_a_folder_in_use_is_refused_by_name_and_free_after_a_kill(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        begin = time.monotonic()
        with pytest.raises(UserError, match=rf"run\.dir: .* is in use by process {process.pid} on .*--run\.dir"):
            RunLock(tmp_path)
        assert time.monotonic() - begin < 5, "another job is not waited for"
        assert f"process {process.pid} on " in (holder(tmp_path) or "")
        process.send_signal(signal.SIGKILL)
        process.wait()
        RunLock(tmp_path).release()
    assert holder(tmp_path) is None


def test_the_former_life_of_a_requeued_job_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    told: list[str] = []
    with another_process(tmp_path) as process:
        with pytest.raises(UserError, match="in use by"):
            RunLock(tmp_path, told.append, patience=0.3)
        threading.Timer(0.5, process.kill).start()
        RunLock(tmp_path, told.append).release()
    assert len(told) == 2
    assert "SLURM job 55" in told[0]


def test_a_holder_elsewhere_lives_as_long_as_its_heart_beats(tmp_path: Path) -> None:
    of_another_machine(tmp_path)
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.05):
            os.utime(tmp_path / run_lock.NAME)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(UserError, match="process 1 on node-7, SLURM job 55, since noon"):
        RunLock(tmp_path, silence=2)
    stop.set()
    heart.join()
    told: list[str] = []
    begin = time.monotonic()
    RunLock(tmp_path, told.append, silence=0.6).release()
    assert 0.3 < time.monotonic() - begin < 5
    assert len(told) == 1
    of_another_machine(tmp_path)
    os.utime(tmp_path / run_lock.NAME, (0, time.time() - 3600))
    RunLock(tmp_path, told.append).release()
    assert len(told) == 1, "one that has been silent for long is not waited for"


def test_a_run_that_was_taken_for_dead_notices(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, beat=0.05)
    before = os.stat(tmp_path / run_lock.NAME).st_mtime_ns
    lock.check()
    time.sleep(0.2)
    assert os.stat(tmp_path / run_lock.NAME).st_mtime_ns > before, "no heartbeat"
    of_another_machine(tmp_path)
    with pytest.raises(UserError, match="taken over by process 1 on node-7"):
        lock.check()
    lock.release()
    assert "node-7" in (tmp_path / run_lock.NAME).read_text(), "what belongs to another run is left alone"


def test_where_the_file_system_has_no_locks_the_heartbeat_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(run_lock.errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(run_lock.fcntl, "flock", unsupported)
    first = RunLock(tmp_path, beat=0.05)
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        RunLock(tmp_path, lambda line: None, silence=1)
    first.release()
    RunLock(tmp_path).release()
