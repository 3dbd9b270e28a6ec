"""The one call for a GPU: what it takes along, what it installs, and how it ends what runs too long."""

import json
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_wheels


def wheel(folder: Path, name: str, number: str) -> None:
    """One that holds a module and says who it is."""
    info = f"{name}-{number}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{number}-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", f"NUMBER = {number!r}\n")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


def test_all_that_is_needed_is_taken_along_and_torch_is_not() -> None:
    found = gpu_wheels.closure(gpu_wheels.ROOTS, gpu_wheels.LEFT_OUT, "3.12")
    assert {"megatron-core", "deepspeed", "pydantic-core", "tokenizers", "tensorboard", "pluggy"} <= found.keys()
    assert not found.keys() & {"torch", "grpcio", "triton", "numba", "llvmlite", "uharfbuzz", "zstandard"}
    assert "tokenizers" not in gpu_wheels.closure(gpu_wheels.ROOTS, {"tokenizers"}, "3.12")
    with pytest.raises(gpu_wheels.WheelsError, match="no-such-package is not installed here"):
        gpu_wheels.closure(["no-such-package"], [], "3.12")


def test_only_what_is_lacking_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path, "nobody_has_this", "1.0")
    wheel(tmp_path, "numpy", "0.0.1")
    asked: list[list[str]] = []
    monkeypatch.setattr(gpu_wheels, "_pip", lambda words, option: asked.append(list(words)))
    assert gpu_wheels.install(tmp_path, tmp_path / "site")
    assert asked[0][-1] == "nobody_has_this==1.0"
    assert "numpy==0.0.1" not in asked[0]
    assert {"--no-index", "--no-deps"} <= set(asked[0])
    wheel(tmp_path, "deepspeed", "0.0.1")  # other than the one here: ours counts
    gpu_wheels.install(tmp_path, tmp_path / "site")
    assert "deepspeed==0.0.1" in asked[1]
    with pytest.raises(gpu_wheels.WheelsError, match="no wheels in it"):
        gpu_wheels.install(tmp_path / "empty", tmp_path / "site")


@pytest.mark.parametrize("pip", [True, False])
def test_what_is_lacking_gets_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: bool) -> None:
    if not pip:
        monkeypatch.setattr(gpu_wheels, "find_spec", lambda name: None)
        monkeypatch.setattr(gpu_wheels, "_pip", lambda *_: pytest.fail("there is no pip"))
    wheel(tmp_path, "nobody_has_this", "1.0")
    assert gpu_wheels.install(tmp_path, tmp_path / "site")
    assert (tmp_path / "site" / "nobody_has_this.py").read_text() == "NUMBER = '1.0'\n"


def test_a_folder_is_kept_in_order_and_below_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One wheel of each package, for the Python that is asked for; what is too much is said with its size."""
    monkeypatch.setattr(gpu_wheels, "closure", lambda *_: {"one": "2.0", "two": "1.0"})
    fetched: list[str] = []

    def download(folder: Path, requirement: str, python: str) -> None:
        fetched.append(requirement)
        wheel(folder, *requirement.split("=="))

    monkeypatch.setattr(gpu_wheels, "_download", download)
    wheel(tmp_path, "one", "1.0")
    wheel(tmp_path, "two", "1.0")
    wheel(tmp_path, "numba", "1.0")
    (tmp_path / "two-1.0-cp311-cp311-manylinux_2_17_x86_64.whl").touch()
    gpu_wheels.collect(tmp_path, "3.12", [], limit=1.0)
    assert fetched == ["one==2.0"]
    assert {path.name.split("-py3")[0] for path in tmp_path.glob("*.whl")} == {"one-2.0", "two-1.0", "numba-1.0"}
    shown = capsys.readouterr().out
    assert "numba                     was there before, and is not asked for" in shown
    assert "3 wheels in" in shown
    (tmp_path / "two-1.0-py3-none-any.whl").write_bytes(bytes(1 << 20))
    with pytest.raises(gpu_wheels.WheelsError, match=r"has 1\.0 MiB, more than --limit 1"):
        gpu_wheels.collect(tmp_path, "3.12", [], limit=1.0)


def test_a_program_is_shown_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    result = gpu._logged([sys.executable, "-c", "print('well'); raise SystemExit(3)"], log, {}, 30)
    assert result["status"] == 3
    assert log.read_text() == "well\n" == capsys.readouterr().out
    gpu._logged([sys.executable, "-c", "print('again')"], log, {}, 30, append=True)
    assert log.read_text() == "well\nagain\n"


SLOW = """
import signal, subprocess, sys, time
# Where the tests themselves were started behind a shell, interrupts would be ignored from the start.
signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.default_int_handler)
try:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("summed up", flush=True)
"""


@pytest.mark.parametrize(("kind", "grace", "said"), [("willing", 30.0, ["summed up"]), ("deaf", 0.2, [])])
def test_a_program_is_interrupted_then_ended_with_all_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, grace: float, said: list[str]
) -> None:
    """A process that is left would keep the device, and its open pipe would keep this program."""
    log = tmp_path / "log"

    class Late(subprocess.Popen[str]):
        """Its time is up as soon as it has said something."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout != 100.0:
                return super().wait(timeout)
            while not log.exists() or not log.read_text():
                time.sleep(0.02)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(gpu, "GRACE", grace)
    monkeypatch.setattr(subprocess, "Popen", Late)
    result = gpu._logged([sys.executable, "-c", SLOW, kind], log, {}, 100.0 + grace)
    assert result["status"] == 124
    assert result["seconds"] < 30
    child, *rest = log.read_text().splitlines()
    assert rest == said
    for _ in range(200):
        if is_gone(int(child)):
            break
        time.sleep(0.05)
    assert is_gone(int(child))


