"""Ranks that end all together: with small programs in the place of training."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from megatron_pixel.parallel.local_ranks import LocalRanks

ROOT = Path(__file__).resolve().parents[2]
GRACE = 0.5


def program(code: str) -> list[str]:
    """``rank`` is there already; a long sleep stands for a rank that waits for another one."""
    return [sys.executable, "-c", f"import os, sys, time; rank = int(os.environ.get('RANK', 0))\n{code}"]


def test_all_finish_and_meet_at_one_store(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = "print('hello', rank, os.environ['MASTER_PORT'], os.environ['WORLD_SIZE'], os.environ['LOCAL_RANK'])"
    with LocalRanks(program(code), 2, tmp_path / "logs" / "ranks.log") as ranks:
        assert ranks.wait(30) is None
    out, err = capfd.readouterr()
    assert out.startswith("hello 0 ")
    assert err.startswith("[rank 1] hello 1 ")
    assert out.split()[2:4] == [err.split()[4], "2"], "one port for both"
    assert (tmp_path / "logs" / "ranks.log").read_text() == err


def await_end(pid: int) -> None:
    """A process that nobody has waited for stays as a zombie where nobody adopts it."""
    end = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, f"process {pid} lives on"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_rank_is_named_and_ends_the_others(tmp_path: Path, number: signal.Signals) -> None:
    with LocalRanks(program("time.sleep(60)"), 3, tmp_path / "ranks.log") as ranks:
        threading.Timer(0.3, ranks.processes[2].send_signal, (number,)).start()
        begin = time.monotonic()
        end = ranks.wait(GRACE)
        assert time.monotonic() - begin < 0.3 + GRACE + 2
        assert end is not None
        assert (end.rank, end.pid, end.cause()) == (2, ranks.processes[2].pid, f"was killed by {number.name}")
        assert all(process.poll() is not None for process in ranks.processes)


def test_the_rank_that_failed_speaks_and_the_echo_goes_to_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first = str(tmp_path / "first")
    # The others speak once the first is gone from the table of processes: its end has been seen then.
    code = f"""
if rank == 1:
    open({first!r} + ".new", "w").write(str(os.getpid()))
    os.rename({first!r} + ".new", {first!r})
else:
    while not os.path.exists({first!r}) or os.path.exists("/proc/" + open({first!r}).read()):
        time.sleep(0.01)
print('trouble of', rank, file=sys.stderr)
sys.exit(9 - rank)
"""
    with LocalRanks(program(code), 3, tmp_path / "ranks.log") as ranks:
        end = ranks.wait(30)
    assert end is not None
    assert (end.rank, end.status, end.cause()) == (1, 8, "ended with status 8")
    assert capfd.readouterr().err == "[rank 1] trouble of 1\n"
    kept = (tmp_path / "ranks.log").read_text()
    assert "[rank 0] trouble of 0\n" in kept
    assert "[rank 2] trouble of 2\n" in kept


def test_workers_of_a_rank_end_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import subprocess; open({str(pid)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid)); sys.exit(3)"
    with LocalRanks(program(code), 1, tmp_path / "ranks.log") as ranks:
        end = ranks.wait(30)
    assert end is not None
    assert end.status == 3
    for _ in range(100):
        if (
            not Path(f"/proc/{pid.read_text()}").exists()
            or "State:\tZ" in Path(f"/proc/{pid.read_text()}/status").read_text()
        ):
            break
        time.sleep(0.02)
    else:
        pytest.fail("the worker lives on")


def test_ranks_do_not_outlive_who_started_them(tmp_path: Path) -> None:
    code = f"""
import sys, time
from pathlib import Path
from megatron_pixel.parallel.local_ranks import LocalRanks
ranks = LocalRanks([sys.executable, "-c", "import time; time.sleep(60)"], 1, Path({str(tmp_path / "ranks.log")!r}))
print(ranks.processes[0].pid, flush=True)
time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    await_end(child)
