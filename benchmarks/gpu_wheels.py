"""The folder of wheels that ``gpu.py`` takes to a GPU machine without a network: made, and installed from."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from importlib.util import find_spec
from pathlib import Path

ROOTS = "megatron-core deepspeed transformers pytest numpy psutil pyyaml tensorboard".split()
"""What a run on made-up rows, its peers and the tests of a GPU import, besides torch. Neither the renderer nor the page
codec is among it: numba with its compiler has the size of everything else together."""
LEFT_OUT = {"torch", "grpcio", "hf-xet", "tensorboard-data-server", "werkzeug", "markdown", "pillow"}
"""There already, or never imported on the way: a server's parts, a downloader's, what draws pictures."""
OURS = ("megatron-core", "deepspeed")
"""Installed in our version in any case; of everything else the machine's own is good enough."""
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux_2_12", "manylinux1")


class WheelsError(Exception):
    """What the user can mend. The package's own UserError is not to be had before anything is installed."""


def collect(folder: Path, python: str, without: Sequence[str], limit: float) -> None:
    """Download the wheels, in the versions that are installed here, with what they need; build DeepSpeed's.

    Args:
        folder: gets them; made if it is not there. Other versions of the same packages, and wheels for another Python,
            are taken out of it.
        python: version of the GPU machine's Python, such as ``3.12``.
        without: packages that the machine has.
        limit: MiB that all of them may have at the most.

    Raises:
        WheelsError: a package is not installed here, or has no wheel for that Python, or they are larger than that.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left_out = LEFT_OUT | {normalized(name) for name in without}
    found = closure(ROOTS, left_out, python)
    for name, number in sorted(found.items()):
        if not any(_suits(path, number, python) for path in _wheels(folder, name)):
            print(f"  {name} {number}", flush=True)
            if name == "deepspeed":
                _build(folder, f"deepspeed=={number}")
            else:
                _download(folder, f"{name}=={number}", python)
        for path in _wheels(folder, name):
            if not _suits(path, number, python):
                path.unlink()
    sizes = {path: path.stat().st_size / 2**20 for path in folder.glob("*.whl")}
    for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
        name = normalized(path.name.split("-")[0])
        print(f"{size:8.1f} MiB  {name:26}{'' if name in found else 'was there before, and is not asked for'}".rstrip())
    total = sum(sizes.values())
    print(f"{total:8.1f} MiB  {len(sizes)} wheels in {folder}")
    if total > limit:
        raise WheelsError(
            f"{folder} has {total:.1f} MiB, more than --limit {limit:g}: leave out what the machine has with --without "
            "NAME, and delete what is not asked for"
        )


def _wheels(folder: Path, name: str) -> list[Path]:
    return [path for path in folder.glob("*.whl") if normalized(path.name.split("-")[0]) == name]


def _suits(path: Path, number: str, python: str) -> bool:
    """Whether a wheel has this version, and is for this Python on Linux."""
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import parse_wheel_filename
    from packaging.version import Version

    major, minor = map(int, python.split("."))
    platforms = [f"{name}_x86_64" for name in PLATFORMS]
    tags = {
        *cpython_tags((major, minor), platforms=platforms),
        *compatible_tags((major, minor), f"cp{major}{minor}", platforms),
    }
    _, found, _, its_tags = parse_wheel_filename(path.name)
    return found == Version(number) and not tags.isdisjoint(its_tags)


def closure(roots: Iterable[str], left_out: Iterable[str], python: str) -> dict[str, str]:
    """Versions of the installed packages that ``roots`` need, themselves among them, on Linux with some Python.

    Raises:
        WheelsError: a root is not installed here.
    """
    from packaging.requirements import Requirement

    without = {normalized(name) for name in left_out}
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: dict[str, str] = {}
    waiting = [normalized(name) for name in roots]
    while waiting:
        name = waiting.pop()
        if name in found or name in without:
            continue
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name in roots:
                raise WheelsError(f"{name} is not installed here: pip install -r requirements-dev.txt") from None
            continue  # what a marker of another system asks for
        needs = [Requirement(line) for line in requires(name) or []]
        waiting += [normalized(n.name) for n in needs if n.marker is None or n.marker.evaluate(environment)]
    return found


def install(folder: Path, site: Path) -> bool:
    """Put what this Python lacks of a folder's wheels into a new folder for ``PYTHONPATH``.

    Nothing of the machine is changed: its environment may not be ours, nor have room for a virtual one.

    Args:
        folder: of the wheels.
        site: the new folder.

    Returns:
        Whether something was lacking.

    Raises:
        WheelsError: there are no wheels, or pip refuses one.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise WheelsError(
            f"--wheels {folder}: no wheels in it; make them with python benchmarks/gpu.py --collect {folder}"
        )
    named = {path: path.name.split("-")[:2] for path in wheels}
    lacking = {path: (name, number) for path, (name, number) in named.items() if _lacks(normalized(name), number)}
    if not lacking:
        return False
    if find_spec("pip") is None:  # a wheel is an archive of what it installs
        for path in lacking:
            with zipfile.ZipFile(path) as wheel:
                wheel.extractall(site)
        return True
    wanted = [f"{name}=={number}" for name, number in lacking.values()]
    words = ["install", "--no-index", "--find-links", str(folder), "--no-deps", "--no-compile", "--target", str(site)]
    _pip([*words, *wanted], f"--wheels {folder}")
    return True


def normalized(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _lacks(name: str, number: str) -> bool:
    try:
        found = distribution(name).version
    except PackageNotFoundError:
        return True
    return name in OURS and found != number


def _download(folder: Path, requirement: str, python: str) -> None:
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    words = ["download", "--quiet", "--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    _pip([*words, "--python-version", python, *platforms, "--dest", str(folder), requirement], "--collect")


def _build(folder: Path, requirement: str) -> None:
    """DeepSpeed comes as source; without operations compiled ahead its wheel is plain Python."""
    with tempfile.TemporaryDirectory() as work:
        words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", work, requirement]
        _pip(words, "--collect", DS_BUILD_OPS="0")
        (wheel,) = Path(work).glob("*.whl")
        if not wheel.name.endswith("-none-any.whl"):
            raise WheelsError(f"{wheel.name} is no plain Python wheel: build it where DS_BUILD_OPS is not set to 1")
        shutil.move(wheel, folder / wheel.name)


def _pip(words: Sequence[str], option: str, **environment: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise WheelsError(f"{option}: pip {words[0]} {words[-1]} failed: {' / '.join(said[-3:])}")