def is_gone(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


class Programs:
    """Stands for the programs that are started: what they would leave, and how long they take of a clock."""

    def __init__(self, levers: list[int], device: int = 0) -> None:
        self.commands: list[list[str]] = []
        self.limits: list[float] = []
        self._levers, self._device = levers, device

    def __call__(
        self, command: list[str], log: Path, environment: dict[str, str], limit: float, append: bool = False
    ) -> dict[str, Any]:
        self.commands.append(command)
        self.limits.append(limit)
        assert "TRITON_CACHE_DIR" in environment
        assert "PYTHONDONTWRITEBYTECODE" not in environment
        if "-c" in command:
            return {"status": self._device, "seconds": 9.0}
        if "pytest" in command:
            assert environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
            log.write_text("1 failed, 12 passed, 3 skipped in 9 s\n")
            return {"status": 1, "seconds": 9.0}
        Path(command[command.index("--json") + 1]).write_text("{}")
        assert append == (sum("--go-on" in each for each in self.commands) > 1)
        status = self._levers.pop(0) if "--go-on" in command else 0
        return {"status": status, "seconds": 99.0}


def test_a_failure_of_one_does_not_keep_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(levers=[-11, 1, 0])
    monkeypatch.setattr(gpu, "_logged", programs)
    assert gpu.main(["--out", str(tmp_path), "--minutes", "10"]) == 1
    _, tests, benchmark, *levers = programs.commands
    assert "tests/gpu/test_training.py" in tests
    assert "tests/model/test_batch.py" in tests
    assert benchmark[benchmark.index("--variants") + 1] == "all"
    assert benchmark[benchmark.index("--precision") + 1 :] == ["bf16"]
    assert len(levers) == 3, "a part that ends the program, and one that spoils the device, cost only themselves"
    assert programs.limits[:4] == pytest.approx([gpu.LOOKING, 216, 600 - 132 + gpu.CLOSING, 600], abs=2)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["tests"] == {"status": 1, "seconds": 9.0, "passed": 12, "failed": 1, "skipped": 3, "error": 0}
    assert summary["benchmark"] == {"status": 0, "seconds": 99.0, "written": True}
    assert summary["levers"] == {"status": 0, "seconds": 297.0, "calls": 3, "written": True}


def test_without_the_device_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its tests would be skipped, which looks well."""
    programs = Programs(levers=[], device=1)
    monkeypatch.setattr(gpu, "_logged", programs)
    assert gpu.main(["--out", str(tmp_path)]) == 1
    assert len(programs.commands) == 1
    assert "torch cannot use a cuda device here" in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["machine"]["status"] == 1


def test_what_has_no_time_left_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(levers=[])
    monkeypatch.setattr(gpu, "_logged", programs)
    assert gpu.main(["--out", str(tmp_path), "--minutes", "0.1"]) == 1
    assert len(programs.commands) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert all(summary[job] == {"status": 124, "seconds": 0.0} for job in gpu.JOBS)


def test_an_error_of_the_call_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = Programs(levers=[2])
    monkeypatch.setattr(gpu, "_logged", programs)
    assert gpu.main(["--out", str(tmp_path), "--only", "levers"]) == 1
    assert len(programs.commands) == 2


def test_the_look_says_what_is_there(tmp_path: Path) -> None:
    log = tmp_path / "log"
    hide = "import sys; sys.modules |= dict.fromkeys(['deepspeed', 'megatron', 'triton', 'transformers'])\n"
    assert gpu._logged([sys.executable, "-c", hide + gpu.LOOK, "cpu"], log, {}, 60)["status"] == 0
    shown = log.read_text()
    assert f"with torch {torch.__version__}" in shown
    assert "deepspeed cannot be imported: ModuleNotFoundError" in shown
    assert re.search("^numpy .*__init__", shown, re.MULTILINE)


def test_it_starts_where_nothing_is_installed() -> None:
    """Of the standard library alone: what it needs else, it has yet to install."""
    command = [sys.executable, "-S", "-E", str(gpu.ROOT / "benchmarks" / "gpu.py"), "--wheels", "no-such-folder"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: --wheels no-such-folder: no wheels in it; make them with python benchmarks/")
